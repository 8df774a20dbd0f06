"""MLflow as a projection: written again it stays the same, and an answer that got lost makes no second run."""

import logging
import time
from collections import Counter
from dataclasses import replace

import mlflow
import pytest
from filelock import FileLock, Timeout
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from wsol_pipeline.errors import ResourceError, UsageError
from wsol_pipeline.tracking.connect import connect
from wsol_pipeline.tracking.projection import Projection, StudyView, TrialView
from wsol_pipeline.tracking.runs import STORAGE_TAG, StudyRuns


class Lossy:
    """An MLflow client whose `create_run` works, and whose first answers get lost."""

    def __init__(self, client: mlflow.MlflowClient, lost: int) -> None:
        self._client, self._lost = client, lost

    def create_run(self, *args, **options):
        run = self._client.create_run(*args, **options)
        self._lost -= 1
        if self._lost >= 0:
            raise MlflowException("read timed out at http://user:secret@mlflow")
        return run

    def __getattr__(self, name):
        return getattr(self._client, name)


class Counting(Lossy):
    """An MLflow client that counts its requests."""

    def __init__(self, client: mlflow.MlflowClient) -> None:
        super().__init__(client, 0)
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name):
        self.requests[name] += 1
        return super().__getattr__(name)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """Made once: MLflow's tables take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def connected(database, request, tmp_path):
    """(client, experiment) of an experiment of this test's own."""
    return connect(database, request.node.name, str(tmp_path))


def test_tables_are_made_by_one_driver_at_a_time(tmp_path, monkeypatch):
    """A client makes the tables of a new SQLite file; two that did so at once would break each other."""
    database = tmp_path / "mlflow.db"

    def client(uri):
        with pytest.raises(Timeout):
            FileLock(f"{database}.lock").acquire(timeout=0)
        raise OSError("locked as it should be")

    monkeypatch.setattr(mlflow, "MlflowClient", client)
    with pytest.raises(ResourceError, match="locked as it should be"):
        connect(f"sqlite:///{database}", "wsol", str(tmp_path))


def view(number: int, epochs: int, state: str = "RUNNING") -> TrialView:
    records = [
        {
            "epoch": epoch,
            "time": 1_700_000_000.0 + epoch,
            "train": {"loss": 1.0 / epoch},
            "val": {"gt_known_loc": 50.0 + epoch},
            "value": 40.0,
            "searched": epoch == epochs,
            "learning_rate": 0.1,
            "images_per_second": 10.0,
            "seconds": 1.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    return TrialView(number, state, {"alpha": 0.5}, {}, records)


def project(client, experiment, views) -> Projection:
    return Projection(StudyRuns(lambda: (client, experiment), "s", {"wsol.data": "d"}), lambda: views)


def test_a_second_driver_writes_the_same_again(connected):
    client, experiment = connected
    assert project(client, experiment, [view(0, 2)]).flush()
    assert project(client, experiment, [view(0, 3, "COMPLETE"), view(1, 1)]).flush()
    runs = {run.data.tags["wsol.trial"]: run for run in client.search_runs([experiment])}
    assert set(runs) == {"study", "0", "1"}
    history = client.get_metric_history(runs["0"].info.run_id, "val/gt_known_loc")
    assert [(metric.step, metric.value) for metric in history] == [(1, 51.0), (2, 52.0), (3, 53.0)]
    assert (runs["0"].info.status, runs["1"].info.status) == ("FINISHED", "RUNNING")
    assert runs["1"].data.tags["mlflow.parentRunId"] == runs["study"].info.run_id


def test_numbers_fit_the_columns_of_mlflow_s_pages(connected):
    client, experiment = connected
    trial = view(0, 1, "COMPLETE")
    trial.records[0]["val"]["gt_known_loc"] = 85.88888888888889
    assert project(
        client, experiment, [replace(trial, parameters={"alpha": 1.4453161234, "beta": 1.0, "k": 3})]
    ).flush()
    (run,) = [run for run in client.search_runs([experiment]) if run.data.tags["wsol.trial"] == "0"]
    assert run.data.params == {"alpha": "1.44532", "beta": "1.0", "k": "3"}
    assert run.data.metrics["val/gt_known_loc"] == 85.8889


def test_of_an_epoch_that_was_trained_again_the_first_values_stay(connected):
    """Its record has another time, by which MLflow would take it for another one."""
    client, experiment = connected
    assert project(client, experiment, [view(0, 2)]).flush()
    again = view(0, 3)
    for record in again.records:
        record["time"] += 60
    assert project(client, experiment, [again]).flush()
    run = next(run for run in client.search_runs([experiment]) if run.data.tags["wsol.trial"] == "0")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.timestamp % 100_000) for metric in history] == [(1, 1_000), (2, 2_000), (3, 63_000)]


