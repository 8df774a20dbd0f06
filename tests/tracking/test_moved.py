"""MLflow's file in a storage that was moved: what it names lies beside it again, and nothing else is touched."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.tracking._tracking_service import utils

from wsol_pipeline.errors import UsageError
from wsol_pipeline.tracking import moved
from wsol_pipeline.tracking.connect import connect
from wsol_pipeline.tracking.runs import PARENT, STORAGE_TAG, STUDY_TAG, TRIAL_TAG, StudyRuns


def test_make_serves_a_storage_with_a_blank_in_its_name():
    makefile = Path(moved.__file__).parents[2]
    asked = ["make", "--dry-run", "--no-print-directory", "-C", str(makefile), "mlflow", "RUNS=my runs", "READY="]
    told = shlex.split(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert "my runs/mlflow.db" in told
    assert told[told.index("cd") + 1] == "my runs"
    assert "sqlite:///$PWD/mlflow.db" in told


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A storage with a run and its file, and a registered model."""
    place = tmp_path_factory.mktemp("made") / "runs"
    place.mkdir()
    client, experiment = connect(f"sqlite:///{place}/mlflow.db", "wsol", str(place / "mlflow-artifacts"))
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "hello", "note.txt")
    model = client.create_logged_model(experiment, "model").model_id
    client.create_registered_model("m")
    client.create_model_version("m", f"models:/{model}", run, model_id=model)
    return place, run, model


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_files_are_found_where_the_database_is_today(made, tmp_path, caplog, how):
    place, run, model = made
    here = tmp_path / "new place"
    shutil.copytree(place, here)
    utils._artifact_repos_cache.clear()  # as in the process of another job
    if how == "moved":
        place.rename(place.with_name("gone"))
    try:
        client, _ = connect(f"sqlite:///{here}/mlflow.db", "wsol", str(here / "mlflow-artifacts"))
        artifacts = here / "mlflow-artifacts"
        assert client.get_experiment_by_name("wsol").artifact_location == str(artifacts)
        assert client.get_run(run).info.artifact_uri == f"{artifacts}/{run}/artifacts"
        assert client.get_logged_model(model).artifact_location.startswith(f"{artifacts}/models/")
        assert client.get_model_version_download_uri("m", "1").startswith(f"{artifacts}/models/")
        assert mlflow.artifacts.load_text(f"{client.get_run(run).info.artifact_uri}/note.txt") == "hello"
        client.log_text(run, "more", "more.txt")
        assert (artifacts / run / "artifacts/more.txt").read_text() == "more"
        assert not list(place.rglob("more.txt"))
        told = f"MLflow's files were moved: {place}/mlflow-artifacts is {artifacts} now"
        assert caplog.messages.count(told) == 1
        moved.follow(here / "mlflow.db")
        assert caplog.messages.count(told) == 1  # a second time there is nothing to do
    finally:
        if how == "moved":
            place.with_name("gone").rename(place)


def test_files_that_are_kept_elsewhere_on_purpose_stay_there(tmp_path):
    """An experiment that somebody made, and a database that is not the storage's."""
    storage = tmp_path / "runs"
    client, _ = connect(f"sqlite:///{tmp_path}/team.db", "wsol", str(storage / "mlflow-artifacts"))
    moved.follow(tmp_path / "team.db")
    assert client.get_experiment_by_name("wsol").artifact_location == str(storage / "mlflow-artifacts")


@pytest.fixture
def team(tmp_path):
    """A database that is no storage's own, whose files lie in the storage `old`."""
    old, new, database = (
        str(tmp_path / "old/mlflow-artifacts"),
        str(tmp_path / "new/mlflow-artifacts"),
        tmp_path / "team.db",
    )
    client, experiment = connect(f"sqlite:///{database}", "wsol", old)
    run = client.create_run(experiment, tags={STUDY_TAG: "s", TRIAL_TAG: PARENT, STORAGE_TAG: f"{tmp_path}/old/s"})
    client.log_text(run.info.run_id, "hello", "note.txt")
    return SimpleNamespace(
        database=database, old=old, new=new, run=run.info.run_id, client=client, experiment=experiment
    )


def test_who_goes_on_elsewhere_hears_what_to_tell_a_database_of_its_own(team, tmp_path, caplog):
    runs = StudyRuns(
        lambda: (team.client, team.experiment), "s", {STORAGE_TAG: f"{tmp_path}/new/s"}, "", (f"{tmp_path}/old/s",)
    )
    assert runs.parent() == team.run
    command = f"python -m wsol_pipeline.tracking.moved DATABASE {team.old} {team.new}"
    assert [line for line in caplog.messages if line.endswith(command)]


def test_the_command_lets_a_database_look_elsewhere(team, monkeypatch, caplog):
    Path(team.old).rename(Path(team.new).parent.mkdir() or team.new)
    monkeypatch.setattr(sys, "argv", ["moved", f"sqlite:///{team.database}", team.old, f"{team.new}/"])
    moved.main()
    assert caplog.messages[-1].startswith("2 places below")
    utils._artifact_repos_cache.clear()
    assert team.client.get_experiment(team.experiment).artifact_location == team.new
    assert mlflow.artifacts.load_text(f"{team.client.get_run(team.run).info.artifact_uri}/note.txt") == "hello"


def test_the_command_makes_no_database(tmp_path):
    with pytest.raises(UsageError, match="no SQLite file"):
        moved.rename(tmp_path / "other.db", "a", "b")
    assert not list(tmp_path.iterdir())


def test_what_is_no_database_of_mlflow_s_is_left_alone(tmp_path):
    moved.follow(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "empty.db").touch()
    moved.follow(tmp_path / "empty.db")
    assert (tmp_path / "empty.db").read_bytes() == b""
