"""Training on label images: one loop for IRN's boundaries and for segmentation networks, on one device and many.

As in `training/loop.py` a step's randomness is a function of (seed, epoch, sample), checkpoints are the only way of
recovery, and losses are means over the global batch: each rank hands in sums, with counts that are added over ranks.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
import ray.train.torch
import torch
from torch import Tensor, nn

from wsol_models.segmentation.losses import poly
from wsol_pipeline.errors import MismatchError, ResourceError
from wsol_pipeline.segmentation.crops import Batch, CropReader
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.guard import NonFiniteError
from wsol_pipeline.training.loop import Order, World, _fold
from wsol_pipeline.training.run import LIVES

Record = dict[str, Any]
LOOK = 5.0  # seconds between looks at what workers have recorded
Sums = Mapping[str, tuple[Tensor, Tensor]]  # name -> a sum over this rank's pixels or pairs, and over how many


class Learner(Protocol):
    """What is trained."""

    model: Any
    reader: CropReader

    def groups(self) -> list[dict[str, Any]]: ...  # of the optimizer, with the learning rates that a run begins with

    def sums(self, outputs: Any, labels_BHW: Tensor) -> Sums: ...

    def loss(self, sums: Sums) -> Tensor: ...  # of sums and counts over the global batch

    def validate(self, world: World) -> dict[str, Any]: ...  # figures, the same on every rank

    def files(self, val: Mapping[str, Any]) -> dict[str, bytes]: ...  # of the finished model


@dataclass(frozen=True)
class Schedule:
    """epochs: passes. momentum: of SGD. power: of the learning rate's fall to 0, updated `every` so many steps."""

    epochs: int
    momentum: float = 0.9
    power: float = 0.9
    every: int = 1


