"""Images of several classes through the real loop, the final evaluation and a served model."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import wsol_models
from rayjobs import evaluate as evaluate_job
from rayjobs import report as report_job
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.baseline import count_centred
from wsol_pipeline.evaluation.detection import mean_average_precision
from wsol_pipeline.evaluation.evaluate import detect
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import choose, transferred
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.study.plan import check_buildable
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.localization import Wanted
from wsol_pipeline.training.loop import train
from wsol_pipeline.training.model import chosen_classes, load_model

READOUTS = {"bas": "topk", "mldfr": "topk", "acol": "own"}  # else: cam


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """36 training, 12 validation, 12 test images of 40 px, of one to three classes of three each."""
    where = tmp_path_factory.mktemp("several")
    options = synthetic.Options(train=36, val=12, test=12, classes=3, objects=3, size=40)
    import_dataset(synthetic.read(Path(), options), Store.at(where), name="several", origin={"importer": "synthetic"})
    return open_dataset(str(where))


@pytest.fixture
def fit(several, reading, make_config, tmp_path):
    """`fit(method, **changes)`: train on images of several classes; records and the loaded model."""

    def run(method, **changes):
        config = make_config(method, **{"batch_size": 12, "readout": READOUTS.get(method, "cam"), **changes})
        check_buildable(config, several)
        checkpoints = CheckpointStore(Store.at(tmp_path / method / "trials/0000"), 1)
        records = list(train(config, several, checkpoints, reading=reading))
        return SimpleNamespace(records=records, model=load_model(checkpoints.final()), final=checkpoints.final())

    return run


@pytest.mark.parametrize("method", wsol_models.methods())
def test_every_method_trains_on_several_classes(fit, method):
    run = fit(method)
    assert all(math.isfinite(value) for record in run.records for value in record["train"].values())
    assert run.model.multilabel
    assert 0 <= run.records[-1]["val"]["cls_top1"] <= 100


@pytest.fixture
def judge(several, reading, tmp_path, monkeypatch, capsys):
    """`judge(run, method)`: the rows of the final evaluation and what it printed."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(trained, method):
        record = {"method": method, "trial": 0, "trials": 1, "published": None, "study": ""}
        record |= {"schema": SCHEMA, **model_named(trained.final, Store.at(tmp_path))}
        Store.at(tmp_path / method).write(WINNER, json.dumps({**record, "data": several.uri}).encode())
        arguments = ["--study", method, "--storage", str(tmp_path)]
        report_job.main(arguments)
        assert "test was not opened yet" in (tmp_path / method / "report.html").read_text()
        unregistered = ["--no-champion", "--device", "cpu", "--cache-dir", reading.cache_dir]
        assert evaluate_job.main([*arguments, *unregistered]) == 0
        report_job.main(arguments)
        assert "on 12 test images" in (tmp_path / method / "report.html").read_text()
        assert (tmp_path / method / "gallery.png").stat().st_size > 1000
        (kept,) = (tmp_path / method / "evaluations").glob("*.json")
        return json.loads(kept.read_text())["rows"][0], capsys.readouterr().out

    return run


OVER_TOPK = {"scales": [0.5, 1], "over": "topk", "options": {"ks": [1]}}
PYRAMID = {"readout": "pyramid", "readout_options": OVER_TOPK}
SEEDS = {"readout": "pyramid", "readout_options": {**OVER_TOPK, "base": "stored", "mirror": True, "canvas": 16}}


@pytest.mark.parametrize("reader", [{}, PYRAMID], ids=["topk", "pyramid"])
def test_boxes_of_each_class_are_judged_and_detections_too(fit, judge, several, reading, reader):
    run = fit("mldfr", protocol="mldfr-multi", objective="gt_known_loc", **reader)
    row, printed = judge(run, "mldfr")
    assert "gt_known_loc (%), protocol mldfr-multi, 12 test images" in printed
    assert "map_50 (%)" in printed
    assert 0 <= row["transferred"]["corloc"] <= 100
    rows = eval_rows(several.test(), ReadConfig(36, 32, cache_dir=reading.cache_dir), "short_side", 12)
    found, truth = detect(run.model.method, run.model.readout, rows, run.model.protocol, run.model.choice)
    assert len(truth) == int(several.test().labels.sum())
    expected = {f"map_{iou}": mean_average_precision(found, truth, iou / 100) for iou in (10, 30, 50)}
    assert {name: row["transferred"][name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("reader", [{}, SEEDS], ids=["topk", "seeds"])
def test_class_masks_are_judged_together(fit, judge, reader):
    run = fit("bas", protocol="voc-miou", objective="miou", options={"segmentation": True}, **reader)
    assert run.records[-1]["value"] == run.records[-1]["val"]["miou"]
    row, printed = judge(run, "bas")
    assert "miou (%), protocol voc-miou, 12 test images" in printed
    assert "centred box" in printed
    assert 0 < row["transferred"]["miou"] <= row["oracle"]["miou"] <= 100
    assert "map_50" not in row["transferred"]


def test_the_centred_box_is_the_map_of_every_class(several, reading):
    """Only the first class of an image is seen then, and in the whole image at threshold 0."""
    rules = protocol("voc-miou", 32, 36)
    rows = eval_rows(several.val, ReadConfig(36, 32, cache_dir=reading.cache_dir), rules.geometry, 12)
    counts = count_centred(rows, rules)
    first = several.val.labels.argmax(1)
    claimed = np.bincount(first, minlength=3) * 40 * 40
    assert counts.class_pixels[0, 1].sum(-1).tolist() == [0, *claimed.tolist()]
    assert 0 < transferred(counts, choose(counts, "miou"))["miou"] < 60


def test_every_class_over_a_half_is_seen_or_the_most_probable():
    scores = torch.tensor([[0.6, 0.2, 0.9], [0.1, 0.4, 0.3]])

    def seen(multilabel, given=(None, None), **wanted):
        return chosen_classes(scores, ("a", "b", "c"), multilabel, Wanted(**wanted), given).int().tolist()

    assert seen(True) == [[1, 0, 1], [0, 1, 0]]
    assert seen(False) == [[0, 0, 1], [0, 1, 0]]
    assert seen(False, top=2) == [[1, 0, 1], [0, 1, 1]]
    assert seen(True, conf=0.3) == [[1, 0, 1], [0, 1, 1]]
    assert seen(False, classes=("a", "b")) == [[1, 0, 0], [0, 1, 0]]
    assert seen(False, given=((1,), None)) == [[0, 1, 0], [0, 1, 0]]


def test_a_model_localizes_every_class_it_sees(fit):
    model = fit("cam").model
    with torch.no_grad():
        model.method.fc.weight.zero_()
        model.method.fc.bias.copy_(torch.tensor([2.0, -2.0, 0.5]))
    images_BHW3 = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
    found = model.predict(images_BHW3)
    assert [(one.image, one.label) for one in found] == [(0, "cross"), (0, "triangle"), (1, "cross"), (1, "triangle")]
    assert [one.score for one in found[:2]] == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))])


def test_class_masks_of_one_class_per_image_are_refused_in_the_plan(make_config, dataset):
    with pytest.raises(UsageError, match="voc-miou scores class masks, which only multi-label data has"):
        check_buildable(make_config("bas", protocol="voc-miou", objective="miou"), dataset)
