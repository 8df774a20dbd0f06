"""The adapters to Ray: which failures belong to the trial, and what a reused process must not carry over."""

import dataclasses
import errno
import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import ray.tune
import torch
from torch._inductor.exc import CppCompileError

from wsol_models import cam
from wsol_pipeline.data.images import resize_to
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.errors import DataError, MismatchError, ResourceError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.training import run
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.config import Job, to_dict
from wsol_pipeline.training.guard import NonFiniteError
from wsol_pipeline.training.loop import Order, World, train


@pytest.fixture
def reports(monkeypatch) -> list[dict]:
    """What trials in this process, which is no worker of a cluster, report to Ray Tune."""
    found: list[dict] = []
    monkeypatch.setattr(run, "_signals", lambda job, nodes: None)
    monkeypatch.setattr(run, "node_id", lambda: "this")
    monkeypatch.setattr(ray.tune, "report", found.append)
    return found


@pytest.fixture
def make_job(dataset, reading, make_config, tmp_path):
    """`make_job(name, method, **changes)`: the job of a trial in a folder `name`."""

    def make(name: str = "trial", method: str = "cam", **changes) -> Job:
        return Job(make_config(method, **changes), dataset.uri, str(tmp_path / name), attempt=1, reading=reading)

    return make


def store_of(job: Job) -> CheckpointStore:
    return CheckpointStore(Store.at(job.trial), job.attempt)


def test_a_trial_reports_the_numbers_of_each_epoch(make_job, reports):
    run.run_on_one_device(to_dict(make_job()))
    assert [(r["epoch"], r["searched"], r["final"]) for r in reports] == [(1, False, False), (2, True, True)]
    assert set(reports[0]) == {"epoch", "value", "searched", "final", "loss", "images_per_second", "device_seconds"}
    json.dumps(reports, allow_nan=False)


def test_a_nan_ends_the_trial_quietly_and_says_why(make_job, reports, monkeypatch):
    monkeypatch.setattr(cam, "losses", lambda output, config: {"cls": output.logits_BK.sum() * float("nan")})
    job = make_job()
    run.run_on_one_device(to_dict(job))
    failure = json.loads(store_of(job).own.read("failure.json"))
    assert failure["kind"] == "nan"
    assert "smaller learning rate" in failure["message"]
    assert reports == []


def test_a_data_set_that_is_gone_is_no_failure_of_the_trial(make_job, reports, tmp_path):
    job = make_job()
    run.run_on_one_device(to_dict(job) | {"data": str(tmp_path / "nothing")})
    assert store_of(job).failure() is None
    assert store_of(job).failed()
    assert store_of(job).take_fault()["kind"] == "data"
    assert not store_of(job).failed()


def test_data_that_was_replaced_is_not_trained_on(make_job, reports, dataset):
    job = make_job()
    run.run_on_one_device(to_dict(job) | {"fingerprint": dataset.fingerprint})
    assert len(reports) == 2
    reports.clear()
    other = make_job("other")
    run.run_on_one_device(to_dict(other) | {"fingerprint": "f" * 64})
    fault = store_of(other).take_fault()
    assert fault["kind"] == "mismatch"
    assert f"fingerprint {dataset.fingerprint[:12]}) than the study was begun with (ffffffffffff)" in fault["message"]
    assert reports == []


def test_a_checkpoint_of_other_data_is_not_gone_on_from(make_job, reports, tmp_path, dataset):
    job = make_job()
    record = next(run.epochs(job, World()))
    assert record["epoch"] == 1
    state = store_of(job).newest().state
    other = tmp_path / "other"
    import_dataset(
        synthetic.read(Path(), synthetic.Options(train=64, val=25, test=24, classes=3, size=40, seed=9)),
        Store.at(other), name="tiny", origin={"importer": "synthetic"},
    )  # fmt: skip
    run.run_on_one_device(to_dict(job) | {"data": str(other)})
    assert store_of(job).take_fault()["kind"] == "mismatch"
    assert store_of(job).newest().state["config_hash"] == state["config_hash"]


