"""A row as a study of its own setting, what is done otherwise than its paper, and two seeds judged on test."""

import json
from dataclasses import replace
from types import SimpleNamespace

import mlflow
import pytest

from rayjobs import report as report_job
from rayjobs import reproduce as reproduce_job
from search_spaces import ALIASES, preset, presets
from wsol_pipeline.data.published import Deviation
from wsol_pipeline.errors import UsageError
from wsol_pipeline.report.facts import gather
from wsol_pipeline.report.reproduction import compare, markdown
from wsol_pipeline.storage import Store
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.study.standings import Standing
from wsol_pipeline.training.config import TrainConfig
from wsol_pipeline.training.options import RunOptions
from wsol_pipeline.training.resolve import resolve
from wsol_pipeline.verdict.options import ReproduceOptions
from wsol_pipeline.verdict.reproduce import (
    deviations,
    find_row,
    find_rows,
    is_read_alike,
    judge_seeds,
    plan_row,
    study_name,
    with_ois,
)

BAS = "bas-ext/table1/cub/resnet50"
TINY = {"backbone": "tiny", "image_size": 32, "resize_size": 36, "epochs": 1, "batch_size": 16}


def config(row: str = BAS, **given) -> TrainConfig:
    return resolve(
        RunOptions(name="x", preset=row, **{"weights": "imagenet", "precision": "float32", **given}), preset(row).method
    )


def test_a_row_is_found_by_any_of_its_names():
    assert find_row(BAS).id == BAS
    assert find_row("bagcams/table4/cub/resnet50/has").id == "bagcams/table2/cub/resnet50/has"
    assert set(ALIASES.values()) <= presets().keys()
    assert not ALIASES.keys() & presets().keys()
    with pytest.raises(UsageError, match="Unknown row 'bas-ext/table1/cub/resnet'. The nearest: bas-ext/table1/cub/r"):
        find_row("bas-ext/table1/cub/resnet")


def test_rows_are_listed_by_parts_of_their_ids():
    assert list(find_rows(("table1/", "ilsvrc", "bas-ext"))) == [
        f"bas-ext/table1/ilsvrc/{backbone}" for backbone in ("inception_v3", "mobilenet_v1", "resnet50", "vgg16")
    ]
    assert len(find_rows(())) == len(presets())
    with pytest.raises(UsageError, match="No row's id holds 'cub' and 'nothing'"):
        find_rows(("cub", "nothing"))


def test_every_row_has_a_name_of_its_own():
    assert len({study_name(id) for id in presets()}) == len(presets())


def test_a_row_that_is_run_as_published_deviates_in_nothing_but_its_split():
    for id, row in presets().items():
        found = deviations(row, config(id))
        split = row.id.split("/")[2]
        elsewhere = {"openimages-val": "the val split", "voc12-train": "the train split"}.get(split)
        elsewhere = "the trainval split" if id.startswith("mldfr/table14/") else elsewhere
        assert found == ([Deviation("evaluated on", elsewhere, "the test split")] if elsewhere else []), id
        assert is_read_alike(row, config(id))


def test_what_is_given_beside_the_row_is_a_deviation():
    given = config(
        backbone="mobilenet_v2", weights="/x/m.pth", epochs=1, image_size=96, resize_size=112, precision="bfloat16",
        options={"alpha": "0.25"}, protocol="wsol-v1", freeze_batch_norm=True,
    )  # fmt: skip
    assert set(deviations(preset(BAS), given)) == {
        Deviation("backbone", "resnet50", "mobilenet_v2"),
        Deviation("weights", "ImageNet", "the file m.pth"),
        Deviation("epochs", "120", "1"),
        Deviation("image size", "224", "96"),
        Deviation("resize size", "256", "112"),
        Deviation("precision", "float32", "bfloat16"),
        Deviation("option alpha", "0.5", "0.25"),
        Deviation("protocol", "bas-ext", "wsol-v1"),
        Deviation("freeze batch norm", "false", "true"),
    }
    assert deviations(preset(BAS), config(weights=None)) == [Deviation("weights", "ImageNet", "none, from scratch")]
    assert deviations(preset(BAS), replace(config(), seed=7, objective="gt_known_loc", channels_last=True)) == []


def test_a_threshold_is_the_papers_only_on_maps_like_the_papers():
    assert is_read_alike(preset(BAS), config(image_size=96))
    assert not is_read_alike(preset(BAS), config(protocol="wsol-v1"))
    assert not is_read_alike(preset(BAS), config(readout="cam"))
    assert not is_read_alike(preset(BAS), config(readout_options={"ks": "[1]"}))


def test_the_best_threshold_of_each_image_has_the_names_of_rows():
    found = with_ois({"ois_iou30": 90.0, "ois_iou50": 60.0, "ois_iou70": 30.0})
    assert {name: found[f"ois_{name}"] for name in ("gt_known_loc", "max_box_acc_iou30", "max_box_acc_v2")} == {
        "gt_known_loc": 60.0, "max_box_acc_iou30": 90.0, "max_box_acc_v2": 60.0,
    }  # fmt: skip
    assert with_ois({"miou": 1.0}) == {"miou": 1.0}


@pytest.fixture
def plan(dataset, tmp_path):
    """`plan(row, **given)`: the study of a row, small, under `tmp_path`."""

    def make(row: str, **given):
        options = ReproduceOptions(row=row, data=dataset.uri, storage=str(tmp_path), **{**TINY, **given})
        return plan_row(options, preset(row))

    return make


