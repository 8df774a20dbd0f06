"""The dry run: what it measures, what it makes of that, and that it starts nothing."""

import dataclasses
from types import SimpleNamespace

import pytest

import wsol_models
from wsol_pipeline.console.screens import print_rehearsal
from wsol_pipeline.data.jpegs import Sample
from wsol_pipeline.storage import Store
from wsol_pipeline.study import rehearsal
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.plan import make_plan
from wsol_pipeline.study.rehearsal import Measured, bound, estimated, measure, rehearse
from wsol_pipeline.training import cluster
from wsol_pipeline.training.config import Job

MEASURED = Measured(
    train_seconds=0.5, decode_seconds=0.001, crop_seconds=0.0001, one_setting_seconds=0.25, search_seconds=1.25,
    settings=7, checkpoint_bytes=100, model_bytes=10, peak_gpu_bytes=0,
)  # fmt: skip


def test_a_few_batches_are_measured_and_nothing_is_kept(dataset, make_config, tmp_path):
    found = measure(Job(make_config(), dataset.uri, str(tmp_path / "trial"), attempt=0))
    assert min(found.train_seconds, found.decode_seconds, found.crop_seconds) > 0
    assert min(found.one_setting_seconds, found.search_seconds) > 0
    assert found.settings == 1
    parameters = sum(p.numel() for p in wsol_models.build("cam", backbone="tiny", num_classes=3).parameters())
    assert found.model_bytes >= 4 * parameters
    assert found.checkpoint_bytes == found.model_bytes + 4 * parameters  # a momentum for each
    assert not list(tmp_path.iterdir())


def test_more_rows_than_the_split_has_start_again(dataset):
    batch = rehearsal.first_rows(dataset.train, dataset.train.num_rows + 2, 32, None)
    assert batch.images_BCHW.shape == (66, 3, 32, 32)
    assert batch.ids[:2] == batch.ids[-2:]
    assert batch.labels_B[:2].tolist() == batch.labels_B[-2:].tolist()


def test_the_estimate_is_epochs_of_training_and_validation_and_a_search_at_each_rung(dataset):
    plan = SimpleNamespace(
        options=SimpleNamespace(trials=3, confirm=1, confirm_seeds=2, workers=2),
        config=SimpleNamespace(recipe=SimpleNamespace(epochs=4), rungs=(2,)),
        dataset=dataset,  # 64 training, 25 validation images
    )
    found = estimated(plan, MEASURED, concurrent=2)
    trial = (4 * (64 * 0.5 + 25 * 0.25) + 25 * 0.25 + 2 * 25 * 1.0) / 2
    assert found.trials == 5
    assert found.trial_seconds == pytest.approx(trial)
    assert found.device_hours == pytest.approx(5 * 2 * trial / 3600)
    assert found.wall_hours == pytest.approx(3 * trial / 3600)  # two at once: the fifth runs alone
    assert found.storage_bytes == 5 * (2 * 100 + 2 * 10)


@pytest.mark.parametrize(
    ("found", "reading", "told"),
    [
        ({}, "cached", "steps 64 s (2 images/s) of a trial, beside validation 41 s and input 0 s (10,000 images/s)"),
        (
            {"decode_seconds": 1.9999},
            "streamed",
            "input 128 s (1 images/s) of a trial, beside steps 64 s (2 images/s) and validation 41 s; "
            "a --cache-budget-gb of 0.5 would hold its pixels, of 0.1 small JPEGs",
        ),
        (
            {"decode_seconds": 1.0, "crop_seconds": 0.75},
            "shrunk",
            "input 160 s (1 images/s) of a trial, beside steps 64 s (2 images/s) and validation 41 s",
        ),
        (
            {"search_seconds": 3.25},
            "cached",
            "validation 91 s of a trial, beside steps 64 s (2 images/s) and input 0 s (10,000 images/s); "
            "more --cpus-per-worker score maps sooner, fewer --rungs search them less often",
        ),
    ],
)
def test_what_takes_longest_is_said_beside_the_rest(dataset, found, reading, told):
    """Four epochs of 64 images by two workers; input by two cores where it is streamed, small JPEGs decoded by two and
    cropped by one: 128 x (1.0 / 2 + 0.75) s. Of 25 validation images one setting takes (4 + 1) x 25 x 0.25 s, two
    searches 2 x 25 x 1 s more (or 3 s): 81.25 (or 181.25) s of two workers."""
    plan = SimpleNamespace(
        options=SimpleNamespace(workers=2),
        config=SimpleNamespace(recipe=SimpleNamespace(epochs=4), rungs=(2,), shrunk_jpegs=90 * (reading == "shrunk")),
        dataset=dataset,
        streamed=reading == "streamed",
        decoded_bytes=2**29,
        sample=Sample(256, 90, 128, 2**30 / 10 / 64 / 1.1, 2.0),
    )
    assert bound(plan, dataclasses.replace(MEASURED, **found), 1 if reading == "cached" else 2) == told


def test_decoding_of_small_jpegs_is_measured_where_they_are_read(dataset, make_config):
    assert rehearsal.shrunk_seconds(dataset.train, 4, make_config(shrunk_jpegs=90), None) > 0


def test_a_dry_run_says_what_the_study_would_take_and_starts_nothing(dataset, tmp_path, monkeypatch, capsys):
    for name in ("connect", "check_storage_reaches_all"):
        monkeypatch.setattr(cluster, name, lambda *args, **named: None)
    monkeypatch.setattr(cluster, "pick_device", lambda wanted, may_grow: "cpu")
    monkeypatch.setattr(cluster, "check_placement", lambda *args: 2)
    monkeypatch.setattr(rehearsal, "connect_mlflow", lambda *args: lambda: (SimpleNamespace(tracking_uri="here"), "1"))
    monkeypatch.setattr(rehearsal, "measure_there", lambda job: MEASURED)
    options = StudyOptions(name="s", data=dataset.uri, storage=str(tmp_path), trials=6, epochs=2, reading="shrunk")
    plan = make_plan(options, "cam", lambda trial: {})
    print_rehearsal(plan, rehearse(plan))
    said = capsys.readouterr().out
    for line in (
        "64 train, 25 val, 3 classes",
        "here: answers",
        "1 MiB of training images: cached on each node as JPEGs of 72x72, quality 90, about",
        "2 trials at once",
        "2.0 images/s a worker",
        "7 readout",
        "validation 69 s of a trial, beside steps 64 s (2 images/s) and input",  # 18.75 and two searches of 25 s
    ):
        assert line in " ".join(said.split())
    assert Store.at(tmp_path).list() == []