def test_a_finished_model_says_of_which_study_it_is(make_job, reports):
    job = make_job()
    run.run_on_one_device(to_dict(job) | {"study": "1" * 32})
    assert json.loads(store_of(job).final().read("model.json"))["study"] == "1" * 32


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NonFiniteError("nan"), "nan"),
        (torch.OutOfMemoryError("full"), "out_of_memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (UsageError("wrong"), "configuration"),
        (RuntimeError("fold_cuda does not have a deterministic implementation, but you set"), "configuration"),
        (ValueError("wrong"), "configuration"),
        (CppCompileError(["g++", "kernel.cpp"], "fatal error: Python.h: No such file or directory"), "configuration"),
    ],
)
def test_a_failure_of_the_trials_own_is_noted(make_job, error, kind):
    job = make_job()
    with run._own_failures(job):
        raise error
    assert store_of(job).failure() == {"kind": kind, "message": str(error) or type(error).__name__}
    assert store_of(job).take_fault() is None
    with pytest.raises(type(error)), run._own_failures(job, end_quietly=False):
        raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("broken"), "data"),
        (MismatchError("other data"), "mismatch"),
        (OSError(errno.ENOSPC, "full"), "storage"),
        (OSError(errno.EROFS, "read-only"), "storage"),
        (PermissionError(errno.EACCES, "forbidden"), "storage"),
        (FileNotFoundError(errno.ENOENT, "gone"), "storage"),
        (run.OutageError("away"), "storage"),
    ],
)
def test_a_fault_around_the_trial_is_no_failure_of_its_own(make_job, error, kind):
    job = make_job()
    with run._own_failures(job):
        raise error
    assert store_of(job).failure() is None
    assert store_of(job).take_fault() == {"kind": kind, "message": str(error)}
    with pytest.raises(type(error)), run._own_failures(job, end_quietly=False):
        raise error
    assert store_of(job).failed()  # so that a group that Ray starts again ends


def test_a_value_error_of_what_reads_the_data_is_the_datas(make_job):
    job = make_job()
    with run._own_failures(job):
        resize_to(torch.zeros(3, 4, 4, dtype=torch.uint8), [1])  # one side for two
    assert store_of(job).take_fault()["kind"] == "data"


@pytest.mark.parametrize("error", [OSError("disk"), ConnectionError(), ResourceError("away"), RuntimeError("cuda")])
def test_what_another_machine_may_not_suffer_goes_to_ray(make_job, error):
    job = make_job()
    with pytest.raises(type(error)), run._own_failures(job):
        raise error
    assert store_of(job).failure() is None
    assert store_of(job).take_fault() is None


def test_a_server_that_stays_away_is_no_failure_of_the_trial(make_job, reports):
    job = make_job()
    for _ in range(run.LIVES):
        run.count_life(store_of(job))
        with pytest.raises(ResourceError), run._own_failures(job):
            raise ResourceError("s3://data cannot be reached")
    run.run_on_one_device(to_dict(job))
    assert store_of(job).failure() is None
    fault = store_of(job).take_fault()
    assert fault["kind"] == "storage"
    assert "died 4 times" in fault["message"]
    assert "s3://data cannot be reached" in fault["message"]
    run.run_on_one_device(to_dict(job))  # it is back
    assert len(reports) == 2


def test_a_trial_tells_its_driver_that_it_goes_on(make_job, monkeypatch):
    beaten = []
    monkeypatch.setattr(run.Signals, "beat", lambda self: beaten.append(1))
    monkeypatch.setattr(run.Signals, "__call__", lambda self, position: Order.GO_ON)
    job = make_job()
    list(run.epochs(job, World(orders=run._signals(job, []))))
    assert len(beaten) == 1 + 2 * 5 + 3 * 2  # at its begin, and as the watch of its own


def test_what_a_trial_left_is_freed_without_walking_over_the_modules(make_job):
    run._reset_process(make_job())
    left = torch.nn.Linear(1, 1)
    left.around, freed = [left], weakref.ref(left)
    del left
    run._reset_process(make_job())
    assert freed() is None
    assert gc.get_freeze_count() > 100_000  # objects of torch and what comes with it


def test_a_reused_process_starts_anew(make_job):
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    run._reset_process(make_job())
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert torch.get_num_threads() == 1


