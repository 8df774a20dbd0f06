"""The way to MLflow: a server, or an SQLite file; what its faults mean."""

import contextlib
import functools
import logging
import os
import shlex
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from filelock import FileLock
from google.protobuf.json_format import ParseError
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy.exc import SQLAlchemyError

from wsol_pipeline.errors import ResourceError, UsageError, WsolError
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import STORAGE_ERRORS, Store
from wsol_pipeline.tracking import moved

logger = logging.getLogger(__name__)

T = TypeVar("T")
Connect = Callable[[], tuple[mlflow.MlflowClient, str]]  # (client, experiment id), or a `ResourceError`
EXPERIMENT_TAGS = {  # MLflow would guess from traces, which we have none of, that this is about language models
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Studies of weakly supervised object localization: a run per study, its trials as children.",
}
GARBLED = (ValueError, TypeError, AttributeError, KeyError, RecursionError, ParseError)  # an answer that is no MLflow's
# What calls raise that MLflow did not answer well:
AWAY = (MlflowException, SQLAlchemyError, sqlite3.Error, *GARBLED, *STORAGE_ERRORS)
CONNECT_SECONDS = 30.0  # for all of an answer: a server that sends a byte a second is away too


class ServerAway(ResourceError):
    """A server that may be back later."""


def connect_mlflow(store: Store, experiment: str) -> Connect:
    """What gives (client, experiment id) of MLFLOW_TRACKING_URI, or of a SQLite file in a local `store`.

    It is asked here once, for what no waiting mends. A server that is away is no such thing: work that needs none of it
    begins, with a warning.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not store.is_local:
        raise UsageError(f"MLFLOW_TRACKING_URI is not set, and {store.uri} cannot hold MLflow's SQLite file: set it.")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment)
    uri = uri or f"sqlite:///{store.path(moved.DATABASE)}"
    again = functools.partial(connect, uri, experiment, store.path(moved.ARTIFACTS))
    try:
        connected = again()
    except ServerAway as error:
        logger.warning("%s. The work begins without it, and is written when it is back.", error)
        return again
    return lambda: connected


def point_mlflow_at(uri: str) -> None:
    """As `mlflow.set_tracking_uri`, which also sets MLFLOW_TRACKING_URI: the next study of this process, in another
    storage, would take that for its user's wish."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if not given:
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def connect(uri: str, experiment: str, artifacts: str | None) -> tuple[mlflow.MlflowClient, str]:
    """(client, experiment id). `artifacts` is where a database without a server keeps files.

    Within seconds raises `ServerAway` if a server does not answer or fails, `UsageError` for an address that is none or
    answers with a refusal (401, 403, 404), `ResourceError` for a database that cannot be opened.
    """
    location = None if uri.startswith("http") else artifacts
    with _answering(uri), _one_at_a_time(uri):
        ask = functools.partial(_experiment, uri, experiment, location)
        client, id = within(CONNECT_SECONDS, ask) if uri.startswith("http") else ask()
    if not (isinstance(id, str) and id):
        raise UsageError(f"MLflow at {redact(uri)} is no MLflow: the id of its experiment is {id!r:.80}.")
    return client, id


@contextlib.contextmanager
def existing_mlflow(store: Store) -> Iterator[mlflow.MlflowClient | None]:
    """A client of MLFLOW_TRACKING_URI, or of the SQLite file in `store`; None if there is no such file: none is made.

    Within, what fails of it is an error as `connect` raises it.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (f"sqlite:///{store.path(moved.DATABASE)}" if store.is_local else "")
    file = sqlite_file(uri)
    if not uri or (file and not file.exists()):
        yield None
        return
    with _answering(uri):
        yield mlflow.MlflowClient(uri)


@contextlib.contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Within, MLflow is the one at `uri`, and an error of its own one of `connect`."""
    for name, value in {"TIMEOUT": "10", "MAX_RETRIES": "0"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        point_mlflow_at(uri)
        yield
    except ServerAway as error:
        raise ServerAway(f"MLflow at {redact(uri)} does not answer: {error}") from error
    except (ImportError, *AWAY) as error:
        raise _refused(uri, error) from error


def _experiment(uri: str, experiment: str, artifacts: str | None) -> tuple[mlflow.MlflowClient, str]:
    client, file, tags = mlflow.MlflowClient(uri), sqlite_file(uri), EXPERIMENT_TAGS  # makes a new file's tables
    if file and artifacts == str(file.resolve().parent / moved.ARTIFACTS):
        moved.follow(file)
        tags = EXPERIMENT_TAGS | moved.BESIDE_TAG
    known = client.get_experiment_by_name(experiment)
    if known and known.lifecycle_stage == LifecycleStage.DELETED:
        back = f"mlflow experiments restore --experiment-id {known.experiment_id}"
        raise UsageError(
            f"MLflow's experiment {experiment!r} was deleted: bring it back (MLFLOW_TRACKING_URI="
            f"{shlex.quote(redact(uri))} {back}), or name another by --experiment."
        )
    return client, known.experiment_id if known else client.create_experiment(experiment, artifacts, tags)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` gives, or raises. Raises `ServerAway` if it takes longer than `seconds`; it is left behind then."""
    done: list[T | BaseException] = []

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised below
            done.append(error)

    thread = threading.Thread(target=work, daemon=True, name="mlflow-call")
    thread.start()
    thread.join(seconds)
    if not done:
        raise ServerAway(f"no whole answer within {seconds:g} s")
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def _refused(uri: str, error: Exception) -> WsolError:
    where, why = f"MLflow at {redact(uri)}", reason(error, 300)
    scheme = uri.split(":")[0].split("+")[0]
    if scheme in DATABASE_ENGINES:
        return ResourceError(f"{where} cannot be opened: {why}")
    if scheme not in ("http", "https"):
        return UsageError(f"{where} is neither a server (http://...) nor a database (sqlite:///...): {why}")
    if isinstance(error, GARBLED):
        return UsageError(f"{where} is no MLflow: its answer cannot be read ({type(error).__name__}: {why}).")
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
    if 400 <= status < 500 and status not in (408, 429):  # a timeout, too many requests: those pass
        return UsageError(f"{where} answers with status {status}: check the address and the password. {why}")
    return ServerAway(f"{where} does not answer: {why}")


def sqlite_file(uri: str | None) -> Path | None:
    """The file behind an SQLite URL; None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri and uri.startswith("sqlite:///") else None


def _one_at_a_time(uri: str) -> contextlib.AbstractContextManager[Any]:
    """Two drivers that create the tables of one new SQLite file at once would both fail."""
    file = sqlite_file(uri)
    return FileLock(f"{file}.lock") if file else contextlib.nullcontext()


def reason(error: Exception, most: int = 200) -> str:
    """An error in a line of at most `most` characters, without secrets."""
    return redact(" ".join(str(error).split()))[:most]
