"""What a user can get wrong: one line that says the rule, the value and the choices, and the exit code of its kind."""

import contextlib
import json
import re
import socket
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import ray
from PIL import Image
from tenacity import wait_none

import search_spaces
from rayjobs import evaluate, import_dataset, train, tune_bas, tune_cam
from wsol_models import methods
from wsol_pipeline import storage
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import UsageError
from wsol_pipeline.study import database, ledger
from wsol_pipeline.study.plan import check_preset_fits
from wsol_pipeline.training import cluster

USAGE, DATA, RESOURCE = 2, 3, 4
SMALL = "--epochs 2 --trials 2 --image-size 32 --resize-size 36 --name s"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    """All of this is refused before Ray starts, unless a test says otherwise."""
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))


@pytest.fixture
def refused(capsys):
    """`refused(job, *arguments)`: run it in this process; (exit code, its one line)."""

    def run(job, *arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            run_main(lambda: job.main([str(argument) for argument in arguments]))
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        return end.value.code, error.removeprefix("error: ").strip()

    return run


@pytest.fixture
def tune(refused, dataset, tmp_path):
    """`tune(*arguments)`: `refused` for tune_bas.py with a good dataset and storage, which `arguments` may replace."""
    return lambda *arguments: refused(
        tune_bas, *SMALL.split(), "--data", dataset, "--storage", tmp_path / "runs", *map(str, arguments)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--trails 3", "Unrecognized options: --trails.*--trials"),
        ("--trials many", "--trials.*'many'"),
        ("--trials 0", "trials must be at least 1 but got 0"),
        ("--trials", "--trials"),
        ("--epochs 0", "epochs must be at least 1 but got 0"),
        ("--epochs 2.5", "--epochs.*'2.5'"),
        ("--workers 0", "workers must be at least 1"),
        ("--cpus-per-worker -1", "cpus_per_worker must be at least 1"),
        ("--gpus-per-trial 0", "gpus_per_trial must be above 0 and at most 1 .* but got 0"),
        ("--gpus-per-trial 2", "gpus_per_trial must be above 0 and at most 1 .more GPUs are more --workers. but got 2"),
        ("--gpus-per-trial nan", "gpus_per_trial must be above 0 and at most 1 .* but got nan"),
        ("--gpus-per-trial 0.25 --workers 2", "gpus_per_trial below 1 needs --workers 1 but got 2"),
        ("--gpus-per-trial 0.25 --device cpu", "gpus_per_trial below 1 needs GPUs but got 'cpu'"),
        ("--concurrent 0", "concurrent must be at least 1"),
        ("--learning-rate -1", "learning_rate must be positive but got -1"),
        ("--learning-rate nan", "learning_rate must be positive but got nan"),
        ("--batch-size 0", "batch_size must be at least 1"),
        ("--checkpoint-batches -1", "checkpoint_batches cannot be negative"),
        ("--cache-budget-gb 0", "cache_budget_gb must be positive"),
        ("--shard-cache-gb -1", "shard_cache_gb cannot be negative"),
        ("--image-size 64 --resize-size 32", "image_size <= resize_size is needed but got 64"),
        ("--seed -1", "seed cannot be negative"),
        ("--rungs 5", r"rungs must lie in 1\.\.1 but got \(5,\)"),
        ("--device tpu", "'tpu'.*'--device'.*'auto', 'cpu', 'cuda'"),
        ("--precision float16", "'float16'.*'--precision'.*'float32', 'bfloat16'"),
        ("--reading fast", "'fast'.*'--reading'.*'auto', 'cached', 'shrunk', 'streaming'"),
        ("--beta none", "'none'.*'--beta'.*'free'"),
        ("--pruner medain", "Unknown pruner 'medain'. Did you mean 'median'.*none"),
        ("--backbone resnet51", "Unknown backbone 'resnet51'. Did you mean 'resnet50'?.*tiny"),
        ("--preset bagcams/table2/cub/resnet50/cam", "is of method 'cam', not of 'bas'"),
        ("--objective gt_known_lok", "Unknown objective under wsol-v1 'gt_known_lok'. Did you mean 'gt_known_loc'"),
        ("--objective pxap", "needs masks but the 'val' split"),
        ("--objective miou", "Unknown objective under wsol-v1 'miou'"),
        ("--preset bas/cub", "Unknown preset of 'bas' 'bas/cub'.*bas-ext/table1/cub/resnet50"),
        ("--protocol wsol-v3", "Unknown protocol 'wsol-v3'.*wsol-v1"),
        ("--objective accuracy", "Unknown objective under wsol-v1 'accuracy'.*max_box_acc_v2"),
        ("--options lambda 1", "lambda.*lambda_"),
        ("--options alpha nan", "alpha.*nan"),
        ("--options alpha big", "wrong type.*alpha='big'"),
        ("--name a/b", "letters, digits.*'a/b'"),
        ("--storage gs://bucket/runs", "local path or s3://bucket/prefix but got 'gs://bucket/runs'"),
    ],
)
def test_a_wrong_option_is_a_usage_error(tune, arguments, message):
    code, line = tune(*arguments.split())
    assert (code, bool(re.search(message, line))) == (USAGE, True), line


