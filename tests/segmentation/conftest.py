"""A finished study of images of several classes, small enough to make seeds of in a second."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.loop import train


@pytest.fixture(scope="session")
def several(tmp_path_factory):
    """36 training, 12 validation, 12 test images of 40 px, of one to three classes of three each."""
    where = tmp_path_factory.mktemp("several")
    options = synthetic.Options(train=36, val=12, test=12, classes=3, objects=3, size=40)
    import_dataset(synthetic.read(Path(), options), Store.at(where), name="several", origin={"importer": "synthetic"})
    return open_dataset(str(where))


@pytest.fixture(scope="session")
def studies(several, reading, make_config, tmp_path_factory):
    """A storage with the finished studies `bas` (two epochs) and `cam`. Nobody changes its files."""
    store = Store.at(tmp_path_factory.mktemp("studies"))
    for name, own in (("bas", {"options": {"segmentation": True}}), ("cam", {})):
        config = make_config(name, batch_size=12, protocol="voc-miou", objective="miou", **own)
        checkpoints = CheckpointStore(store / name / "trials/0000", 1)
        list(train(config, several, checkpoints, reading=reading))
        named = model_named(checkpoints.final(), store)
        winner = {
            "study": f"id-{name}",
            "schema": SCHEMA,
            "data": several.uri,
            "method": name,
            "published": None,
            **named,
        }
        (store / name).write(WINNER, json.dumps(winner).encode())
    return store


@pytest.fixture
def storage(studies, tmp_path):
    """A storage of one's own, with the finished studies."""
    store = Store.at(tmp_path / "storage")
    shutil.copytree(studies.uri, store.uri)
    return SimpleNamespace(store=store, uri=store.uri)
