"""`ray job submit` on a cluster with token authentication, as the README's command line does it."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import mlflow
import optuna
import pytest
from ray._private.runtime_env import packaging

from cluster.nodes import Cluster, running_cluster
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage

ROOT = Path(__file__).parents[2]
OPTIONS = "--trials 2 --epochs 2 --batch-size 16 --image-size 32 --resize-size 36 --concurrent 1 --pruner none"

LOCALIZE = """
import json, pathlib, sys
import mlflow, numpy as np
images = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), np.uint8)
folder = mlflow.artifacts.download_artifacts(f"models:/{sys.argv[1]}/1")
found = mlflow.pyfunc.load_model(folder).predict(images)
files = [path.suffix for path in pathlib.Path(folder).rglob("*") if path.is_file()]
print(json.dumps({"files": sorted(set(files)), "found": [{**one, "map": np.shape(one["map"])} for one in found]}))
"""


def test_the_submitted_working_directory_is_small(tmp_path):
    package = tmp_path / "package.zip"
    packaging.create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 20e6
    names = ZipFile(package).namelist()
    assert "rayjobs/tune_bas.py" in names
    assert not [name for name in names if name.startswith(("tests/", "runs/", ".venv/", ".git/"))]


@pytest.fixture(scope="module")
def cluster(s3_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node of four logical CPUs; it knows the S3 server and an MLflow database."""
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
    }
    with running_cluster((), head_cpus=4, environment=environment) as cluster:
        yield cluster


def submit(cluster: Cluster, *arguments: str) -> str:
    """Submit tune_bas.py as a job and wait; what it printed."""
    command = ("python", "rayjobs/tune_bas.py", *OPTIONS.split(), *arguments)
    ended = subprocess.run(
        cluster.submission(*command, options=["--working-dir", str(ROOT)]),
        cwd=ROOT, env=cluster.environment, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def localize(cluster: Cluster, model: str) -> dict:
    """Suffixes of the registered model's files, and what it finds in two images in a process of its own."""
    command = [sys.executable, "-c", LOCALIZE, model]
    ended = subprocess.run(command, cwd=ROOT, env=cluster.environment, text=True, capture_output=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def check_study(cluster: Cluster, storage: Store, name: str, first: str) -> None:
    """What both studies must hold, in the ledger and in MLflow."""
    assert "2 trials started = 2 complete + 0 pruned + 0 failed" in first
    study = optuna.load_study(study_name=name, storage=open_storage(storage / name, None))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    client = mlflow.MlflowClient(cluster.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["wsol.trial"] for run in runs) == ["0", "1", "study"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [str(v.version) for v in client.search_model_versions(f"name = '{name}'")] == ["1"]


@pytest.mark.slow
@pytest.mark.parametrize("token", ["", "Bearer wrong"])
def test_a_request_without_the_token_is_refused(cluster, token):
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary"):
        request = urllib.request.Request(cluster.dashboard + path, headers={"Authorization": token} if token else {})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        assert caught.value.code in (401, 403), path


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["local disk, two workers a trial", "object store"])
def test_a_submitted_study_runs_registers_a_model_and_continues(cluster, dataset, s3_bucket, tmp_path, kind):
    if kind == "object store":
        name, data, storage = "bucket", f"{s3_bucket}/submitted/data", Store.at(f"{s3_bucket}/submitted/runs")
        options = synthetic.Options(train=96, val=24, test=24, size=40)
        import_dataset(synthetic.read(Path(), options), Store.at(data), name="tiny", origin={"importer": "synthetic"})
        workers = "1"
    else:
        name, data, storage, workers = "disk", dataset, Store.at(tmp_path / "runs"), "2"
    line = ("--name", name, "--data", data, "--storage", storage.uri, "--workers", workers, "--experiment", name)

    check_study(cluster, storage, name, submit(cluster, *line))
    served = localize(cluster, name)
    for found in served["found"]:
        x0, y0, x1, y1 = found["box"]
        assert (0 <= x0 < x1 <= 40, 0 <= y0 < y1 <= 50, found["map"]) == (True, True, [32, 32])
    assert ".safetensors" in served["files"]
    assert not {".pkl", ".pickle", ".pt", ".pth", ".bin"} & set(served["files"])

    written = storage.list(f"{name}/trials")
    again = submit(cluster, *line)
    assert "starts:" not in again
    assert storage.list(f"{name}/trials") == written
    check_study(cluster, storage, name, again)
