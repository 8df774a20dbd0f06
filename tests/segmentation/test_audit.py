"""Masks of training images: apart from the dataset, opened for sealed stations alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from wsol_pipeline.data.audit import AUDIT, open_audit, write_audit
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.errors import DataError, ProtocolError
from wsol_pipeline.protocol import Role, require_searchable
from wsol_pipeline.segmentation import audit, make_seeds, masks, refine, scores
from wsol_pipeline.segmentation.options import RefineOptions, SeedOptions
from wsol_pipeline.storage import Store

OPTIONS = synthetic.Options(train=36, val=12, test=12, classes=3, objects=3, size=40)


@pytest.fixture
def audited(several):
    """The dataset of the studies, with its audit for the length of a test."""
    source = synthetic.read(Path(), OPTIONS)
    store = Store.at(several.uri)
    assert write_audit(source.rows, source.rules, store, several.fingerprint) == (36, 0)
    yield several
    for name in store.list(AUDIT):
        store.remove(name)


def test_a_dataset_is_the_same_with_and_without(audited, tmp_path):
    import_dataset(synthetic.read(Path(), OPTIONS), Store.at(tmp_path), name="several", origin={})
    assert open_dataset(str(tmp_path)).fingerprint == audited.fingerprint
    assert open_dataset(audited.uri).fingerprint == audited.fingerprint
    assert "mask" not in audited.train.shard_set().read(np.arange(1), ["id", "image", "labels"]).schema.names


def test_masks_are_those_of_the_drawn_bodies(audited):
    rows = {row.id: row for row in synthetic.read(Path(), OPTIONS).rows if row.role is Role.TRAIN}
    found = {name: masks.decode(mask) for name, mask, _ in open_audit(audited).masks()}
    assert set(found) == set(rows) == set(audited.train.ids)
    assert all(set(np.unique(found[name])) <= {0, *(label + 1 for label in rows[name].labels)} for name in found)


def test_no_search_is_handed_them(audited):
    with pytest.raises(ProtocolError, match="needs the 'val' split but was handed 'audit'"):
        require_searchable(open_audit(audited), "A search")


def test_without_them_or_of_other_data_it_is_said(several, audited):
    told = json.loads(Store.at(several.uri).read("audit/manifest.json"))
    Store.at(several.uri).write("audit/manifest.json", json.dumps(told | {"dataset": "another"}).encode())
    with pytest.raises(DataError, match="are of other data: import them again"):
        open_audit(several)
    Store.at(several.uri).remove("audit/manifest.json")
    with pytest.raises(DataError, match="has no masks of training images: import it with --audit"):
        open_audit(several)


def test_seeds_and_masks_are_judged_once_they_are_sealed(audited, storage):
    with pytest.raises(ProtocolError, match="'bas-seeds' is not finished"):
        audit.judge_masks(storage.store, "bas-seeds")
    make_seeds.make_seeds(SeedOptions(storage=storage.uri, scales=(1.0,), threshold="0.3", field="none"), "cpu")
    refine.refine(RefineOptions(storage=storage.uri, seeds="bas-seeds", by=("pamr",)), "cpu")
    truths = {name: masks.decode(mask) for name, mask, _ in open_audit(audited).masks()}
    for name, column in (("bas-seeds", "seed"), ("bas-pamr", "pseudo_mask")):
        found = audit.judge(storage.store, name)
        assert (found.images, found.rows) == (36, "training images")
        assert found.figures["miou"] <= found.figures["oracle"] + 1e-9
        table = audit.station.finished(storage.store, name).read("train", np.arange(36), ["id", column]).to_pylist()
        matrix = sum(scores.confusion(truths[row["id"]], masks.decode(row[column]), 3) for row in table)
        assert found.figures["miou"] == pytest.approx(100 * scores.mean_iou(scores.class_iou(matrix)))
        assert audit.judge(storage.store, name) == found
