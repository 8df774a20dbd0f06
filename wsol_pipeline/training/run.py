"""One training job on Ray: the adapters between the loop and Ray Tune / Ray Train, and what becomes of a failure.

A trial on one device is a plain Tune function (with reused actors it costs tenths of a second beyond its training); a
trial on N workers builds a `TorchTrainer` inside. Both run `epochs`, report each record, and recover through the
checkpoint store alone.
"""

import contextlib
import ctypes
import errno
import faulthandler
import functools
import gc
import json
import math
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
import torch
from ray.tune.integration.ray_train import TuneReportCallback

import wsol_pipeline.data
from wsol_models import LocalizationMethod
from wsol_pipeline import redaction
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.errors import DataError, MismatchError, ResourceError, UsageError, WsolError
from wsol_pipeline.redaction import printable
from wsol_pipeline.storage import STORAGE_ERRORS, Store
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.guard import NonFiniteError
from wsol_pipeline.training.loop import Record, World, ddp_options, train
from wsol_pipeline.training.signals import Signals


class NoProgressError(WsolError):
    """A trial's workers died again and again without reaching another checkpoint."""


class OutageError(ResourceError):
    """Storage or a server failed a trial's workers again and again, at one checkpoint."""


# Kinds of failure that belong to the trial: the study notes them and goes on.
OWN_FAILURES: dict[str, tuple[type[BaseException], ...]] = {
    "nan": (NonFiniteError,),
    "out_of_memory": (torch.OutOfMemoryError, MemoryError),
    "configuration": (UsageError, ValueError),
    "infrastructure": (NoProgressError,),
}
# Kinds of fault around a trial, which every other would meet too: it is not told FAIL, and goes on once all is mended.
# Whatever else happens to a worker (its machine, its network) makes Ray start the trial again from its checkpoint.
FAULTS: dict[str, tuple[type[BaseException], ...]] = {
    "mismatch": (MismatchError,),
    "data": (DataError,),
    "storage": (OutageError, PermissionError, FileNotFoundError, NotADirectoryError),
}
CROWDED = "crowded"  # kind of the fault of a trial whose share of a GPU was too small
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Of torch in a plain RuntimeError: its own, and what cuBLAS and cuDNN say when a GPU is full.
_NO_MEMORY = re.compile("out of memory|can't allocate memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)
_UNREPEATABLE = re.compile("does not have a deterministic implementation")  # torch, under --deterministic
_READING = str(Path(wsol_pipeline.data.__path__[0]))
LIVES = 4  # in a row that may begin at one checkpoint; whoever gets further may die as often as spot machines do
RAY_RETRIES = 100  # deaths of a trial in all, of which Ray counts none that it was told of beforehand


def run_on_one_device(payload: dict[str, Any]) -> None:
    """A Tune function trainable: train the `Job` in `payload`, report each record to Tune."""
    job = from_dict(Job, payload)
    _reset_process(job)
    with _own_failures(job):
        for record in epochs(job, World(device=torch.device(job.device), orders=_signals(job, [node_id()]))):
            ray.tune.report(reportable(record))


def run_on_workers(payload: dict[str, Any]) -> None:
    """A Tune function trainable: train the `Job` in `payload` with DDP on `workers` workers of their own."""
    fit_trainer(from_dict(Job, payload), payload, callbacks=[TuneReportCallback()])


def fit_trainer(job: Job, payload: dict[str, Any], callbacks: list[Any] | None = None) -> None:
    """Build and fit the `TorchTrainer` of `job`. Raises what Ray raises once its retries are spent."""
    store = Store.at(job.trial)
    trainer = ray.train.torch.TorchTrainer(
        worker_loop,
        train_loop_config={"job": payload, "controller": node_id()},  # Ray keeps the group's controller beside this
        # a collective waits at least as long as a worker may stand still: who that is says its own log
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if job.device == "cuda" else "gloo",  # what lies on the host stays off the GPU
            timeout_s=max(1800, math.ceil(60 * job.stuck_minutes)),
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.workers, use_gpu=job.device == "cuda", resources_per_worker=resources_per_worker(job)
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{job.attempt:04d}",
            storage_path=store.url("ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=LIVES,  # then this trial's own process begins anew: only that tells the driver
                controller_failure_limit=RAY_RETRIES,  # type: ignore[call-arg]  # Train V2's own class has it
            ),
            callbacks=callbacks,
        ),
    )
    trainer.fit()


