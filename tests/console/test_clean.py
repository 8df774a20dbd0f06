"""`wsol clean --delete`: what it asks, what goes, and that nothing goes of which the rest would stay unseen."""

import io

import mlflow
import optuna
import pytest
from mlflow.entities import ViewType

from rayjobs.clean import main
from wsol_pipeline.errors import UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.identity import Home, home
from wsol_pipeline.tracking.connect import connect
from wsol_pipeline.tracking.runs import ID_TAG, STORAGE_TAG, StudyRuns


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """Made once: MLflow's tables take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def store(tmp_path, database, monkeypatch) -> Store:
    """A study `s` of a trial, with a run of its own and one of the trial in an experiment of any name."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    store = Store.at(tmp_path / "runs")
    study = optuna.create_study(study_name="s", storage=open_storage(store / "s", None))
    study.ask()
    (store / "s").write("trials/0000/attempt-0001/e0001-s00000000/records.json", b"[]")
    runs(home(store / "s"), database).trial(0)
    return store


def runs(own: Home, database: str) -> StudyRuns:
    connected = connect(database, own.id, None)
    return StudyRuns(lambda: connected, "s", {STORAGE_TAG: own.storage}, own.id, own.before)


def active(id: str, database: str) -> int:
    """How many runs MLflow shows of a study."""
    client = mlflow.MlflowClient(database)
    every = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
    return len(client.search_runs(every, f"tags.`{ID_TAG}` = '{id}'"))


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clean(store, monkeypatch, capsys):
    """`clean(*arguments, says=None)`: what it prints when somebody at a terminal, or nobody, says so."""

    def make(*arguments: str, says: str | None = None) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO() if says is None else Terminal(f"{says}\n"))
        assert main(["--storage", store.uri, *arguments]) == 0
        return capsys.readouterr().out

    return make


WHOLE = "1 trials, 2 MLflow runs"


@pytest.mark.parametrize("says", ["n", "", "nes"])
def test_nothing_goes_unless_that_is_agreed(clean, store, database, says):
    out = clean("--delete", "s", says=says)
    assert f"{WHOLE}? [y/N]" in out
    assert "deleted" not in out
    assert (store.exists("s/study.db"), active(home(store / "s").id, database)) == (True, 2)


@pytest.mark.parametrize(("arguments", "says"), [([], "y"), ([], "Yes"), (["--yes"], None)])
def test_a_study_goes_with_its_runs_whatever_their_experiment(clean, store, database, arguments, says):
    id = home(store / "s").id
    out = clean("--delete", "s", *arguments, says=says)
    assert f"{WHOLE}; models that it registered stay" in out
    assert out.splitlines()[-2] == f"no study in {store}"
    assert (store.exists("s"), active(id, database)) == (False, 0)


def test_nobody_is_asked_where_nobody_is(clean, store):
    with pytest.raises(UsageError, match="nobody to be asked here: say --yes"):
        clean("--delete", "s")
    assert store.exists("s/study.db")


@pytest.mark.parametrize("uri", [None, "elsewhere"])
def test_runs_that_are_not_found_keep_the_files(clean, store, database, monkeypatch, tmp_path, uri):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{uri}.db")
    id = home(store / "s").id
    with pytest.raises(UsageError, match=r"'s' is not deleted: not found are its MLflow runs .MLFLOW_TRACKING_URI"):
        clean("--delete", "s", "--yes")
    assert store.exists("s/study.db")
    assert not list(tmp_path.rglob("mlflow.db")) + list(tmp_path.glob("elsewhere*"))
    out = clean("--delete", "s", says="y")
    assert "1 trials, 0 MLflow runs (not found are its MLflow runs (MLFLOW_TRACKING_URI says where), and stay)?" in out
    assert (store.exists("s"), active(id, database)) == (False, 2)


def test_trials_that_are_not_found_keep_the_files(clean, store, database, tmp_path):
    url = f"sqlite:///{tmp_path}/team.db"
    optuna.create_study(study_name="s", storage=url).ask()
    store.remove("s/study.db")
    with pytest.raises(UsageError, match="not deleted: not found are its trials .--study-db says where"):
        clean("--delete", "s", "--yes")
    assert active(home(store / "s").id, database) == 2
    assert f"deleted study 's' in {store}" in clean("--delete", "s", "--yes", "--study-db", url)
    assert optuna.study.get_all_study_names(url) == []


def test_runs_that_a_copy_has_taken_over_stay_and_that_is_said(clean, store, database, tmp_path):
    own = home(store / "s")
    runs(Home(own.id, "/other/s", (own.storage,)), database).parent()
    out = clean("--delete", "s", "--yes")
    assert "its MLflow runs are those of its copy at /other/s, and stay" in out
    assert "1 trials, 0 MLflow runs; models" in out
    assert (store.exists("s"), active(own.id, database)) == (False, 2)


def test_a_deletion_that_was_interrupted_is_ended_by_the_same_command(clean, store, database, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            clean("--delete", "s", "--yes")
    assert active(home(store / "s").id, database) == 0
    assert "1 trials, 0 MLflow runs; models" in clean("--delete", "s", "--yes")
    assert not store.exists("s")


def test_a_storage_without_studies_says_so(clean, store, tmp_path):
    assert f"no study in {tmp_path / 'mistyped'}" in clean("--storage", str(tmp_path / "mistyped"))
    with pytest.raises(UsageError, match="Unknown study 's': there is no study"):
        clean("--storage", str(tmp_path / "mistyped"), "--delete", "s", "--yes")
