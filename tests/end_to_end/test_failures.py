"""Trials that fail by themselves, through real Ray: each is noted with its reason, and the study goes on."""

import psutil
import pytest


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # groups take their time
def test_a_trial_that_fails_in_its_first_epoch_ends_itself_alone(new_study, end, workers):
    """The first of two bears the run's own settings, here a learning rate at which every gradient overflows."""
    study = new_study("--learning-rate", "1e30", "--workers", str(workers), "--epochs", "1", "--trials", "2")
    ended = end(study.start("rayjobs/tune_cam.py"))
    assert ended.returncode == 5, ended.stdout + ended.stderr
    assert ended.stderr.splitlines()[-1] == "error: 1 of 2 trials failed (reasons above)."
    assert "Traceback" not in ended.stderr
    assert study.states() == ["FAIL", "COMPLETE"]
    failure = study.trials()[0].user_attrs["failure"]
    assert failure["kind"] == "nan"
    assert "in epoch 1" in failure["message"]


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_worker_that_was_stopped_is_ended_by_its_driver_and_loses_no_epoch(new_study, end):
    """SIGSTOP: the watch in it stands still too. (A worker that hangs ends itself: `make reliability`, row stuck.)"""
    study = new_study("--trials", "1", "--epochs", "30", "--stuck-minutes", "0.3")
    driver = study.start("rayjobs/tune_cam.py")
    for line in driver.stdout:
        if "epoch 2/30" in line:
            break
    workers = [c for c in psutil.Process(driver.pid).children(recursive=True) if "ray::" in " ".join(c.cmdline())]
    worker = max(workers, key=lambda process: process.cpu_times().user)  # others stand by
    worker.suspend()
    ended = end(driver)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "has stood still for" in ended.stderr
    assert not worker.is_running()
    assert [record["epoch"] for record in study.checkpoints(0).records()] == list(range(1, 31))
