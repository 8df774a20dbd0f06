"""A study of several objectives, its driver killed half-way: the same command ends with a front and a winner on it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsol_pipeline.study.pareto import Rule

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OBJECTIVES = ["max_box_acc_v2", "cls_top1", "device_hours"]


@pytest.fixture(scope="module")
def story(new_study):
    study = new_study("--concurrent", "1", "--also", "device_hours", "cls_top1")
    study.kill_at("checkpointed", 5)  # of nine: in the second trial
    left = study.trials()
    said = study.run().stdout
    winner = json.loads((study.storage / study.name / "winner.json").read_text())
    return SimpleNamespace(study=study, left=left, said=said, winner=winner)


def test_the_trials_before_and_after_have_all_objectives(story):
    trials = story.study.trials()
    assert [trial.params for trial in trials[: len(story.left)]] == [trial.params for trial in story.left]
    for trial in trials:
        records = story.study.checkpoints(trial.number).records()
        hours = sum(record["device_seconds"] for record in records) / 3600
        assert trial.values == pytest.approx([records[-1]["value"], records[-1]["val"]["cls_top1"], hours])
        assert not trial.intermediate_values
    assert story.study.states() == ["COMPLETE"] * 3


def test_the_winner_is_the_rules_and_on_the_front(story):
    values, rule = [trial.values for trial in story.study.trials()], Rule(tuple(OBJECTIVES), 1.0)
    assert story.winner["objectives"] == OBJECTIVES
    assert story.winner["trial"] == rule.pick(values)
    assert sorted(setting["trial"] for setting in story.winner["front"]) == rule.front(values)
    assert list(story.winner["values"].values()) == values[rule.pick(values)]
    assert story.winner["rule"] == rule.sentence(dict(enumerate(values)))


def test_terminal_and_mlflow_show_the_front(story):
    assert "nothing is pruned" in story.said
    assert story.winner["rule"][:40] in story.said
    client = story.study.client
    (parent,) = [run.info.run_id for run in story.study.runs() if run.data.tags["wsol.trial"] == "study"]
    assert "pictures/pareto.png" in [file.path for file in client.list_artifacts(parent, "pictures")]
    assert (
        "| cls_top1 (validation) | device_hours |" in Path(client.download_artifacts(parent, "ranking.md")).read_text()
    )
