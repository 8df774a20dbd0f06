"""A finished model by whatever names it, and how its use is told."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking._tracking_service import utils
from PIL import Image

import wsol
from rayjobs import demo, localize
from wsol_pipeline.console.using import pace, pace_line
from wsol_pipeline.errors import DataError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.tracking import moved, registry
from wsol_pipeline.tracking.connect import connect
from wsol_pipeline.tracking.runs import StudyRuns

ROOT = Path(__file__).parents[2]


def label_of(model):
    return model.predict(Image.new("RGB", (50, 40), "navy"))[0].label


def test_a_model_of_the_registry_is_loaded_by_its_uri_where_the_storage_is_today(final, tmp_path, monkeypatch):
    made, here = tmp_path / "made", tmp_path / "moved"
    made.mkdir()
    connection = connect(f"sqlite:///{made}/mlflow.db", "tests", str(made / moved.ARTIFACTS))
    registry.register(StudyRuns(lambda: connection, "bas-tiny", {}), "bas-tiny", 0, final)
    connection[0].set_registered_model_alias("bas-tiny", registry.CHAMPION, "1")
    expected = label_of(wsol.load_model(final.uri))
    made.rename(here)
    utils._artifact_repos_cache.clear()  # as in the process of another job
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/mlflow.db")
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    assert label_of(wsol.load_model("models:/bas-tiny@champion")) == expected
    assert label_of(wsol.load_model("models:/bas-tiny/1")) == expected
    with pytest.raises(DataError, match="has no models:/other@champion"):
        wsol.load_model("models:/other@champion")


def test_a_studys_winner_is_a_model(final, photographs, tmp_path):
    storage = Store.at(tmp_path / "runs")
    record = {"schema": SCHEMA, "study": "x", **model_named(final, storage)}
    storage.write("bas/winner.json", json.dumps(record).encode())
    assert label_of(wsol.load_model(tmp_path / "runs/bas")) == label_of(wsol.load_model(final.uri))
    where = ["--storage", str(tmp_path / "runs"), "--source", str(photographs), "--out", str(tmp_path / "out")]
    assert localize.main(["--study", "bas", *where]) == 0
    with pytest.raises(DataError, match="no finished study 'bsa'; finished ones: bas"):
        localize.main(["--study", "bsa", *where])


def test_the_demonstrations_images_are_new_and_bare(tmp_path):
    folder = demo.unlabelled(tmp_path / "images", 3)
    assert [path.name for path in sorted(folder.iterdir())] == ["000.jpg", "001.jpg", "002.jpg"]
    with Image.open(io.BytesIO((folder / "000.jpg").read_bytes())) as image:
        assert image.size == (80, 80)


def test_importing_the_package_loads_nothing_heavy():
    told = "import sys, wsol; print(*sorted({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_pace_says_images_a_second_and_the_time_left(capsys, monkeypatch):
    assert pace_line("localized", 320, 2000, 20) == "localized: 320/2000 images, 16.0/s, 1.8 min left"
    monkeypatch.setattr("wsol_pipeline.console.using.EVERY_SECONDS", -1)
    with pace("localized", 10) as add:
        add(4)
    assert "localized: 4/10 images, " in capsys.readouterr().out