def worker_loop(config: dict[str, Any]) -> None:
    """What each worker of a `TorchTrainer` runs: the same epochs, in a DDP world."""
    job, context = from_dict(Job, config["job"]), ray.train.get_context()
    _reset_process(job)
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        wrap=lambda module: _distribute(module, job),
    )
    world = replace(world, orders=_signals(job, [config["controller"], *world.gather(node_id())]))
    if CheckpointStore(Store.at(job.trial), job.attempt).failed():
        return  # Ray started the group again after a failure of the trial's own: it would only fail again
    with _own_failures(job, end_quietly=False):  # the other ranks wait for this one: the group has to be torn down
        for record in epochs(job, world):
            ray.train.report(reportable(record))


def resources_per_worker(job: Job) -> dict[str, float]:
    """What Ray reserves for each worker of `job`."""
    resources: dict[str, float] = {"CPU": job.cpus_per_worker}
    if job.device == "cuda":
        resources["GPU"] = job.gpus
    return resources


def share_memory(job: Job) -> None:
    """Let this process take no more of its GPU's memory than the job's share: others train on the rest."""
    if job.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(job.gpus)


def epochs(job: Job, world: World) -> Iterator[Record]:
    """The records of a trial, from its newest checkpoint on. Raises `NoProgressError` when it can't get further."""
    checkpoints = CheckpointStore(Store.at(job.trial), job.attempt)
    if world.rank == 0:
        count_life(checkpoints)
    with watched(job.stuck_minutes * 60) as beat:
        data, world = open_data(job), replace(world, beat=_both(beat, world))
        for record in train(
            job.train, data, checkpoints, world, job.reading, job.checkpoint_batches, job.study, job.sources
        ):
            faulthandler.cancel_dump_traceback_later()  # whose trial is pruned waits here until there is another
            yield record
            beat()


def open_data(job: Job) -> Dataset:
    """The data of `job`. Raises `MismatchError` if other data lies there than the study was begun with."""
    data = open_dataset(job.data)
    if job.fingerprint and data.fingerprint != job.fingerprint:
        raise MismatchError(
            f"{data.uri} holds other data (fingerprint {data.fingerprint[:12]}) than the study was begun with "
            f"({job.fingerprint[:12]}): bring that back, or give another --name."
        )
    return data


def _both(beat: Callable[[], None], world: World) -> Callable[[], None]:
    """`beat` for this process's own watch; rank 0 also tells the driver, which ends a process that is stopped."""
    signals = world.orders if world.rank == 0 and isinstance(world.orders, Signals) else None
    if signals is None:
        return beat

    def both() -> None:
        beat()
        signals.beat()

    both()
    return both


def count_life(checkpoints: CheckpointStore) -> None:
    """Note that a worker begins; raise `NoProgressError` if `LIVES` before it began where it would.

    `OutageError` if the last of them said what it could not reach.
    """
    at = checkpoints.position() or Position()
    place, before = [at.epoch, at.samples], _lives(checkpoints)
    lives = before["lives"] + 1 if before.get("at") == place else 1
    if lives > LIVES:
        where = f"died {LIVES} times after {at.samples} samples of epoch {at.epoch + 1}"
        checkpoints.own.remove("lives.json")  # if the trial gets another chance, it is a whole one
        if why := before.get("why"):
            raise OutageError(f"its worker {where}, at last of: {why}")
        raise NoProgressError(f"its worker {where}; see Ray's logs")
    checkpoints.own.write("lives.json", json.dumps({"at": place, "lives": lives}).encode())


def _lives(checkpoints: CheckpointStore) -> dict[str, Any]:
    try:
        return json.loads(checkpoints.own.read("lives.json"))
    except (FileNotFoundError, ValueError):  # none yet, or a damaged one: no reason for a trial to fail
        return {}


