"""Trials that fail by themselves, through real Ray: each is noted with its reason, and the study goes on."""

import pytest


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_that_fails_in_its_first_epoch_ends_itself_alone(new_study, end, workers):
    """The first of three bears the run's own settings, here a learning rate at which every gradient overflows."""
    study = new_study("--learning-rate", "1e30", "--workers", str(workers), "--epochs", "1", "--trials", "3")
    ended = end(study.start("rayjobs/tune_cam.py"))
    assert ended.returncode == 5, ended.stdout + ended.stderr
    assert ended.stderr.splitlines()[-1] == "error: 1 of 3 trials failed (reasons above)."
    assert "Traceback" not in ended.stderr
    assert study.states() == ["FAIL", "COMPLETE", "COMPLETE"]
    failure = study.trials()[0].user_attrs["failure"]
    assert failure["kind"] == "nan"
    assert "in epoch 1" in failure["message"]
