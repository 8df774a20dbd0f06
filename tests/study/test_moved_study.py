"""A storage is moved: the study, its models and its weights are found in the new place alone."""

import json
from types import SimpleNamespace

import pytest

from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.errors import DataError
from wsol_pipeline.storage import Store
from wsol_pipeline.study import execute as executing
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.plan import make_plan
from wsol_pipeline.study.tuner import trial_folder
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.loop import train
from wsol_pipeline.training.model import BACKBONE, load_model
from wsol_pipeline.training.run import open_data, reportable
from wsol_pipeline.verdict.judge import judge
from wsol_pipeline.verdict.options import EvaluateOptions


def run_trials_here(searcher, trainable, concurrent, resources, folder):
    """Ray's part of the conversation, one trial after the other in this process."""
    for number in range(99):
        if (suggested := searcher.suggest(str(number))) == searcher.FINISHED:
            return
        job = from_dict(Job, suggested)
        searcher.on_trial_start(str(number))
        checkpoints = CheckpointStore(Store.at(job.trial), job.attempt)
        for record in train(job.train, open_data(job), checkpoints, reading=job.reading, study=job.study):
            searcher.record(str(number), reportable(record))
        searcher.on_trial_complete(str(number))


@pytest.fixture
def run(monkeypatch, reading):
    """`run(storage, trials, data, weights, **options)`: the study, continued; its outcome."""
    here = SimpleNamespace(
        connect=lambda **_: None, check_storage_reaches_all=lambda *_: None, pick_device=lambda *_: "cpu",
        check_placement=lambda *_: 1,
    )  # fmt: skip
    monkeypatch.setattr(executing, "cluster", here)
    monkeypatch.setattr(executing, "run_trials", run_trials_here)

    def go(storage, trials, data, weights, **given):
        options = StudyOptions(
            name="s", data=str(data), storage=str(storage), backbone="tiny", weights=str(weights), trials=trials,
            epochs=2, batch_size=14, image_size=32, resize_size=36, cache_dir=reading.cache_dir, published=1, **given,
        )  # fmt: skip
        plan = make_plan(
            options, "cam", lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 0.001, 0.1)}
        )
        return executing.execute(plan)

    return go


def test_a_study_whose_storage_was_moved_is_judged_and_goes_on(run, dataset, fit, make_config, tmp_path, caplog):
    start = fit(make_config("cam", epochs=1), "start").final
    old, new, weights = tmp_path / "old", tmp_path / "new", tmp_path / "old" / "start.safetensors"
    Store.at(old).write(weights.name, start.read(BACKBONE))
    run(old, 1, dataset.uri, weights, cache_budget_gb=150_000 / 2**30)  # bytes: its pixels are 248,832
    record = json.loads((old / "s/winner.json").read_text())
    assert record["model"].startswith("s/trials/0000/")
    assert not [name for name in Store.at(old / "s").list("trials") if name.endswith("state.pt")]
    old.rename(new)
    evaluated = EvaluateOptions(study=("s",), storage=str(new), cache_dir=str(tmp_path / "pixels"))
    assert judge(evaluated).rows[-1].label == "s: winner"
    outcome = run(new, 2, dataset.uri, new / weights.name)
    assert (outcome.balance["complete"], outcome.best.uri.startswith(str(new))) == (2, True)
    assert [line for line in caplog.messages if "moved" in line] == [
        f"study 's' was moved from {old}/s to {new}/s, where it goes on"
    ]
    finals = [CheckpointStore(trial_folder(Store.at(new / "s"), number), 0).final() for number in range(2)]
    described = [load_model(final).description for final in finals]
    assert all(one["train"]["weights"].startswith("sha256:") for one in described)
    # chosen by the budget that it was begun with, and kept
    assert [one["train"]["shrunk_jpegs"] for one in described] == [90, 90]
    assert all(one["training_images"].startswith("JPEGs of 36x36, quality 90, about ") for one in described)
    assert not old.exists()
    with pytest.raises(DataError, match="is not the data that s was tuned on"):
        judge(EvaluateOptions(study=("s",), storage=str(new), data=str(other_data(tmp_path))))


def other_data(tmp_path):
    options = synthetic.Options(train=8, val=6, test=6, classes=2, size=40)
    import_dataset(synthetic.read(tmp_path, options), Store.at(tmp_path / "other"), name="other", origin={})
    return tmp_path / "other"