@pytest.mark.parametrize("name", ["a?b=1", "100%25 runs", "{x}"])
def test_a_storage_that_urls_cut_is_refused(tune, tmp_path, name):
    code, line = tune("--storage", tmp_path / name)
    assert (code, "--storage cannot have " in line) == (USAGE, True)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a?b=1", "100%25 runs", "{x}", "r#1"])
def test_so_is_one_in_a_bucket_before_that_is_asked(tune, use_s3, unused_port, name):
    use_s3(unused_port)
    code, line = tune("--storage", f"s3://bucket/{name}")
    assert (code, "--storage cannot have " in line) == (USAGE, True), line


def test_a_name_or_place_that_holds_a_secret_is_refused_by_its_variable(tune, tmp_path, monkeypatch):
    monkeypatch.setenv("POSTGRES_PASSWORD", "mobilenet")
    for arguments in (("--name", "cam-mobilenet"), ("--storage", tmp_path / "mobilenet")):
        code, line = tune(*arguments)
        assert (code, "holds the value of POSTGRES_PASSWORD" in line, "mobilenet" in line) == (USAGE, True, False)
    assert not (tmp_path / "mobilenet").exists()


def test_an_unknown_method_is_answered_with_the_known_ones(refused, dataset, tmp_path):
    code, line = refused(train, *SMALL.split(), "--method", "bass", "--data", dataset, "--storage", tmp_path)
    assert (code, line) == (USAGE, f"Unknown method 'bass'. Did you mean 'bas'? Known: {', '.join(methods())}.")


def test_an_option_of_evaluate_or_import_is_checked_alike(refused, tmp_path):
    assert refused(evaluate, "--studdy", "s")[0] == USAGE
    assert refused(evaluate, "--batch-size", "0") == (USAGE, "batch_size must be at least 1 but got 0.")
    assert refused(import_dataset, "--out", tmp_path, "--tran", "10")[0] == USAGE
    assert refused(import_dataset, "--out", tmp_path, "--max-bad", "7")[0] == USAGE


def test_an_unknown_dataset_layout_is_answered_with_the_known_ones(refused, tmp_path):
    code, line = refused(import_dataset, "--dataset", "foldr", "--out", tmp_path)
    assert code == USAGE
    assert "Did you mean 'folder'?" in line
    assert "wsolevaluation" in line


def test_a_dataset_that_is_not_there(tune, tmp_path):
    code, line = tune("--data", tmp_path / "nothing")
    assert (code, f"There is no dataset at {tmp_path / 'nothing'}" in line) == (DATA, True)


def test_a_broken_manifest(tune, tmp_path):
    (tmp_path / "manifest.json").write_text('{"version": 1')
    code, line = tune("--data", tmp_path)
    assert (code, "import it again" in line) == (DATA, True)


def test_a_source_without_images(refused, tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "source" / split).mkdir(parents=True)
    arguments = ("--dataset", "folder", "--source", tmp_path / "source", "--out", tmp_path / "out")
    assert refused(import_dataset, *arguments)[0] == DATA
    assert refused(import_dataset, *arguments[:3], tmp_path / "nowhere", *arguments[4:])[0] == DATA


