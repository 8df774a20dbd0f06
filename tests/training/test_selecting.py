"""Runs that are chosen without true boxes: on labels alone, whatever chooses; and no way from there to the boxes."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wsol_pipeline.data import schema
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.reader import LabelledBatch, LabelledRows, ReadConfig, labelled_rows
from wsol_pipeline.data.targets import Targets
from wsol_pipeline.evaluation import labelfree
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore, seal_of
from wsol_pipeline.training.loop import train
from wsol_pipeline.training.model import load_model
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import Contender
from wsol_pipeline.verdict.score import score


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A dataset of labels alone, whose shards of val and test have lost the columns of boxes and masks."""
    where = tmp_path_factory.mktemp("bare")
    source = synthetic.read(Path(), synthetic.Options(train=42, val=12, test=6, classes=3, size=40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_LOCATED", [])
        import_dataset(replace(source, located=()), Store.at(where), name="bare", origin={"importer": "x"})
    columns = pq.read_schema(where / "val/00000.parquet").names
    assert not {"boxes", "box_labels", "mask", "ignore"} & set(columns)
    return open_dataset(str(where))


@pytest.fixture
def chosen(bare, reading, make_config, tmp_path):
    """`chosen(by, **config)`: the last record of a run on labels alone, and its finished model's folder."""

    def run(by, method="cam", sources=None, data=bare, **changes):
        config = make_config(method, epochs=1, select_by=by, **changes)
        checkpoints = CheckpointStore(Store.at(tmp_path / f"{by}-{method}".replace(":", "-")), 1)
        *_, record = train(config, data, checkpoints, reading=reading, sources=sources)
        return record, checkpoints.final()

    return run


def test_rows_that_selectors_see_have_no_field_for_a_box(bare, reading):
    rows = labelled_rows(bare.val_labels, ReadConfig(36, 32, cache_dir=reading.cache_dir), "resize", 5)
    batches = list(rows.batches())
    assert [len(batch.ids) for batch in batches] == [5, 5, 2]
    assert not {"boxes", "box_labels", "masks"} & set(LabelledBatch.__dataclass_fields__)
    assert not hasattr(batches[0], "boxes")
    assert not hasattr(LabelledRows, "box_convention")
    source = inspect.getsource(labelfree)
    assert ".boxes" not in source  # nothing in it asks a batch for them
    assert "ValSplit" not in source


@pytest.mark.parametrize(
    ("by", "objective", "method"),
    [("evidence", "evidence_gain", "cam"), ("otsu", "separability", "bas"), ("area:0.3", "area_agreement", "cam")],
)
def test_labels_alone_are_enough_to_train_and_choose(chosen, by, objective, method):
    record, final = chosen(by, method, objective=objective)
    choice = Choice.from_dict(record["choice"])
    assert (choice.metric, choice.selector) == (objective, by)
    assert record["val"][objective] == choice.value
    assert "cls_top1" in record["val"]
    assert "max_box_acc_v2" not in record["val"]  # there was nothing to measure it by
    assert load_model(final).threshold == ("otsu" if by == "otsu" else choice.thresholds["gt_known_loc"][0])


def test_thresholds_may_be_anothers(chosen, bare):
    record, _ = chosen("evidence", objective="evidence_gain", threshold_by="vote:otsu,area:0.3")
    choice = Choice.from_dict(record["choice"])
    assert (choice.metric, choice.selector) == ("evidence_gain", "evidence+vote:otsu,area:0.3")
    assert len(set(choice.thresholds["max_box_acc_v2"])) == 1


def test_test_without_boxes_is_judged_by_classes_alone(chosen, reading, tmp_path):
    source = synthetic.read(Path(), synthetic.Options(train=42, val=12, test=6, classes=3, size=40))
    where = Store.at(tmp_path / "alone")
    import_dataset(replace(source, located=()), where, name="alone", origin={"importer": "x"})
    dataset = open_dataset(where.uri)
    _, final = chosen("evidence", objective="evidence_gain", data=dataset)
    options = EvaluateOptions(cache_dir=reading.cache_dir, batch_size=6)
    result, files = score(Contender("x", "x", final), dataset, options, "cpu")
    (row,) = result["rows"]
    assert set(row["transferred"]) == {"cls_top1", "cls_top5"}
    assert row["val"]["evidence_gain"] > -100
    assert files["pictures.json"] == b"[]"


def test_test_with_boxes_is_judged_where_validation_has_none(chosen, reading, tmp_path):
    source = synthetic.read(Path(), synthetic.Options(train=42, val=12, test=6, classes=3, size=40))
    where = Store.at(tmp_path / "test")
    import_dataset(replace(source, located=(Role.TEST,)), where, name="test", origin={"importer": "x"})
    dataset = open_dataset(where.uri)
    assert (dataset.is_located, dataset.val.info.boxes, dataset.test().info.boxes) == (False, 0, 6)
    _, final = chosen("evidence", objective="evidence_gain", data=dataset)
    options = EvaluateOptions(cache_dir=reading.cache_dir, batch_size=6)
    (row,) = score(Contender("x", "x", final), dataset, options, "cpu")[0]["rows"]
    assert {"max_box_acc_v2", "gt_known_loc", "top1_loc"} <= set(row["transferred"])
    assert row["oracle"]["max_box_acc_v2"] >= row["transferred"]["max_box_acc_v2"]


def some_boxes(bare, count):
    ids = bare.val_labels.ids[:count]
    return {id: [(5.0, 5.0, 30.0, 30.0)] for id in ids}


def test_boxes_of_a_file_are_counted_in_the_place_of_true_ones(chosen, bare):
    boxes = some_boxes(bare, 7)
    targets = Targets("annotated", "exclusive0", boxes, {id: [0] for id in boxes}, "f" * 64)
    record, final = chosen("annotated", objective="mean_iou", sources={"annotated": targets.to_dict()})
    counts = load_counts(final)
    assert (counts.truth, counts.images.tolist()) == ("annotated:" + "f" * 16, [7])
    curve = counts.scores[0] * 2.0**-44 / 7
    assert record["value"] == pytest.approx(100 * curve.max())
    choice = Choice.from_dict(record["choice"])
    assert choice.threshold == counts.thresholds[int(np.argmax(curve))]


def load_counts(final):
    return Counts.from_dict(json.loads(final.read("val_counts.json")))


def test_a_consensus_is_with_another_methods_model(chosen):
    _, other = chosen("evidence", "cam", objective="evidence_gain")
    source = {"consensus:cam": {"model": other.uri, "seal": seal_of(other)}}
    record, _ = chosen("consensus:cam", "bas", source, objective="consensus_kappa")
    choice = Choice.from_dict(record["choice"])
    assert -100 <= choice.value <= 100
    assert bool(choice.reason) == (choice.value <= 0)