def test_a_row_is_a_study_of_one_setting_and_its_confirmations(plan):
    three, one = plan(BAS).options, plan(BAS, seeds=1).options
    assert (three.name, three.preset, three.trials, three.pruner) == (study_name(BAS), BAS, 1, "none")
    assert (three.confirm, three.confirm_seeds, one.confirm) == (1, 2, 0)
    assert list(plan(BAS).published) == [BAS]
    assert plan(BAS).config.rungs == ()
    assert plan(BAS).config.fixed_setting == 200


@pytest.mark.parametrize(
    ("row", "given", "readings"),
    [
        (BAS, {"options": {"head_width": "8"}}, ["as published", "oracle", "transferred"]),
        (
            "bagcams/table2/ilsvrc/resnet50/cam+bagcams",
            {"readout_options": {"stages": '["block3"]'}, "options": {"large": "false"}},
            ["oracle", "transferred"],
        ),
        ("b-cam/table1/cub/resnet50/bcam-p", {"options": {"heads": "2"}}, ["as published", "oracle", "transferred"]),
    ],
)
def test_two_seeds_are_judged_once_each_and_stand_beside_the_row(
    row, given, readings, plan, fit, reading, tmp_path, monkeypatch
):
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    study = plan(row, cache_dir=reading.cache_dir, seeds=2, **given)
    finals = [fit(replace(study.config, seed=seed), f"{study.options.name}/trials/{seed:04d}").final for seed in (0, 1)]
    outcome = SimpleNamespace(ranking=[(Standing((0, 1), (1.0, 2.0)), row, {})], best=finals[0])
    found = judge_seeds(study, preset(row), outcome)
    assert [(run.seed, run.trial) for run in found.runs] == [(0, 0), (1, 1)]
    compared = compare(found)
    assert {tuple(one.readings) for one in compared} == {tuple(readings)}
    kept = sorted((tmp_path / study.options.name / "evaluations").glob("*.json"))
    assert len(kept) == 2
    figures = [json.loads(file.read_text())["rows"][-1]["transferred"]["gt_known_loc"] for file in kept]
    gt_known = next(one for one in compared if one.metric == "gt_known_loc")
    assert sorted(gt_known.readings["transferred"].values) == sorted(figures)
    assert not found.is_paper_data
    assert "| data | " in markdown(found, "python x")

    named = {"schema": SCHEMA, "study": "", **model_named(finals[0], Store.at(tmp_path))}
    winner = {**named, "trial": 0, "published": {**named, "preset": row}, "confirmed": {"trials": [0, 1]}}
    Store.at(tmp_path / study.options.name).write("winner.json", json.dumps(winner).encode())
    shown = gather(Store.at(tmp_path), (study.options.name,)).lines[-1].row
    assert (shown.seeds, shown.other_data) == (2, True)
    assert shown.label.endswith("2 seeds")
    assert shown.transferred["gt_known_loc"] == pytest.approx(sum(figures) / 2)
    assert shown.deviations["transferred"]["gt_known_loc"] == pytest.approx(abs(figures[0] - figures[1]) / 2**0.5)
    assert report_job.main(["--study", study.options.name, "--storage", str(tmp_path)]) == 0
    for suffix in ("html", "md", "tex"):
        told = (tmp_path / study.options.name / f"report.{suffix}").read_text().replace("&#39;", "'")
        assert ("NOT THE PAPER'S DATA" in told) == bool(shown.published)
        assert (" $\\pm$ " if suffix == "tex" else " ± ") in told
    kept[1].unlink()
    lines = gather(Store.at(tmp_path), (study.options.name,)).lines
    assert all(line.row.label.endswith(", one seed of 2") for line in lines)
    judge_seeds(study, preset(row), outcome)

    monkeypatch.setattr("wsol_pipeline.verdict.score.score", lambda *_: pytest.fail("test was opened again"))
    assert markdown(judge_seeds(study, preset(row), outcome), "python x") == markdown(found, "python x")


@pytest.mark.slow
def test_the_job_from_end_to_end(dataset, reading, tmp_path, monkeypatch, capsys):
    """On a local Ray: two seeds, then the same command, then a third seed."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    given = (f"--row {BAS} --name r --data {dataset.uri} --storage {tmp_path} --cache-dir {reading.cache_dir} "
             "--backbone tiny --image-size 32 --resize-size 36 --epochs 1 --batch-size 16").split()  # fmt: skip
    for seeds in ("2", "2", "3"):
        assert reproduce_job.main([*given, "--seeds", seeds]) == 0
        assert f"Run here: seed {', '.join('012'[: int(seeds)])}" in capsys.readouterr().out.replace("\n", " ")
        assert len(list((tmp_path / "r/evaluations").glob("*.json"))) == int(seeds)
    assert len(list((tmp_path / "r/trials").iterdir())) == 3
    assert "NOT THE PAPER'S DATA" in (tmp_path / "r/reproduction.html").read_text().replace("&#39;", "'")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("wsol").experiment_id], "tags.`wsol.trial` = 'study'")
    assert run.data.tags["wsol.reproduces"] == BAS
    assert {"test/as published/gt_known_loc", "test/transferred/top1_loc"} <= run.data.metrics.keys()
