"""The same command continues: a driver killed by SIGKILL, then the command again, as a user would type it."""

import signal
import time
from types import SimpleNamespace

import psutil
import pytest

from wsol_pipeline.training.checkpoint import Position

TRIALS, EPOCHS = 3, 3


@pytest.fixture(scope="module")
def story(new_study, end):
    """A driver killed after two checkpoints, its command started twice at once, and once more when all is done."""
    study = new_study("--concurrent", "2", "--pruner", "none")
    survivors = study.kill_at("checkpointed", 2)
    left = {trial.number: (trial, study.checkpoints(trial.number).records()) for trial in study.trials()}
    both = [end(process) for process in [study.start(), study.start()]]
    finals, runs = study.finals(), {run.info.run_id for run in study.runs()}
    return SimpleNamespace(
        study=study, survivors=survivors, left=left, both=both, finals=finals, runs=runs, again=study.run()
    )


def test_no_process_outlives_a_killed_driver(story):
    _, alive = psutil.wait_procs(story.survivors, timeout=150)
    assert not alive


def test_of_two_drivers_started_at_once_one_leaves_in_one_line_and_one_finishes(story):
    winner, loser = sorted(story.both, key=lambda ended: ended.returncode)
    assert (winner.returncode, loser.returncode) == (0, 4), loser.stdout + loser.stderr + winner.stderr
    assert loser.stdout == ""
    assert loser.stderr.startswith("error: Process ")
    assert "this study" in loser.stderr
    assert loser.stderr.count("\n") == 1
    assert f"{TRIALS} trials started = {TRIALS} complete + 0 pruned + 0 failed" in winner.stdout


def test_no_trial_is_lost_repeated_or_left(story):
    assert [trial.number for trial in story.study.trials()] == list(range(TRIALS))
    assert story.study.states() == ["COMPLETE"] * TRIALS


def test_adopted_trials_go_on_from_their_checkpoints_with_the_same_parameters(story):
    trials = story.study.trials()
    begun = [number for number, (trial, records) in story.left.items() if records and trial.state.name == "RUNNING"]
    assert begun, "the driver died before any trial had a checkpoint"
    for number in begun:
        before, records = story.left[number]
        assert trials[number].params == before.params
        assert story.study.checkpoints(number).records()[: len(records)] == records  # their times too: not done again


def test_every_trial_is_one_run_of_mlflow_with_each_epoch_once(story):
    runs = {run.data.tags["wsol.trial"]: run for run in story.study.runs()}
    assert len(story.study.runs()) == len(runs) == TRIALS + 1
    parent = runs.pop("study")
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        history = story.study.client.get_metric_history(run.info.run_id, "val/max_box_acc_v2")
        assert [metric.step for metric in history] == [1, 2, 3]


def test_the_winner_is_registered_once(story):
    best = max(story.study.trials(), key=lambda trial: (trial.value, -trial.number))
    [version] = story.study.versions()
    run = story.study.client.get_run(version.run_id)
    assert run.data.tags["wsol.trial"] == str(best.number)


def test_the_command_of_a_finished_study_changes_nothing(story):
    assert "starts" not in story.again.stdout
    assert story.study.finals() == story.finals
    assert {run.info.run_id for run in story.study.runs()} == story.runs


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "options",
    ["--concurrent 1 --published 1 --trials 4", "--concurrent 2 --pruner none --confirm 1"],
    ids=["one at a time, pruned", "two at once, confirmed"],
)
def test_a_study_killed_at_every_point_ends_as_if_nothing_had_happened(new_study, options):
    undisturbed, study = new_study(*options.split()), new_study(*options.split())
    undisturbed.run()
    for point in ("suggested", "launched", "mid-epoch", "checkpointed", "completing", "registering"):
        finals = study.finals()
        survivors = study.kill_at(point)
        assert finals.items() <= study.finals().items(), f"killed at {point}: a finished model was touched"
        assert not psutil.wait_procs(survivors, timeout=150)[1], f"killed at {point}: processes are left"
    study.run()
    expected, trials = undisturbed.trials(), study.trials()
    assert [t.params for t in trials] == [t.params for t in expected]
    assert [(t.state, t.values, t.intermediate_values) for t in trials] == [
        (t.state, t.values, t.intermediate_values) for t in expected
    ]
    assert len(study.runs()) == len(trials) + 1
    assert len(study.versions()) == 1


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_driver_that_was_replaced_writes_nothing_more_and_leaves(new_study, end):
    study = new_study("--epochs", "200")
    driver = study.start()
    wait_for_line(driver, "starts")
    lease = study.storage / study.name / "lease"
    (lease / "000002.json").write_text((lease / "000001.json").read_text())
    ended = end(driver)
    assert ended.returncode == 4, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: Attempt 1 lost its lease")
    assert "Traceback" not in ended.stderr
    assert not (lease / "000001.released").exists()
    assert set(study.states()) <= {"RUNNING", "WAITING"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_keeps_a_checkpoint_and_continues(new_study, end, signum):
    options = ("--pruner", "none", "--concurrent", "1", "--epochs", "20", "--checkpoint-batches", "0")
    undisturbed, study = new_study(*options), new_study(*options)
    driver = study.start()
    wait_for_line(driver, "epoch 2/20")
    driver.send_signal(signum)
    ended = end(driver)
    assert ended.returncode == 128 + signum, ended.stdout + ended.stderr
    assert ended.stderr.splitlines()[-1] == "interrupted: the same command continues"
    assert "trial   0 goes on: checkpoint after" in ended.stdout
    assert "written now" in ended.stdout
    assert (study.storage / study.name / "lease/000001.released").exists()
    assert study.states()[0] == "RUNNING"
    assert study.checkpoints(0).position() > Position(2)
    assert {run.info.status for run in study.runs()} == {"RUNNING"}  # MLflow knows of the trial
    study.run()
    undisturbed.run()
    assert [(t.state, t.params, t.values) for t in study.trials()] == [
        (t.state, t.params, t.values) for t in undisturbed.trials()
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_signal_leaves_no_process(new_study, end):
    study = new_study("--epochs", "200")
    driver = study.start()
    wait_for_line(driver, "epoch 1/200")
    processes = psutil.Process(driver.pid).children(recursive=True)
    assert processes, "Ray runs in the driver's own process?"
    while driver.poll() is None:  # of two that come before it has taken the first it hears one
        driver.send_signal(signal.SIGINT)
        time.sleep(0.05)
    ended = end(driver)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (130, "interrupted twice: out at once")
    assert not psutil.wait_procs(processes, timeout=150)[1]
    assert study.states()[0] == "RUNNING"


def wait_for_line(process, text: str) -> None:
    """Read what `process` prints until `text` comes."""
    deadline = time.monotonic() + 240
    for line in process.stdout:
        if text in line:
            return
        assert time.monotonic() < deadline
    pytest.fail(f"the driver ended before it printed {text!r}")
