"""MLflow that is away, slow or broken, at the start, in the middle and at the end: nothing is lost, nothing twice."""

import contextlib
import functools
import itertools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest

from wsol_pipeline.errors import LeaseLostError, ResourceError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.tracking import connect as connecting
from wsol_pipeline.tracking import projection, registry, runs
from wsol_pipeline.tracking.connect import ServerAway, connect_mlflow
from wsol_pipeline.tracking.connect import connect as connect_to
from wsol_pipeline.tracking.projection import Projection, TrialView
from wsol_pipeline.tracking.runs import StudyRuns, deliver

FAULTS = ("closed", "timeout", "500", "cut")


def views(*states: str) -> list[TrialView]:
    def record(epoch: int) -> dict:
        values = {"train": {"loss": 1.0 / epoch}, "val": {}, "value": 40.0, "searched": False}
        return values | {"epoch": epoch, "time": 1_700_000_000.0 + epoch}

    return [TrialView(n, state, {"alpha": 0.5}, {}, [record(1), record(2)]) for n, state in enumerate(states)]


@pytest.fixture
def patient(monkeypatch):
    """`patient(seconds)`: how long the end of the work waits for MLflow."""

    def wait(seconds):
        for module in (projection, runs):
            monkeypatch.setattr(module, "PATIENCE", seconds)

    return wait


@pytest.fixture
def connect(mlflow_proxy, request):
    """What connects through the proxy, to an experiment of this test's own."""
    return functools.partial(connect_to, mlflow_proxy.url, request.node.name, None)


@pytest.fixture
def written(mlflow_server, request):
    """`written(study)`: {trial: (status, steps of its loss)} of its runs, as the server itself shows them."""

    def read(study: str) -> dict[str, tuple[str, list[int]]]:
        client = mlflow.MlflowClient(mlflow_server)
        experiment = client.get_experiment_by_name(request.node.name).experiment_id
        runs = client.search_runs([experiment], f"tags.`wsol.study` = '{study}'")
        trials = [run.data.tags["wsol.trial"] for run in runs]
        assert len(trials) == len(set(trials)), "a run is there twice"
        steps = [[m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] for run in runs]
        return {trial: (run.info.status, s) for trial, run, s in zip(trials, runs, steps, strict=True)}

    return read


COMPLETE = {"study": ("RUNNING", []), "0": ("FINISHED", [1, 2]), "1": ("FINISHED", [1, 2])}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_is_away_at_the_start_is_written_when_it_is_back(
    connect, mlflow_proxy, written, fault, caplog, monkeypatch
):
    mlflow_proxy.harm(fault, method="")
    if fault == "timeout":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(ServerAway, match=r"MLflow at http://127.0.0.1:\d+ does not answer"):
        connect()
    assert mlflow_proxy.injected == 1
    writer = Projection(StudyRuns(connect, "s", {}), lambda: views("COMPLETE", "PRUNED"))
    assert not writer.flush()
    assert not writer.flush()
    assert caplog.text.count("MLflow is away") == 1
    mlflow_proxy.heal()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    assert writer.flush()
    assert written("s") == COMPLETE


@pytest.mark.parametrize("fault", [pytest.param(f, marks=[pytest.mark.chaos] if f != "cut" else []) for f in FAULTS])
def test_whichever_request_fails_all_arrives_once(connect, mlflow_proxy, written, fault, monkeypatch):
    connect()
    if fault == "timeout":
        mlflow_proxy.silence = 11
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # no honest answer takes that long on a busy machine
    for number in itertools.count():
        study = f"s{number}"
        mlflow_proxy.harm(fault, times=1, method="", after=number)
        writer = Projection(StudyRuns(connect, study, {}), lambda: views("COMPLETE", "PRUNED"))
        took = [writer.flush(), writer.flush()]
        failed, _ = mlflow_proxy.injected, mlflow_proxy.heal()
        assert took == [not failed, True]
        assert written(study) == COMPLETE
        if not failed:
            break
    assert number > 5


def test_a_slow_server_delays_the_end_by_its_patience_alone(connect, mlflow_proxy, patient, written):
    patient(2.0)
    mlflow_proxy.silence = 0.8
    mlflow_proxy.harm("slow", method="")
    writer = Projection(StudyRuns(connect, "s", {}), lambda: views(*["COMPLETE"] * 30))
    writer.start()
    writer.stop()
    writer.hurry()
    missing = deliver({"trials": writer.write, "the end": writer.runs.close_parent})
    assert mlflow_proxy.injected < 30
    assert missing == "MLflow lacks trials, the end (it is too slow)"
    mlflow_proxy.heal()
    mlflow_proxy.requests.clear()
    patient(200.0)
    writer.hurry()
    assert deliver({"trials": writer.write, "the end": writer.runs.close_parent}) == ""
    assert len(mlflow_proxy.requests) > 60  # that would have been waited for
    assert written("s") == {"study": ("FINISHED", []), **{str(n): ("FINISHED", [1, 2]) for n in range(30)}}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_is_told_at_once(connect, mlflow_proxy, status):
    mlflow_proxy.harm(str(status), method="")
    with pytest.raises(UsageError, match=f"answers with status {status}: check the address and the password"):
        connect()


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("htp://host", UsageError, "neither a server .* nor a database"),
        ("./mlruns", UsageError, "neither a server .* nor a database"),
        ("postgresql+nothing://u:secret@127.0.0.1/x", ResourceError, r"\*\*\*@127.0.0.1/x cannot be opened"),
    ],
)
def test_an_address_that_can_be_none_is_refused(monkeypatch, tmp_path, uri, error, message):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(error, match=message) as refused:
        connect_mlflow(Store.at(tmp_path), "wsol")
    assert not isinstance(refused.value, ServerAway)
    assert "secret" not in str(refused.value)