def test_what_has_ended_is_not_asked_for_again_even_by_a_second_driver(connected):
    """Its files are drawn once, and its records are not read."""
    client, experiment = connected
    drawn = []

    def draw(folder):
        drawn.append(1)
        (folder / "surface.png").write_bytes(b"a picture")
        return {"gain": 7.5}

    one = project(client, experiment, [replace(view(0, 2, "PRUNED"), readout=draw), replace(view(1, 1), readout=draw)])
    assert one.flush()
    assert one.flush()
    assert (one.runs.ended, drawn) == ({0}, [1])
    run = client.get_run(one.runs.trial(0))
    assert run.data.metrics["readout/gain"] == 7.5
    assert [file.path for file in client.list_artifacts(run.info.run_id, "readout")] == ["readout/surface.png"]
    second = project(client, experiment, [view(0, 2, "PRUNED"), view(1, 1)])
    assert second.flush()
    assert second.runs.ended == {0}


def test_an_end_whose_files_did_not_arrive_is_written_again(connected, monkeypatch):
    client, experiment = connected
    broken = Lossy(client, lost=0)
    broken.log_artifacts = lambda *args: (_ for _ in ()).throw(OSError("disk full"))
    ended = [replace(view(0, 1, "COMPLETE"), readout=lambda folder: {"gain": 1.0})]
    assert not project(broken, experiment, ended).flush()
    one = project(client, experiment, ended)
    assert one.flush()
    assert client.get_run(one.runs.trial(0)).data.metrics["readout/gain"] == 1.0


def test_the_study_s_own_run_grows_with_it(connected):
    client, experiment = connected
    states = [("1 complete", [50.0]), ("1 complete", [50.0]), ("2 complete", [50.0, 60.0])]
    views = [
        StudyView(
            {"epochs": 4}, {"wsol.trials": told},
            [Metric("best_objective", value, 1_700_000_000_000 + n, n) for n, value in enumerate(best, start=1)],
        )
        for told, best in states
    ]  # fmt: skip
    counting = Counting(client)
    one = Projection(StudyRuns(lambda: (counting, experiment), "s", {}), list, lambda: views.pop(0))
    assert [one.flush() for _ in range(3)] == [True] * 3
    assert counting.requests["log_batch"] == 2  # nothing is written where nothing is new
    run = client.get_run(one.runs.parent())
    assert (run.data.params, run.data.tags["wsol.trials"]) == ({"epochs": "4"}, "2 complete")
    history = client.get_metric_history(run.info.run_id, "best_objective")
    assert [(metric.step, metric.value) for metric in history] == [(1, 50.0), (2, 60.0)]


def test_two_studies_of_one_name_never_share_a_run(connected):
    client, experiment = connected
    first, second = (
        StudyRuns(lambda: connected, "s", {STORAGE_TAG: f"/{who}/s"}, id * 32)
        for who, id in (("alice", "a"), ("bob", "b"))
    )
    first.trial(0)
    with pytest.raises(
        UsageError, match=r"another study 's', kept at /alice/s \(id a{12}; this one is b{12}, kept at /bob"
    ):
        second.parent()
    assert Projection(first, lambda: [view(0, 1, "COMPLETE")]).flush()
    assert {run.data.tags["wsol.study_id"] for run in client.search_runs([experiment])} == {"a" * 32}
    client.delete_run(first.parent())  # as the error says
    first.forget()
    assert second.parent()


def test_runs_are_of_one_of_two_copies(connected):
    """A study was copied, and MLflow is a server: who goes on there takes the runs over, the other is refused."""
    client, _ = connected
    first, copy = (
        StudyRuns(lambda: connected, "copied", {STORAGE_TAG: place}, "c" * 32, before)
        for place, before in (("/a/s", ()), ("/b/s", ("/a/s",)))
    )
    run = first.trial(0)
    assert copy.trial(0) == run
    assert client.get_run(copy.parent()).data.tags[STORAGE_TAG] == "/b/s"
    first.forget()
    with pytest.raises(
        UsageError, match="'copied' are those of its copy at /b/s, which has gone on.*give /a/s another"
    ):
        first.parent()


