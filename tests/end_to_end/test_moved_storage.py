"""A finished study's storage goes elsewhere: judged, shown, continued and loaded from the new place alone, on Ray."""

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.tracking._tracking_service import utils

import wsol
from rayjobs import evaluate, report, tune_cam
from wsol_pipeline.storage import Store
from wsol_pipeline.tracking import moved

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("s3_bucket", "local_ray"),
]  # in this order: workers inherit AWS_*
IMAGE = np.zeros((50, 40, 3), np.uint8)


@pytest.fixture
def new_process(monkeypatch):
    """`new_process(database)`: MLflow as in the process of another job, told of that SQLite file."""

    def begin(database: Path) -> None:
        utils._artifact_repos_cache.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")

    return begin


def tune(storage: str, data: str, trials: int) -> None:
    small = "--epochs 1 --batch-size 16 --image-size 32 --resize-size 36 --name s"
    assert tune_cam.main([*f"--trials {trials} {small}".split(), "--data", data, "--storage", storage]) == 0


def goes_on(storage: str, data: str, trials: int) -> None:
    """Everything that a finished study is good for, with its data given anew."""
    here = ["--study", "s", "--storage", storage]
    assert evaluate.main([*here, "--data", data]) == 0
    assert report.main(here) == 0
    for model in (f"{storage}/s", "models:/s@champion"):
        assert len(wsol.load_model(model).predict([IMAGE])) == 1
    tune(storage, data, trials)
    assert evaluate.main(here) == 0  # where the data is today is known since
    assert "box" in mlflow.pyfunc.load_model("models:/s@champion").predict(IMAGE[None])[0]


def test_a_folder_is_copied_and_then_moved(dataset, tmp_path, new_process):
    old, gone, copied, here = (tmp_path / name for name in ("old", "not there", "a copy", "a new place"))
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    new_process(old / moved.DATABASE)
    tune(str(old), str(data), 1)
    shutil.copytree(old, copied)
    old.rename(gone)
    data = data.rename(tmp_path / "data elsewhere")
    for place in (copied, here):
        new_process(place / moved.DATABASE)
        goes_on(str(place), str(data), 2)
        assert not old.exists()
        if place is copied:
            gone.rename(here)


def test_a_prefix_of_a_bucket_is_copied(dataset, s3_bucket, tmp_path, new_process, monkeypatch):
    """As `aws s3 sync OLD NEW` does it, and the old one is deleted; MLflow's SQLite file is no storage's own."""
    old, here, team = Store.at(f"{s3_bucket}/old"), Store.at(f"{s3_bucket}/new place"), tmp_path / "team.db"
    new_process(team)
    tune(old.uri, dataset, 1)
    for name in old.list():
        here.write(name, old.read(name))
    old.remove_all()
    moved.rename(team, old.path(moved.ARTIFACTS), here.path(moved.ARTIFACTS))
    new_process(team)
    goes_on(here.uri, dataset, 2)
    assert old.list() == []