def test_an_experiment_that_was_deleted_is_refused_with_the_way_back(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client, experiment = connect_to(uri, "wsol", str(tmp_path / "artifacts"))
    client.delete_experiment(experiment)
    with pytest.raises(UsageError, match=f"restore --experiment-id {experiment}.*or name another by --experiment"):
        connect_to(uri, "wsol", str(tmp_path / "artifacts"))
    client.restore_experiment(experiment)
    assert connect_to(uri, "wsol", str(tmp_path / "artifacts"))[1] == experiment


def test_what_a_file_of_another_kind_is_taken_for(monkeypatch, tmp_path):
    (tmp_path / "mlflow.db").write_text("no database, but longer than the header of one, which has a hundred bytes" * 9)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ResourceError, match="cannot be opened: .*not a database"):
        connect_mlflow(Store.at(tmp_path), "wsol")


ENDS = ("", "registered-models/create", "model-versions/create", "logged-models", "mlflow-artifacts", "runs/update")


@pytest.mark.parametrize(
    ("fault", "path"),
    [
        pytest.param(fault, path, marks=[] if (fault, path) == ("cut", "model-versions/create") else pytest.mark.chaos)
        for fault in FAULTS
        for path in ENDS
    ],
)
def test_a_model_is_registered_once_whatever_fails(connect, mlflow_proxy, fit, make_config, monkeypatch, fault, path):
    """One fault at the first request of its kind."""
    final, name = fit(make_config()).final, f"m-{fault}-{path.replace('/', '-')}"
    if fault == "timeout":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    writer = Projection(StudyRuns(connect, name, {}), lambda: views("COMPLETE"))
    assert writer.flush()
    mlflow_proxy.silence = 11
    mlflow_proxy.harm(fault, times=1, method="", path=path)
    missing = deliver({"trials": writer.write, "model": lambda: registry.register(writer.runs, name, 0, final)})
    assert missing == ""
    assert mlflow_proxy.injected == 1
    mlflow_proxy.heal()
    assert registry.register(writer.runs, name, 0, final) == "1"
    client = mlflow.MlflowClient(mlflow_proxy.url)
    assert len(client.search_model_versions(f"name = '{name}'")) == 1
    run = client.get_run(writer.runs.trial(0))
    assert run.info.status == "FINISHED"
    assert mlflow.pyfunc.load_model(f"models:/{name}/1")


def test_a_server_away_at_the_end_leaves_a_list(connect, mlflow_proxy, patient):
    patient(0.5)
    writer = Projection(StudyRuns(connect, "s", {}), lambda: views("COMPLETE"))
    writer.flush()
    mlflow_proxy.harm("500", method="")
    told = deliver(
        {"trials": writer.write, "the model": writer.runs.close_parent, "pictures": writer.runs.close_parent}
    )
    assert told.startswith("MLflow lacks the model, pictures (")


GARBAGE = {
    "html": b"<html><form action=login>", "empty": b"", "list": b"[]", "null": b"null", "string": b'"x"',
    "numbers": b'{"experiment": 5, "runs": {"a": 1}, "experiment_id": [1]}', "no id": b'{"experiment": {}}',
    "nulls": b'{"experiment": {"experiment_id": null, "name": null}}', "deep": b"[" * 200_000, "latin": b"\xff\xfe\x00",
}  # fmt: skip


@pytest.fixture
def answering():
    """`answering(body)`: the address of a server that answers 200 and that, whatever it is asked; `trickle`: slowly."""
    servers = []

    def serve(body: bytes, trickle: bool = False) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body) + 1000 * trickle))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)
                    while trickle and not over.wait(0.1):
                        self.wfile.write(b" ")

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        over = threading.Event()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append((server, over))
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, over in servers:
        over.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("body", GARBAGE)
def test_what_is_no_mlflow_is_told_in_a_line(answering, body):
    with pytest.raises(
        (UsageError, ServerAway), match="MLflow at http://127.0.0.1:[0-9]+ (is no MLflow|does not)"
    ) as told:
        connect_to(answering(GARBAGE[body]), "wsol", None)
    assert "\n" not in str(told.value)


def test_an_answer_that_trickles_is_not_waited_for(answering, monkeypatch):
    monkeypatch.setattr(connecting, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ServerAway, match="does not answer: no whole answer within 0.5 s"):
        connect_to(answering(b"{", trickle=True), "wsol", None)


def test_the_end_does_not_wait_for_a_call_that_never_comes_back(patient, monkeypatch):
    patient(0.1)
    monkeypatch.setattr(runs, "TRICKLE", 0.2)
    never = threading.Event()
    assert deliver({"a": lambda: None, "b": never.wait, "c": lambda: None}) == (
        "MLflow lacks b, c (no whole answer within 0.3 s)"
    )
    never.set()


def test_who_has_lost_the_lease_delivers_nothing_more():
    written = []

    def lost():
        raise LeaseLostError("another driver took over")

    with pytest.raises(LeaseLostError):
        deliver({"the winner's model": lost, "the study's end": lambda: written.append(1)})
    assert written == []
