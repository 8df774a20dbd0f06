"""One training job on Ray: the adapters between the loop and Ray Tune / Ray Train, and what becomes of a failure.

A trial on one device is a plain Tune function (with reused actors it costs tenths of a second beyond its training); a
trial on N workers builds a `TorchTrainer` inside. Both run `epochs`, report each record, and recover through the
checkpoint store alone.
"""

import contextlib
import ctypes
import faulthandler
import gc
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
import torch
from ray.tune.integration.ray_train import TuneReportCallback

from wsol_pipeline import redaction
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.errors import DataError, UsageError, WsolError
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.loop import NonFiniteError, Record, World, train
from wsol_pipeline.training.signals import Signals


class NoProgressError(WsolError):
    """A trial's workers died again and again without reaching another checkpoint."""


# Kinds of failure that belong to the trial: the study notes them and goes on. Whatever else happens to a worker (its
# machine, its network, the storage) is infrastructure: Ray starts the trial again from its checkpoint.
OWN_FAILURES: dict[str, tuple[type[BaseException], ...]] = {
    "nan": (NonFiniteError,),
    "out_of_memory": (torch.OutOfMemoryError, MemoryError),
    "data": (DataError,),
    "configuration": (UsageError, ValueError),
    "infrastructure": (NoProgressError,),
}
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
        torch_config=ray.train.torch.TorchConfig(timeout_s=max(1800, math.ceil(60 * job.stuck_minutes))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.workers, use_gpu=job.device == "cuda", resources_per_worker=resources_per_worker(job)
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{job.attempt:04d}",
            storage_path=store.path("ray"),
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
        resources["GPU"] = 1
    return resources


def epochs(job: Job, world: World) -> Iterator[Record]:
    """The records of a trial, from its newest checkpoint on. Raises `NoProgressError` when it can't get further."""
    checkpoints = CheckpointStore(Store.at(job.trial), job.attempt)
    if world.rank == 0:
        count_life(checkpoints)
    with watched(job.stuck_minutes * 60) as beat:
        data, world = open_dataset(job.data), replace(world, beat=beat)
        for record in train(job.train, data, checkpoints, world, job.reading, job.checkpoint_batches):
            faulthandler.cancel_dump_traceback_later()  # whose trial is pruned waits here until there is another
            yield record
            beat()


def count_life(checkpoints: CheckpointStore) -> None:
    """Note that a worker begins; raise `NoProgressError` if `LIVES` before it began where it would."""
    at = checkpoints.position() or Position()
    place, own = [at.epoch, at.samples], checkpoints.own
    try:
        before: dict[str, Any] = json.loads(own.read("lives.json"))
    except (FileNotFoundError, ValueError):  # none yet, or a damaged one: no reason for a trial to fail
        before = {}
    lives = before["lives"] + 1 if before.get("at") == place else 1
    if lives > LIVES:
        raise NoProgressError(
            f"its worker died {LIVES} times after {at.samples} samples of epoch {at.epoch + 1}; see Ray's logs"
        )
    own.write("lives.json", json.dumps({"at": place, "lives": lives}).encode())


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


def _distribute(module: torch.nn.Module, job: Job) -> torch.nn.Module:
    if job.train.sync_batch_norm:
        module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return ray.train.torch.prepare_model(module, move_to_device=False)


def _reset_process(job: Job) -> None:
    """Redact what this process says, and undo what an earlier trial may have left behind in it: it is reused."""
    redaction.install()
    torch.set_num_threads(job.cpus_per_worker)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.clear_autocast_cache()
    _return_memory()
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _return_memory() -> None:
    """Give freed memory back to the system: a trial runs in a thread, whose heap glibc would keep for nobody."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def _own_failures(job: Job, end_quietly: bool = True) -> Iterator[None]:
    """Note a failure of the trial's own, so that nobody tries it again; let all else through."""
    try:
        yield
    except tuple(error for errors in OWN_FAILURES.values() for error in errors) as error:
        kind = next(kind for kind, errors in OWN_FAILURES.items() if isinstance(error, errors))
        CheckpointStore(Store.at(job.trial), job.attempt).fail(kind, str(error))
        if not end_quietly:
            redaction.redact_error(error)
            raise
    except Exception as error:  # Ray prints it, and keeps it in files
        redaction.redact_error(error)
        raise


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