class Task(Protocol):
    """A training that can be sent to a worker."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def identity(self) -> str: ...  # whoever goes on from a checkpoint must train the same

    def learner(self, device: torch.device) -> Learner: ...


@dataclass
class State:
    """What changes while a run goes on."""

    position: Position = field(default_factory=Position)
    records: list[Record] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0


def fit(task: Task, checkpoints: CheckpointStore, world: World, checkpoint_batches: int = 0) -> Iterator[Record]:
    """Train from the newest checkpoint, or from the start; yield the record of every epoch that ends here.

    The record of the last epoch, marked `final`, comes after the finished model was written. Raises `NonFiniteError`
    before the optimizer would move on a NaN, `MismatchError` for a checkpoint of another training.
    """
    torch.manual_seed(0)
    learner, schedule = task.learner(world.device), task.schedule
    optimizer = torch.optim.SGD(learner.groups(), lr=0.0, momentum=schedule.momentum)
    rates = [group["lr"] for group in optimizer.param_groups]
    state = _resume(task, checkpoints, learner, optimizer, world)
    model = world.wrap(learner.model)
    for epoch in range(state.position.epoch, schedule.epochs):
        began, seen = time.monotonic(), state.position.samples
        since = 0
        for batch in learner.reader.epoch(epoch, seen, world.rank, world.size):
            _step(learner, model, optimizer, rates, schedule, state, batch, world)
            world.beat()
            state.position = Position(epoch, state.position.samples + batch.global_size)
            since += 1
            order = world.order(state.position)
            within = state.position.samples < learner.reader.plan.samples
            if order is not Order.GO_ON or (since == checkpoint_batches and within):
                _save(task, checkpoints, learner, optimizer, state, world)
                since = 0
            if order is Order.STOP:
                return
        yield _end_epoch(task, checkpoints, learner, optimizer, state, world, began, state.position.samples - seen)


def _step(
    learner: Learner, model: nn.Module, optimizer: torch.optim.SGD, rates: list[float], schedule: Schedule,
    state: State, batch: Batch, world: World,
) -> None:  # fmt: skip
    plan, (epoch, samples) = learner.reader.plan, (state.position.epoch, state.position.samples)
    step = epoch * plan.num_batches + samples // plan.batch_size
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = poly(rate, step, schedule.epochs * plan.num_batches, schedule.power, schedule.every)
    torch.manual_seed(_fold(plan.seed, epoch, samples))
    learner.model.train()
    outputs = model(batch.images_BCHW.to(world.device))
    loss = learner.loss(_global(learner.sums(outputs, batch.labels_BHW.to(world.device)), world))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in learner.model.parameters() if p.grad is not None])
    if not torch.isfinite(norm):
        raise NonFiniteError(f"The gradient is {float(norm)} in epoch {epoch + 1}: try a smaller learning rate.")
    optimizer.step()
    state.sums["loss"] = state.sums.get("loss", 0.0) + float(loss.detach()) / world.size
    state.steps += 1


def _global(sums: Sums, world: World) -> Sums:
    """Counts over all ranks. DDP takes the mean of the ranks' gradients, so this rank's sums are taken `size` times:
    what remains is the sum over all pixels over their number."""
    if world.size == 1:
        return sums
    counts = torch.stack([count.detach().float() for _, count in sums.values()])
    torch.distributed.all_reduce(counts)
    return {name: (total * world.size, count) for (name, (total, _)), count in zip(sums.items(), counts, strict=True)}


def _end_epoch(
    task: Task, checkpoints: CheckpointStore, learner: Learner, optimizer: torch.optim.SGD, state: State, world: World,
    began: float, images: int,
) -> Record:  # fmt: skip
    seconds, epoch = time.monotonic() - began, state.position.epoch
    losses = world.gather((state.sums.get("loss", 0.0), state.steps))
    val = learner.validate(world)
    record = {
        "epoch": epoch + 1, "time": time.time(), "seconds": round(seconds, 3),
        "images_per_second": round(images / max(seconds, 1e-9), 1), "learning_rate": optimizer.param_groups[0]["lr"],
        "train": {"loss": sum(loss for loss, _ in losses) / max(1, losses[0][1])}, "val": val,
        "final": epoch + 1 == task.schedule.epochs,
    }  # fmt: skip
    state.records, state.position, state.sums, state.steps = [*state.records, record], Position(epoch + 1), {}, 0
    if not record["final"]:
        _save(task, checkpoints, learner, optimizer, state, world)
    elif world.rank == 0:
        checkpoints.finish(learner.files(val), state.records)
    return record


def _save(
    task: Task, checkpoints: CheckpointStore, learner: Learner, optimizer: torch.optim.SGD, state: State, world: World
) -> None:
    loss = sum(world.gather(state.sums.get("loss", 0.0)))
    if world.rank == 0:
        kept = {"model": learner.model.state_dict(), "optimizer": optimizer.state_dict(), "identity": task.identity,
                "loss": loss, "steps": state.steps}  # fmt: skip
        checkpoints.save(state.position, kept, state.records)


def _resume(
    task: Task, checkpoints: CheckpointStore, learner: Learner, optimizer: torch.optim.SGD, world: World
) -> State:
    saved = checkpoints.newest() if world.rank == 0 else None
    folder = world.gather(saved.folder if saved else None)[0]
    if folder and not saved:
        saved = checkpoints.load(folder)
    if saved is None:
        return State()
    if saved.state["identity"] != task.identity:
        raise MismatchError(f"The checkpoint {checkpoints.trial.path(saved.folder)} is of another training.")
    learner.model.load_state_dict(saved.state["model"])
    optimizer.load_state_dict(saved.state["optimizer"])
    loss = saved.state["loss"] if world.rank == 0 else 0.0  # the saved sum is over all ranks
    return State(saved.position, saved.records, {"loss": loss}, saved.state["steps"])


def run_fit(
    task: Task, trial: Store, attempt: int, workers: int, device: str, on_record: Callable[[Record], None],
    checkpoint_batches: int = 0,
) -> Store:  # fmt: skip
    """Train to the end, here or on `workers` workers of Ray, and return the folder of the finished model."""
    checkpoints = CheckpointStore(trial, attempt)
    if (final := checkpoints.final()) is not None:
        return final
    if not ray.is_initialized():
        for record in fit(task, checkpoints, World(device=torch.device(device)), checkpoint_batches):
            on_record(record)
    else:
        with _telling(checkpoints, on_record):
            _on_workers(task, checkpoints, workers, device, checkpoint_batches)
    if (final := checkpoints.final()) is None:
        raise ResourceError(f"The training in {trial.uri} ended before its last epoch: the same command continues it.")
    return final


@contextlib.contextmanager
def _telling(checkpoints: CheckpointStore, on_record: Callable[[Record], None]) -> Iterator[None]:
    """Hand on the records that workers leave in checkpoints, while they train and when they have ended."""
    over, told = threading.Event(), len(checkpoints.records())

    def tell() -> None:
        nonlocal told
        for record in checkpoints.records()[told:]:
            told += 1
            on_record(record)

    def watch() -> None:
        while not over.wait(LOOK):
            with contextlib.suppress(ResourceError):  # the storage is away: the next look may find it
                tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    tell()


def _on_workers(task: Task, checkpoints: CheckpointStore, workers: int, device: str, checkpoint_batches: int) -> None:
    config = {"task": task, "trial": checkpoints.trial.uri, "attempt": checkpoints.attempt, "device": device,
              "checkpoint_batches": checkpoint_batches}  # fmt: skip
    ray.train.torch.TorchTrainer(
        worker_loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=device == "cuda"),
        run_config=ray.train.RunConfig(
            name=f"fit-{checkpoints.attempt:04d}",
            storage_path=checkpoints.trial.url("ray"),
            failure_config=ray.train.FailureConfig(max_failures=LIVES),
        ),
    ).fit()


def worker_loop(config: dict[str, Any]) -> None:
    """What each worker of a `TorchTrainer` runs."""
    context = ray.train.get_context()
    world = World(rank=context.get_world_rank(), size=context.get_world_size(), device=ray.train.torch.get_device())
    if world.size > 1:
        world = replace(world, wrap=lambda module: ray.train.torch.prepare_model(module, move_to_device=False))
    checkpoints = CheckpointStore(Store.at(config["trial"]), config["attempt"])
    for record in fit(config["task"], checkpoints, world, config["checkpoint_batches"]):
        ray.train.report({"epoch": record["epoch"], "loss": record["train"]["loss"]})


def digest(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True)
