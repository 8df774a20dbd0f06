"""A tiny dataset, and studies on it whose drivers are processes of their own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.driven import Driven, finish
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 training, 24 validation, 24 test images of 40 px, imported. Nobody changes it."""
    where = str(tmp_path_factory.mktemp("dataset"))
    options = synthetic.Options(train=96, val=24, test=24, size=40)
    import_dataset(synthetic.read(Path(), options), Store.at(where), name="tiny", origin={"importer": "synthetic"})
    return where


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of driver processes: no cluster to join, no MLflow server, folders of this test session."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    ray_folder = tempfile.mkdtemp(prefix="wsol-")  # short: Ray's socket paths have a limit
    yield kept | {
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": ray_folder,
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_study(
    tmp_path_factory: pytest.TempPathFactory, dataset: str, environment: dict[str, str]
) -> Callable[..., Driven]:
    """`new_study(*options)`: a study that has not begun, in a storage of its own."""

    def make(*options: str) -> Driven:
        return Driven(tmp_path_factory.mktemp("storage"), dataset, environment, options)

    return make


@pytest.fixture(scope="session")
def end() -> Callable[[Any], "subprocess.CompletedProcess[str]"]:
    """`end(process)`: wait for it; its code and what it printed."""
    return finish