def test_a_class_without_training_images_is_named(refused, tmp_path):
    source = tmp_path / "source"
    (source / "train/bee").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (source / split / "ant").mkdir(parents=True)
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(source / split / "ant/image.jpg")
    (source / "boxes.csv").write_text("path,x0,y0,x1,y1\nval/ant/image.jpg,1,1,9,9\ntest/ant/image.jpg,1,1,9,9\n")
    code, line = refused(import_dataset, "--dataset", "folder", "--source", source, "--out", tmp_path / "out")
    kept = tmp_path / "out/quarantine.json"
    assert (code, line) == (DATA, f"1 classes have no training image: bee. All that were found are in {kept}.")


def test_a_study_that_is_not_finished_cannot_be_judged(refused, tmp_path):
    code, line = refused(evaluate, "--study", "s", "--storage", tmp_path)
    assert (code, line) == (DATA, f"{tmp_path} has no finished study 's'; finished ones: none.")


def test_storage_that_cannot_be_written(tune, tmp_path):
    (tmp_path / "file").write_text("")
    code, line = tune("--storage", tmp_path / "file")
    assert (code, str(tmp_path / "file") in line) == (RESOURCE, True), line


def test_an_mlflow_server_that_is_away_stops_no_study(tune, pretended_cluster, monkeypatch, unused_port, caplog):
    pretended_cluster(1, CPU=0.5)  # the study begins, and nothing can run
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{unused_port}")
    code, line = tune()
    assert (code, line.startswith("A trial of 1 workers needs 1 CPU")) == (RESOURCE, True), line
    assert "does not answer" in caplog.text
    assert "The work begins without it" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("uri", ["htp://mlflow:5000", "mlruns"])