def test_a_trial_after_another_gives_what_it_gives_alone(make_job, reports, outcome):
    alone = make_job("alone", "bas")
    run.run_on_one_device(to_dict(alone))
    for number, job in enumerate((make_job("before", "cam", precision="bfloat16", seed=5), make_job("after", "bas"))):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(number)
        run.run_on_one_device(to_dict(job))
    first, second = outcome(store_of(alone)), outcome(store_of(make_job("after", "bas")))
    assert first.records == second.records
    assert all(torch.equal(weight, second.weights[name]) for name, weight in first.weights.items())


@pytest.mark.parametrize(("device", "expected"), [("cpu", {"CPU": 2}), ("cuda", {"CPU": 2, "GPU": 1})])
def test_each_worker_reserves_its_cores_and_device(make_job, device, expected):
    job = Job(**{**vars(make_job()), "device": device, "cpus_per_worker": 2})
    assert run.resources_per_worker(job) == expected


def test_a_trial_that_shares_a_gpu_reserves_its_part_and_takes_as_much_of_its_memory(make_job, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    job = Job(**{**vars(make_job()), "device": "cuda", "gpus": 0.25})
    assert run.resources_per_worker(job) == {"CPU": 1, "GPU": 0.25}
    run.share_memory(job)
    run.share_memory(dataclasses.replace(job, gpus=1.0))  # in the same process, which is used again
    run.share_memory(make_job())
    assert taken == [0.25, 1.0]


@pytest.mark.parametrize(("gpus", "fault"), [(0.25, "crowded"), (1.0, None)])
def test_too_little_memory_is_the_trials_own_failure_only_if_it_had_a_gpu(make_job, reports, monkeypatch, gpus, fault):
    def losses(output, config):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cam, "losses", losses)
    job = make_job()
    run.run_on_one_device(to_dict(job) | {"gpus": gpus})
    assert (store_of(job).failure() or {}).get("kind") == (None if fault else "out_of_memory")
    assert (store_of(job).take_fault() or {}).get("kind") == fault


@pytest.mark.parametrize(("workers", "expected"), [(1, run.run_on_one_device), (2, run.run_on_workers)])
def test_only_several_workers_need_a_trainer(make_job, workers, expected):
    assert run.trainable(Job(**{**vars(make_job()), "workers": workers})) is expected


def test_a_worker_may_die_as_often_as_it_gets_further(make_job):
    store = store_of(make_job())
    for epoch in range(3):
        for _ in range(run.LIVES):
            run.count_life(store)
        store.save(Position(epoch, 14), {}, [])
    for _ in range(run.LIVES):
        run.count_life(store)
    with pytest.raises(run.NoProgressError, match=f"died {run.LIVES} times after 14 samples of epoch 3"):
        run.count_life(store)


def test_a_damaged_count_of_lives_is_no_failure_of_the_trial(make_job, reports):
    job = make_job()
    store_of(job).own.write("lives.json", b'{"at": [0,')
    run.run_on_one_device(to_dict(job))
    assert store_of(job).failure() is None
    assert len(reports) == 2


def test_lives_without_progress_end_the_trial_and_say_so(make_job, reports):
    job = make_job()
    for _ in range(run.LIVES):
        run.count_life(store_of(job))
    run.run_on_one_device(to_dict(job))
    assert store_of(job).failure()["kind"] == "infrastructure"
    assert reports == []


@pytest.mark.parametrize(("seconds", "stands", "code"), [(3, 60, 1), (60, 0.2, 0)])
def test_a_process_that_stands_still_says_where_and_ends(seconds, stands, code):
    program = (
        "import sys, time\nfrom wsol_pipeline.training.run import watched\n"
        f"with watched({seconds}) as beat:\n    beat()\n    time.sleep({stands})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == code
    assert ("Timeout" in ended.stderr, 'File "<string>", line 5' in ended.stderr) == (bool(code), bool(code))


def test_every_batch_of_training_and_validation_is_a_beat(dataset, reading, make_config, tmp_path):
    """64 images by 14 are 5 batches and 25 are 2; of the last epoch validation runs once more for each image's hits."""
    beats = []
    store = CheckpointStore(Store.at(tmp_path), 1)
    list(train(make_config(), dataset, store, World(beat=lambda: beats.append(1)), reading))
    assert len(beats) == 2 * 5 + 3 * 2