def _note_outage(checkpoints: CheckpointStore, error: BaseException) -> None:
    """Keep what a worker could not reach, for the one that finds that none got any further."""
    with contextlib.suppress(*STORAGE_ERRORS):  # which may be the very place
        lives = _lives(checkpoints) | {"why": printable(str(error))[:500]}
        checkpoints.own.write("lives.json", json.dumps(lives).encode())


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[Callable[[], None]]:
    """Within, this process ends unless what this gives is called every so many `seconds`.

    A peer that hangs or a mount that is gone raises nothing: one waits, maybe with Python's lock, so a thread of C's
    looks on. It writes the stacks of all threads to the process's log.
    """

    def beat() -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)

    beat()
    try:
        yield beat
    finally:
        faulthandler.cancel_dump_traceback_later()


def _signals(job: Job, nodes: list[str]) -> Signals:
    return Signals(CheckpointStore(Store.at(job.trial), job.attempt), nodes)


def node_id() -> str:
    """Ray's id of the node that this process belongs to."""
    return ray.get_runtime_context().get_node_id()


def _distribute(module: LocalizationMethod, job: Job) -> torch.nn.Module:
    options = ddp_options(module)
    if job.train.sync_batch_norm:
        module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return ray.train.torch.prepare_model(module, move_to_device=False, parallel_strategy_kwargs=options)


def _reset_process(job: Job) -> None:
    """Redact what this process says, and undo what an earlier trial may have left behind in it: it is reused."""
    _spare_imports()
    redaction.install()
    torch.set_num_threads(job.cpus_per_worker)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.clear_autocast_cache()
    _return_memory()
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    share_memory(job)


@functools.cache
def _spare_imports() -> None:
    """Walk over no object of the modules any more, 600,000 of them: it took longer than all else between two trials."""
    gc.collect()
    gc.freeze()


def _return_memory() -> None:
    """Give freed memory back to the system: a trial runs in a thread, whose heap glibc would keep for nobody."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def _own_failures(job: Job, end_quietly: bool = True) -> Iterator[None]:
    """Note a failure of the trial's own, or a fault around it, so that Ray does not try it again; pass on all else."""
    checkpoints = CheckpointStore(Store.at(job.trial), job.attempt)
    try:
        yield
    except Exception as error:
        redaction.redact_error(error)  # Ray prints what it gets, and keeps it in files
        if kind := fault_of(error, job.gpus < 1):
            checkpoints.note_fault(kind, _told(error))
        elif kind := failure_of(error):
            checkpoints.fail(kind, _told(error))
        elif isinstance(error, (ResourceError, *STORAGE_ERRORS)):
            _note_outage(checkpoints, error)
        if not (kind and end_quietly):
            raise


def failure_of(error: BaseException) -> str:
    """The kind of a failure that is the trial's own; "" of any other."""
    if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
        return "out_of_memory"
    if isinstance(error, RuntimeError) and (_UNREPEATABLE.search(str(error)) or _is_of_compiler(error)):
        return "configuration"
    return next((kind for kind, errors in OWN_FAILURES.items() if isinstance(error, errors)), "")


def _is_of_compiler(error: BaseException) -> bool:
    """Whether --compile failed; told without importing its modules, which takes a second."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


def fault_of(error: BaseException, shares: bool = False) -> str:
    """The kind of a fault that no trial can help; "" of anything else. `shares`: it had a part of a GPU alone."""
    if shares and failure_of(error) == "out_of_memory":
        return CROWDED
    if isinstance(error, OSError) and error.errno in _FULL:
        return "storage"
    if type(error) is ValueError and _raised_in(error, _READING):  # of NumPy, Arrow, OpenCV, about what they read
        return "data"
    return next((kind for kind, errors in FAULTS.items() if isinstance(error, errors)), "")


def _raised_in(error: BaseException, folder: str) -> bool:
    """Whether a file below `folder` is among those that `error` came through."""
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(file.startswith(folder) for file in files)


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__


def reportable(record: Record) -> dict[str, Any]:
    """The part of a record that travels to the driver through Ray: numbers it decides and prints by."""
    value = record["value"]
    return {
        "epoch": record["epoch"],
        "value": value if math.isfinite(value) else 0.0,
        "searched": record["searched"],
        "final": record["final"],
        "loss": record["train"]["loss"],
        "images_per_second": record["images_per_second"],
        "device_seconds": record["device_seconds"],
    }


def trainable(job: Job) -> Callable[[dict[str, Any]], None]:
    """The Tune function for trials of this shape."""
    return run_on_one_device if job.workers == 1 else run_on_workers