def test_an_answer_that_lacks_runs_leaves_no_second_ones(connected):
    """Made twice: the study's run, a trial that is over, one that is not. Kept: what is over, else what was first."""
    client, experiment = connected
    runs = StudyRuns(lambda: connected, "lied", {}, "d" * 32)
    first = {trial: runs.trial(trial) for trial in (0, 1)}
    runs._find = dict  # type: ignore[method-assign]
    runs.forget()
    second = {trial: runs.trial(trial) for trial in (0, 1)}
    assert not set(first.values()) & set(second.values())
    client.set_terminated(second[1])
    del runs._find
    runs.forget()
    assert (runs.trial(0), runs.trial(1)) == (first[0], second[1])
    assert runs.ended == {1}
    left = client.search_runs([experiment])
    assert sorted(run.info.run_id for run in left) == sorted([runs.parent(), first[0], second[1]])
    assert {client.get_run(runs.trial(trial)).data.tags["mlflow.parentRunId"] for trial in (0, 1)} == {runs.parent()}


def test_of_two_that_began_at_once_the_first_goes_on(connected):
    first, second = (StudyRuns(lambda: connected, "s", {}, id) for id in ("a", "b"))
    for runs in (first, second):  # neither has seen the other
        runs._find = dict  # type: ignore[method-assign]
        runs.parent()
        del runs._find
        runs.forget()
        time.sleep(0.01)
    assert first.trial(0)
    with pytest.raises(UsageError, match="another study 's'"):
        second.trial(0)


def test_deleted_runs_are_written_again_from_their_beginning(connected):
    client, experiment = connected
    shown = [view(0, 2, "COMPLETE"), view(1, 1)]
    writer = project(client, experiment, shown)
    assert writer.flush()
    for run in client.search_runs([experiment]):
        client.delete_run(run.info.run_id)
    shown[1] = view(1, 3)
    assert [writer.flush(), writer.flush()] == [False, True]
    runs = {run.data.tags["wsol.trial"]: run for run in client.search_runs([experiment])}
    assert set(runs) == {"study", "0", "1"}
    steps = {n: [m.step for m in client.get_metric_history(runs[n].info.run_id, "train/loss")] for n in ("0", "1")}
    assert steps == {"0": [1, 2], "1": [1, 2, 3]}
    assert {n: run.data.params for n, run in runs.items() if n != "study"} == {
        "0": {"alpha": "0.5"},
        "1": {"alpha": "0.5"},
    }
    assert {runs[n].data.tags["mlflow.parentRunId"] for n in ("0", "1")} == {runs["study"].info.run_id}


def test_runs_whose_parent_was_deleted_get_the_new_one(connected):
    client, experiment = connected
    assert project(client, experiment, [view(0, 2, "COMPLETE"), view(1, 1)]).flush()
    (parent,) = [run for run in client.search_runs([experiment]) if run.data.tags["wsol.trial"] == "study"]
    client.delete_run(parent.info.run_id)
    assert project(client, experiment, [view(0, 2, "COMPLETE"), view(1, 1)]).flush()
    runs = {run.data.tags["wsol.trial"]: run for run in client.search_runs([experiment])}
    assert {runs[n].data.tags["mlflow.parentRunId"] for n in ("0", "1")} == {runs["study"].info.run_id}


def test_an_answer_that_got_lost_makes_no_second_run(connected, caplog):
    client, experiment = connected
    writer = project(Lossy(client, lost=2), experiment, [view(0, 1)])
    with caplog.at_level(logging.WARNING):
        assert [writer.flush() for _ in range(3)] == [False, False, True]
    assert len(client.search_runs([experiment])) == 2
    assert caplog.text.count("MLflow is away") == 1
    assert "secret" not in caplog.text


def test_mlflow_that_never_answers_is_refused_without_its_password(unused_tcp_port):
    with pytest.raises(ResourceError, match=r"http://\*\*\*@127.0.0.1:\d+ does not answer") as refused:
        connect(f"http://user:secret@127.0.0.1:{unused_tcp_port}", "wsol", None)
    assert "secret" not in str(refused.value)


@pytest.fixture
def unused_tcp_port(free_port) -> int:
    return free_port()
