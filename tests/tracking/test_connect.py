"""Which MLflow a study writes to."""

import os

import mlflow
import pytest

from wsol_pipeline.storage import Store
from wsol_pipeline.tracking.connect import connect_mlflow


@pytest.fixture
def nobody_said(monkeypatch):
    """No address is given, and MLflow has its own again afterwards."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that what a test leaves there is undone
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("nobody_said")
def test_two_storages_of_one_process_have_a_database_each(tmp_path):
    """MLflow puts the first one's into the environment, where the second would find it."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        client, experiment = connect_mlflow(Store.at(tmp_path / name), "wsol")()
        client.create_run(experiment, run_name=name)
        assert "MLFLOW_TRACKING_URI" not in os.environ
    for name in ("one", "other"):
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/{name}/mlflow.db")
        assert [run.info.run_name for run in client.search_runs(["1"])] == [name]


def test_an_address_that_is_given_stays(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/team.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    connect_mlflow(Store.at(tmp_path / "runs"), "wsol")
    assert os.environ["MLFLOW_TRACKING_URI"] == uri
    assert not (tmp_path / "runs/mlflow.db").exists()
