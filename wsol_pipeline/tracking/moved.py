"""MLflow's SQLite file in a storage that was moved or copied: its files lie beside it, wherever that is today.

MLflow keeps absolute places, of an experiment and of everything in it. Those that were made beside the database bear a
tag, so they are told from files that somebody keeps elsewhere on purpose. Of a database that is no storage's own its
owner alone knows what went where:

    python -m wsol_pipeline.tracking.moved team.db s3://old/runs/mlflow-artifacts s3://new/runs/mlflow-artifacts
"""

import contextlib
import logging
import sqlite3
import sys
from pathlib import Path

from wsol_pipeline.errors import UsageError

logger = logging.getLogger(__name__)

DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"  # their names in a storage
BESIDE_TAG = {"wsol.artifacts": "beside the database"}  # of an experiment
_PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
_TAGGED = """SELECT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id)
WHERE key = ? AND value = ?"""


def follow(database: Path) -> None:
    """Let everything that was made beside `database` be looked for beside it; say so if it was elsewhere before."""
    if not database.exists():
        return
    here = str(database.resolve().parent / ARTIFACTS)
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'").fetchone():
            return
        (tag,) = BESIDE_TAG.items()
        for before in {place for (place,) in connection.execute(_TAGGED, tag)} - {here}:
            logger.warning("MLflow's files were moved: %s is %s now", before, here)
            _rename_all(connection, before, here)


def rename(database: Path, before: str, here: str) -> int:
    """Let what `database` looks for below the place `before` be looked for below `here`; how many places that were."""
    if not database.exists():
        raise UsageError(f"There is no SQLite file {database}.")
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        return _rename_all(connection, before.rstrip("/"), here.rstrip("/"))


def _rename_all(connection: sqlite3.Connection, before: str, here: str) -> int:
    return sum(_rename(connection, table, column, before, here) for table, column in _PLACES.items())


def _rename(connection: sqlite3.Connection, table: str, column: str, before: str, here: str) -> int:
    """Put `here` for `before` where a column begins with that; in how many rows."""
    within = f"{column} = :before OR substr({column}, 1, length(:before) + 1) = :before || '/'"
    renamed = f"UPDATE {table} SET {column} = :here || substr({column}, length(:before) + 1) WHERE {within}"
    return connection.execute(renamed, {"before": before, "here": here}).rowcount


def main() -> None:
    match sys.argv[1:]:
        case [database]:
            follow(Path(database))
        case [database, before, here]:
            renamed = rename(Path(database.removeprefix("sqlite:///")), before, here)
            logger.warning("%d places below %s are below %s now", renamed, before, here)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
