"""CorLoc: a study's winner on the images that trained it, by boxes that nothing else has seen."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rayjobs import evaluate
from wsol_pipeline.data.audit import MANIFEST, write_audit
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.reader import Batch, eval_rows
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.evaluate import count
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import transferred
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.loop import train
from wsol_pipeline.training.model import load_model
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import finished_study, paper_figures
from wsol_pipeline.verdict.score import read_config
from wsol_pipeline.verdict.training_images import BoxedRows, judge_training_images

IMAGES = synthetic.Options(train=24, val=12, test=12, classes=3, size=40)


def imported(where: Path, options: synthetic.Options, roles: dict[Role, Role] | None = None):
    """Generated images as a dataset, those of some roles as those of another."""
    source = synthetic.read(Path(), options)
    roles = roles or {}
    rows = [replace(row, role=roles.get(row.role, row.role)) for row in source.rows]
    import_dataset(replace(source, rows=rows), Store.at(where), name="x", origin={"roles": str(roles)})
    return open_dataset(str(where))


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    where = tmp_path_factory.mktemp("audited")
    dataset, source = imported(where, IMAGES), synthetic.read(Path(), IMAGES)
    assert write_audit(source.rows, source.rules, Store.at(where), dataset.fingerprint) == (24, 0)
    return dataset


@pytest.fixture(scope="module")
def storage(audited, reading, make_config, tmp_path_factory):
    """A storage with the finished study `cam`."""
    store = Store.at(tmp_path_factory.mktemp("storage"))
    checkpoints = CheckpointStore(store / "cam" / "trials/0000", 1)
    list(train(make_config("cam", batch_size=12, epochs=1), audited, checkpoints, reading=reading, study="id"))
    named = model_named(checkpoints.final(), store)
    winner = {"study": "id", "schema": SCHEMA, "data": audited.uri, "method": "cam", "published": None, **named}
    (store / "cam").write(WINNER, json.dumps(winner).encode())
    return store


def test_they_are_judged_as_held_out_images_with_these_boxes_would_be(audited, storage, tmp_path):
    """The oracle: a dataset whose validation split is these very images."""
    options = EvaluateOptions(("cam",), storage.uri, device="cpu")
    found = judge_training_images(options)
    assert (found.images, [row.label for row in found.rows]) == (24, ["centred box", "cam: winner"])
    turned = imported(tmp_path, IMAGES, {Role.TRAIN: Role.VAL, Role.VAL: Role.TRAIN})
    assert sorted(turned.val.ids) == sorted(audited.train.ids)
    model = load_model(Store(finished_study(storage, "cam")["model"]))
    rows = eval_rows(turned.val, read_config(options, model.protocol), model.protocol.geometry, 7)
    counts = count(model.method, model.readout, rows, model.protocol, settings=[model.choice.readout], keep_images=True)
    assert found.rows[1].transferred == transferred(counts, model.choice)
    assert judge_training_images(options).rows[1].transferred == found.rows[1].transferred  # kept


def test_the_job_shows_a_table_of_training_images_and_the_test_split_stays_shut(storage, audited, capsys, monkeypatch):
    monkeypatch.setattr(type(audited), "test", lambda self: pytest.fail("the test split was opened"))
    assert evaluate.main(["--study", "cam", "--storage", storage.uri, "--training-images"]) == 0
    told = capsys.readouterr().out
    assert "24 training images" in told
    assert "It is no test" in told


def test_without_boxes_of_training_images_it_is_said(storage, audited):
    place, kept = Store(audited.uri), Store(audited.uri).read(MANIFEST)
    options = EvaluateOptions(("cam",), storage.uri, device="cpu")
    try:
        place.write(MANIFEST, json.dumps(json.loads(kept) | {"format": 1}).encode())
        with pytest.raises(DataError, match="in an older form, without boxes: import it again with --audit"):
            judge_training_images(options)
        place.remove(MANIFEST)
        with pytest.raises(DataError, match="has no masks or boxes of training images: import it with --audit"):
            judge_training_images(options)
    finally:
        place.write(MANIFEST, kept)
    with pytest.raises(UsageError, match="--training-images is of studies"):
        EvaluateOptions(segmentation=("x",), training_images=True)


def test_of_several_classes_those_count_that_have_a_box():
    labels_BK = torch.tensor([[1.0, 1, 0], [0, 1, 1]])
    box = np.array([[0, 0, 4, 4]], np.float32)
    truth = {"a": (box, np.array([1])), "b": (np.repeat(box, 2, 0), np.array([1, 2]))}

    class Rows:
        def batches(self):
            yield Batch(["a", "b"], torch.zeros(2, 3, 8, 8), labels_BK, None, np.full((2, 2), 8), 2)

    (found,) = BoxedRows(Rows(), truth).batches()
    assert found.labels_B.tolist() == [[0, 1, 0], [0, 1, 1]]
    assert [of.tolist() for of in found.box_labels] == [[1], [1, 2]]


def test_a_papers_figures_of_the_training_images_stand_here_alone():
    rules = protocol("mldfr-multi")
    assert paper_figures("mldfr/table14/voc07/vgg16_bn", rules) == {}
    assert paper_figures("mldfr/table14/voc07/vgg16_bn", rules, "train") == {"corloc": 47.91}
    assert paper_figures("mldfr/text/voc07/vgg16_bn", rules, "train") == {}