def test_an_mlflow_address_that_is_none(tune, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, line = tune()
    assert (code, f"MLflow at {uri} is neither a server" in line) == (USAGE, True), line


def test_mlflow_that_is_not_given_beside_a_bucket(refused, s3_bucket, dataset):
    code, line = refused(tune_bas, *SMALL.split(), "--data", dataset, "--storage", f"{s3_bucket}/runs")
    assert (code, "MLFLOW_TRACKING_URI is not set" in line) == (USAGE, True), line


def test_a_study_database_that_cannot_be_opened(tune, pretended_cluster, tmp_path, unused_port):
    pretended_cluster(1, CPU=0.5)
    (tmp_path / "text.db").write_text("no database, but longer than the hundred bytes of the header of one " * 9)
    for url, why in (
        (f"sqlite:///{tmp_path}/missing/study.db", "unable to open database file"),
        (f"sqlite:///{tmp_path}/text.db", "file is not a database"),
        ("oracle+nothing://host/db", "oracle.nothing"),
        (f"postgresql+psycopg://user:secret@127.0.0.1:{unused_port}/x", ""),
    ):
        code, line = tune("--study-db", url)
        assert (code, f"{url.replace('user:secret', '***')} cannot be opened: " in line) == (RESOURCE, True), line
        assert why in line
        assert "secret" not in line


@pytest.fixture
def begun(tune, pretended_cluster, tmp_path) -> Path:
    """The database of a study that has begun, and in which nothing can run."""
    pretended_cluster(1, CPU=0.5)
    assert tune()[0] == RESOURCE
    return tmp_path / "runs/s/study.db"


def test_a_locked_study_database_is_told_before_optuna_waits_a_minute_for_it(tune, begun, monkeypatch):
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(database, "RDBStorage", lambda *_, **__: pytest.fail("Optuna was asked"))
    with contextlib.closing(sqlite3.connect(begun, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        code, line = tune()
        assert (code, line.endswith(f"{begun} cannot be opened: database is locked")) == (RESOURCE, True), line


def test_a_study_database_of_another_optuna(tune, begun):
    with contextlib.closing(sqlite3.connect(begun)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    code, line = tune()
    assert (code, "cannot be opened: " in line, "optuna" in line) == (RESOURCE, True, True), line


def test_a_study_of_another_version_of_this_code(tune, begun, monkeypatch):
    monkeypatch.setattr(ledger, "SCHEMA", 99)
    code, line = tune()
    assert (code, "another version of this code (format 3; this one has 99)" in line) == (USAGE, True), line


def test_trials_whose_database_is_gone(tune, begun):
    (begun.parent / "trials/0000").mkdir(parents=True)
    (begun.parent / "trials/0000/records.json").write_text("[]")
    assert tune()[0] == RESOURCE  # as before: nothing can run
    begun.unlink()
    code, line = tune()
    assert (code, "holds trials of a study 's' that its database does not know" in line) == (DATA, True), line
    assert tune()[0] == DATA  # a look did not make it known


def test_a_model_name_that_others_have(tune, begun, mlflow_file, tmp_path):
    client = mlflow.MlflowClient(mlflow_file)
    client.create_registered_model("s")
    client.create_model_version("s", str(tmp_path))
    code, line = tune()
    client.delete_registered_model("s")
    assert (code, "registered model 's' holds versions that no study made (1)" in line) == (USAGE, True), line


@pytest.mark.parametrize(
    ("importer", "classes", "told"),
    [
        ("cub", 200, "is for ilsvrc but .* is cub. Presets of 'bas' for that: .*bas-ext/table1/cub/resnet50"),
        ("wsolevaluation", 100, "is for ilsvrc but .*'wsolevaluation', 100 classes. is openimages"),
        ("tinyimagenet", 200, "is tinyimagenet. Presets of 'bas' for that: none; leave --preset out"),
        ("voc", 20, "is voc. Presets of 'bas' for that: .*voc12"),
        ("ilsvrc", 1000, None),
        ("cub", 5, None),
        ("folder", 200, None),
    ],
)
def test_a_preset_of_another_dataset(importer, classes, told, caplog):
    source = SimpleNamespace(source={"importer": importer})
    data = SimpleNamespace(uri="data", manifest=source, classes=("x",) * classes)
    preset = next(row.id for row in search_spaces.presets("bas").values() if row.dataset == "ilsvrc")
    if told:
        with pytest.raises(UsageError, match=told):
            check_preset_fits(preset, data)
    else:
        check_preset_fits(preset, data)
    assert ("data of your own" in caplog.text) == (told is None and importer != "ilsvrc")


@pytest.mark.parametrize("option", ["--storage", "--study-db", "MLFLOW_TRACKING_URI"])
def test_a_place_that_vanishes_with_the_submitted_job(tune, tmp_path, monkeypatch, option):
    copy = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    if option == "MLFLOW_TRACKING_URI":
        monkeypatch.setenv(option, "sqlite:///mlflow.db")
    arguments = {"--storage": ["--storage", "runs"], "--study-db": ["--study-db", "sqlite:///study.db"]}
    code, line = tune(*arguments.get(option, []))
    assert (code, "vanishes with it" in line, f"give {option}" in line) == (USAGE, True, True), line


def test_a_bucket_that_is_not_there(tune, s3_bucket):
    for arguments in (["--storage", "s3://nobody-has-this/runs"], ["--data", "s3://nobody-has-this/data"]):
        code, line = tune(*arguments)
        assert (code, "s3://nobody-has-this" in line) in [(RESOURCE, True), (DATA, True)], line


@pytest.mark.parametrize("place", ["--storage", "--data"])
def test_credentials_that_are_refused(tune, forbidding_s3, place):
    code, line = tune(place, "s3://bucket/place")
    assert (code, "denied" in line, "hush" in line) == (RESOURCE, True, False), line


def test_an_object_store_that_does_not_answer(tune, use_s3, unused_port):
    use_s3(unused_port)
    code, line = tune("--storage", "s3://bucket/place")
    assert (code, "s3://bucket/place cannot be reached" in line) == (RESOURCE, True), line


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_has_ended(tune, monkeypatch, unused_port, scheme):
    """Ray, which would ask for minutes whether it is back, is not called."""
    address = f"{scheme}127.0.0.1:{unused_port}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    code, line = tune()
    assert (code, f"RAY_ADDRESS={address} cannot be joined: " in line) == (RESOURCE, True), line
    assert "refused" in line


def test_a_cluster_that_cannot_be_joined(tune, monkeypatch):
    def no_cluster(**_):
        raise ConnectionError("Could not connect\nto it")

    monkeypatch.setattr(ray, "init", no_cluster)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        code, line = tune()
    assert (code, f"RAY_ADDRESS={address} cannot be joined: Could not connect" in line) == (RESOURCE, True), line


@pytest.fixture(scope="session")
def mlflow_file(tmp_path_factory) -> str:
    """An MLflow database that is made once: its tables take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def pretended_cluster(monkeypatch, mlflow_file, request):
    """`pretended_cluster(nodes, **resources)`: a cluster to be asked what it holds, and nothing more."""

    def pretend(nodes: int, **resources: float) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)  # in which no other study is called so
        monkeypatch.setattr(cluster, "connect", lambda nested: None)
        each = {name: amount / nodes for name, amount in resources.items()}
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": each}] * nodes)
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)

    return pretend


@pytest.mark.parametrize("job", [tune_bas, tune_cam])
def test_more_workers_than_the_cluster_holds(refused, pretended_cluster, dataset, tmp_path, job):
    pretended_cluster(1, CPU=4.0)
    code, line = refused(job, *SMALL.split(), "--data", dataset, "--storage", tmp_path, "--workers", "8")
    assert code == RESOURCE
    assert line.startswith("A trial of 8 workers needs 8.01 CPU but the whole cluster has 4 CPU: it could never start.")


def test_a_gpu_that_the_cluster_has_not(tune, pretended_cluster):
    pretended_cluster(1, CPU=4.0)
    code, line = tune("--device", "cuda")
    assert (code, "needs a GPU but the cluster has none" in line) == (RESOURCE, True)


def test_batch_norm_over_workers_without_gpus(tune, pretended_cluster):
    pretended_cluster(1, CPU=4.0)
    assert tune("--sync-batch-norm") == (USAGE, "sync_batch_norm needs GPUs but got 'cpu'.")


def test_local_storage_on_several_nodes(tune, pretended_cluster):
    pretended_cluster(3, CPU=12.0)
    code, line = tune()
    assert (code, "3 nodes are alive" in line, "use s3://" in line) == (USAGE, True, True), line


def test_a_study_begun_otherwise_says_what_differs(tune, pretended_cluster, refused, other_dataset):
    pretended_cluster(1, CPU=0.5)  # the study begins, and nothing can run
    assert tune()[0] == RESOURCE
    for arguments, what in (
        (["--objective", "gt_known_loc"], "train.objective was 'max_box_acc_v2', now 'gt_known_loc'"),
        (["--beta", "alpha+lambda"], "space.beta was"),
        (["--data", other_dataset], "data was"),
        (["--seed", "7"], "train.seed was 0, now 7"),
        (["--epochs", "3"], "train.recipe.epochs was 2, now 3"),
    ):
        code, line = tune(*arguments)
        assert (code, what in line, "give it another --name" in line) == (USAGE, True, True), line
    assert tune()[0] == RESOURCE  # none of that changed the study


@pytest.fixture
def other_dataset(dataset, tmp_path) -> Path:
    """The dataset with one class under another name."""
    manifest = json.loads((Path(dataset) / "manifest.json").read_text())
    manifest["classes"][0] = "another"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "other"


@pytest.fixture
def unused_port() -> int:
    """A port on which nobody answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def use_s3(monkeypatch):
    """`use_s3(port)`: point this process to the object store on `port`."""

    def use(port: int) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        monkeypatch.setattr(storage._ask_s3.retry, "wait", wait_none())
        storage._s3.cache_clear()

    yield use
    storage._s3.cache_clear()


@pytest.fixture
def forbidding_s3(use_s3):
    """An object store that refuses the credentials it is shown."""

    class Refuse(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            body = b"<Error><Code>InvalidAccessKeyId</Code><Message>unknown key</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = refuse

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    use_s3(server.server_port)
    yield
    server.shutdown()
    thread.join()
    server.server_close()
