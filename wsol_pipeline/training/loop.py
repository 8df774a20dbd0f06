"""The training loop: one generator that yields a record per epoch, the same for one device and for N workers.

What differs between them (wrapping in DDP, merging counts, where records go) comes in as a `World` and leaves through
the generator. Nothing here knows Ray, a method or a dataset by name.

Randomness: rows and their crops are functions of (seed, epoch, image id); whatever a network draws, of (seed, step),
equally on every rank. So there is no generator state that a restart or a resized world could lose.
"""

import contextlib
import enum
import json
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import safetensors.torch
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn

import wsol_models
from wsol_models import LocalizationMethod
from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.plan import EpochPlan
from wsol_pipeline.data.reader import Batch, ReadConfig, TrainReader
from wsol_pipeline.device import to_device
from wsol_pipeline.errors import MismatchError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.training.ahead import ahead
from wsol_pipeline.training.arithmetic import Arithmetic, arithmetic
from wsol_pipeline.training.build import build_method, build_readout, fixed_setting
from wsol_pipeline.training.checkpoint import LAST, CheckpointStore, Position, write_sealed
from wsol_pipeline.training.compiling import compiled
from wsol_pipeline.training.config import Reading, TrainConfig, as_kept, config_hash
from wsol_pipeline.training.guard import Guard
from wsol_pipeline.training.model import (
    ARITHMETIC,
    BACKBONE,
    DESCRIPTION,
    FORMAT,
    TRAINING_IMAGES,
    VAL_COUNTS,
    VAL_IMAGES,
    WEIGHTS,
)
from wsol_pipeline.training.optim import build_optimizer, learning_rate, set_learning_rate
from wsol_pipeline.training.selecting import Choosing, Selection, Sources, finer, make_choosing
from wsol_pipeline.training.used import CHECKPOINTS, STEPS, VALIDATION, Used

Record = dict[str, Any]
AHEAD = 2  # batches that are made while one is trained on


class Order(enum.IntEnum):
    """What a run is told to do after a batch."""

    GO_ON = 0
    SAVE = 1
    STOP = 2  # after a checkpoint


@dataclass(frozen=True)
class World:
    """This process among the workers of one run. The defaults are one device alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[LocalizationMethod], nn.Module] = lambda module: module  # into DDP, where there is more than one
    orders: Callable[[Position], Order] | None = None  # rank 0's, told the position, says what to do there
    beat: Callable[[], None] = lambda: None  # called after each batch, of validation too

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def total(self, counts: NDArray[Any]) -> NDArray[Any]:
        """The sum of whole numbers over all ranks: as much memory as one rank's, however many there are."""
        if self.size == 1:
            return counts
        summed = torch.tensor(counts)  # on the host, by gloo
        torch.distributed.all_reduce(summed)
        return summed.numpy()

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank rank 0's buffers: one broadcast for each of their types.

        DDP does so before every training forward, so the others' last update would be dropped there anyway: a mean over
        ranks would be of that one step, and is none for counts and memories.
        """
        if self.size == 1:
            return
        alike: dict[torch.dtype, list[Tensor]] = {}
        for buffer in module.buffers():
            alike.setdefault(buffer.dtype, []).append(buffer)
        for buffers in alike.values():
            flat = torch.cat([buffer.flatten() for buffer in buffers])
            torch.distributed.broadcast(flat, src=0)
            for buffer, shared in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(shared.view_as(buffer))

    def order(self, position: Position) -> Order:
        """What rank 0 was told to do: the same on every rank, so that all do it after the same batch."""
        if self.orders is None:
            return Order.GO_ON
        order = self.orders(position) if self.rank == 0 else Order.GO_ON
        if self.size == 1:
            return order
        told = torch.tensor([order], dtype=torch.uint8)  # by gloo: no rank waits for its GPU
        torch.distributed.broadcast(told, src=0)
        return Order(int(told.item()))


@dataclass
class Progress:
    """What changes while a run goes on, beside the weights: its position, its curve, the sums of the open epoch."""

    position: Position
    records: list[Record]
    sums: dict[str, Tensor]  # of the loss and its terms over this rank's rows; on the device, so adding never waits
    rows: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best epoch, with `keep` of it

    def add(self, terms: dict[str, Tensor], rows: int) -> None:
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.detach().double() * rows
        self.rows += rows

    def over_ranks(self, world: World) -> tuple[dict[str, float], int]:
        """The open epoch's sums and rows over all ranks."""
        parts = world.gather(({name: float(total) for name, total in self.sums.items()}, self.rows))
        names = parts[0][0]
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) for name in names}, sum(rows for _, rows in parts)


@dataclass
class Run:
    """The parts of one run, put together: everything the steps below share."""

    config: TrainConfig
    dataset: Dataset
    checkpoints: CheckpointStore
    world: World
    method: LocalizationMethod
    model: nn.Module  # the method as the optimizer's steps see it: maybe wrapped in DDP, maybe compiled
    optimizer: torch.optim.SGD
    guard: Guard
    progress: Progress
    plan: EpochPlan
    choosing: Choosing
    readout: Any
    arithmetic: Arithmetic
    used: Used
    study: str = ""
    images: Callable[[], str] = str  # what training images are, in words


def train(
    config: TrainConfig,
    dataset: Dataset,
    checkpoints: CheckpointStore,
    world: World | None = None,
    reading: Reading | None = None,
    checkpoint_batches: int = 0,
    study: str = "",
    sources: Sources | None = None,
) -> Iterator[Record]:
    """Train from the newest checkpoint, or from the start; yield the record of every epoch that ends here.

    `study` is the id of the study that the finished model belongs to, `sources` what its selectors bring.

    A record holds `epoch` (1-based), `step`, `time` (Unix seconds), `seconds` of training, `device_seconds` (with
    validation, over all ranks), `images_per_second`, `used` (what rank 0's time went to, checkpoints since the record
    before), `learning_rate`, `train` (mean loss and terms), `val` (metrics, percent), `value` (the objective),
    `searched` (whether `value` is the best of all readout settings) and, when searched, `choice`. The last record,
    marked `final`, comes after the finished model was written; what it has of validation is of `kept_epoch`. Ends
    without it when the world is asked to stop, after a checkpoint at the batch it was at. Raises `NonFiniteError`
    before the optimizer would move on a NaN.
    """
    world = world or World()
    run = set_up(config, dataset, checkpoints, world, reading or Reading(), sources or {})
    with run.used.watching(), TrainReader(
        dataset.train, run.plan, _read_config(config, reading or Reading()), epochs=config.recipe.epochs,
        rank=world.rank, world=world.size,
    ) as reader:  # fmt: skip
        run = replace(run, study=study, images=lambda: reader.told)
        for epoch in range(run.progress.position.epoch, config.recipe.epochs):
            started, rows_before = time.monotonic(), run.progress.rows
            if not _train_epoch(run, reader, epoch, checkpoint_batches):
                return
            record = _finish_epoch(run, epoch, started, run.progress.rows - rows_before)
            yield record
            if record["final"]:
                return


def set_up(
    config: TrainConfig,
    dataset: Dataset,
    checkpoints: CheckpointStore,
    world: World,
    reading: Reading,
    sources: Sources | None = None,
) -> Run:
    """Put a run together, from its newest checkpoint if there is one."""
    computes = arithmetic(config, world.device)
    computes.settle()
    torch.manual_seed(config.seed)
    method = build_method(config, len(dataset.classes)).to(world.device).to(memory_format=computes.layout)
    optimizer = build_optimizer(method, config.recipe)
    progress = _resume(config, dataset, checkpoints, method, optimizer, world)
    plan = dataset.train.plan(config.recipe.batch_size, config.seed, config.recipe.drop_last)
    rules = protocol(config.protocol, image_size=config.image_size, resize_size=config.resize_size)
    choosing = make_choosing(
        config, rules, dataset, _read_config(config, reading), -(-config.recipe.batch_size // world.size),
        sources or {}, rank=world.rank, world=world.size, device=world.device,
    )  # fmt: skip
    model = world.wrap(method)
    if computes.compiled:
        model = compiled(model, method, world.device)
    return Run(
        config, dataset, checkpoints, world, method, model, optimizer, Guard(optimizer), progress,
        plan, choosing, build_readout(config), computes, Used(world.device),
    )  # fmt: skip


def _resume(
    config: TrainConfig,
    dataset: Dataset,
    checkpoints: CheckpointStore,
    method: LocalizationMethod,
    optimizer: torch.optim.SGD,
    world: World,
) -> Progress:
    saved = checkpoints.newest() if world.rank == 0 else None
    folder = world.gather(saved.folder if saved else None)[0]  # rank 0 chooses: all go on from the same one
    if folder and not saved:
        saved = checkpoints.load(folder)
    if saved is None:
        return Progress(Position(), [], {})
    if saved.state["config_hash"] != _origin(config, dataset, world.device):
        raise MismatchError(
            f"The checkpoint {checkpoints.trial.path(saved.folder)} is of another configuration or of other data; it "
            "was left alone."
        )
    method.load_state_dict(saved.state["method"])
    kind = optimizer.defaults["fused"]  # of this device: a checkpoint may come from another
    optimizer.load_state_dict(saved.state["optimizer"])
    for group in optimizer.param_groups:
        group["fused"] = kind
    best = saved.state["best"]
    values = [record["value"] for record in saved.records]
    if config.keep == "best" and values and saved.position == Position(best_epoch(values)):
        best = saved.state["method"]  # when it was written, its value was not known
    if world.rank > 0:  # the saved sums are over all ranks: one of them carries them on
        return Progress(saved.position, saved.records, {}, best=best)
    sums = {name: torch.tensor(total, dtype=torch.float64) for name, total in saved.state["sums"].items()}
    return Progress(saved.position, saved.records, sums, saved.state["rows"], best)


def _train_epoch(run: Run, reader: TrainReader, epoch: int, checkpoint_batches: int) -> bool:
    """Train on what is left of the epoch; False if the world was asked to stop, at a checkpoint that is written."""
    made = reader.epoch(epoch, start_sample=run.progress.position.samples)
    # one thread of a CPU is all that this process was given
    most = 0 if run.world.device.type == "cpu" and torch.get_num_threads() == 1 else AHEAD
    with contextlib.closing(ahead(made, most, partial(_pinned, device=run.world.device))) as batches:
        return _train_batches(run, batches, epoch, checkpoint_batches)


def _pinned(batch: Batch, device: torch.device) -> Batch:
    """The batch in memory that a GPU reads by itself."""
    if device.type == "cpu":
        return batch
    return replace(batch, images_BCHW=batch.images_BCHW.pin_memory(), labels_B=batch.labels_B.pin_memory())


def _train_batches(run: Run, batches: Iterator[Batch], epoch: int, checkpoint_batches: int) -> bool:
    run.method.train()
    since_checkpoint = 0
    for batch in run.used.waiting(batches):
        with run.used.timing(STEPS):
            train_step(run, epoch, batch)
        run.world.beat()
        run.progress.position = Position(epoch, run.progress.position.samples + batch.global_size)
        since_checkpoint += 1
        order = run.world.order(run.progress.position)
        due = since_checkpoint == checkpoint_batches and run.progress.position.samples < run.plan.samples
        if due or order is not Order.GO_ON:
            run.guard.settle()
            _save(run)
            since_checkpoint = 0
        if order is Order.STOP:
            return False
    run.guard.settle()
    return True


def train_step(run: Run, epoch: int, batch: Batch) -> None:
    """One step of the optimizer on this rank's part of a batch. Raises `NonFiniteError` before it would move."""
    config, device = run.config, run.world.device
    torch.manual_seed(_fold(config.seed, epoch, run.progress.position.samples))
    if device.type == "cuda":  # dropout's own; what methods draw is equal on all ranks, on the host
        torch.cuda.manual_seed(_fold(config.seed, epoch, run.progress.position.samples, run.world.rank))
    done = run.progress.position.samples // config.recipe.batch_size / run.plan.num_batches
    set_learning_rate(run.optimizer, learning_rate(config.recipe, epoch, run.progress.records, done))
    images = normalize(batch.images_BCHW, device, dtype_of(run.method), run.arithmetic.layout)
    with run.arithmetic.autocast():
        run.method.begin_step(epoch, batch.ids, batch.global_size)
        output = run.model(images, to_device(batch.labels_B, device))
        terms = wsol_models.method_module(config.method).losses(output, run.method.config)
    loss = torch.stack(list(terms.values())).sum()
    # DDP averages over ranks; weighted by its share of rows each gives the mean over the global batch
    share = len(batch.ids) * run.world.size / batch.global_size
    run.optimizer.zero_grad(set_to_none=True)
    (loss * share).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.method.parameters() if p.grad is not None])
    if config.recipe.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(list(run.method.parameters()), config.recipe.clip_norm, norm)
    if config.precision == "reproducible":
        _round_gradients(run.method)
    terms = {name: term.detach() for name, term in terms.items()}
    run.guard.step(norm, partial(_not_finite, norm, terms, run.progress.position))
    run.progress.add({"loss": loss, **terms}, len(batch.ids))


def _round_gradients(method: nn.Module) -> None:
    """Keep three digits of every gradient.

    Last bits differ between machines, and a training can make 10^7 times as much of them in 100 steps, through the
    gradients. Those of float64 are 10^13 times smaller than what is rounded away here, and hardly ever decide it.
    """
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.bfloat16().to(parameter.dtype)


def _not_finite(norm: Tensor, terms: dict[str, Tensor], position: Position) -> str:
    values = ", ".join(f"{name} {float(term):.4g}" for name, term in terms.items())
    return (
        f"The gradient is {float(norm)} in epoch {position.epoch + 1} after {position.samples} samples ({values}): try "
        "a smaller learning rate or --clip-norm."
    )


def _finish_epoch(run: Run, epoch: int, started: float, rows: int) -> Record:
    """Validate, write the checkpoint (or the finished model after the last epoch), return the epoch's record.

    `rows` is how many this rank has trained on since `started`.
    """
    seconds = time.monotonic() - started
    with _saving(run, epoch) as save:
        record = _judge_epoch(run, epoch, started, seconds, rows)
        if not record["final"]:
            save()
    return record


def _judge_epoch(run: Run, epoch: int, started: float, seconds: float, rows: int) -> Record:
    """The record of an epoch whose training took `seconds`; after the last, the finished model is written."""
    config, last = run.config, epoch + 1 == run.config.recipe.epochs
    searched = last or config.searches_each_epoch or epoch + 1 in config.rungs
    counts = validate(run, search=searched)
    choice = run.choosing.rank.choose(counts)
    best = best_epoch([*(record["value"] for record in run.progress.records), choice.value])
    last = last or 0 < config.patience <= epoch + 1 - best
    kept = best if config.keep == "best" else epoch + 1
    if last and kept <= epoch:
        run = _back_to_best(run)
        counts = validate(run, search=True)
        choice = run.choosing.rank.choose(counts)
    elif config.keep == "best" and kept == epoch + 1:
        run.progress.best = {name: tensor.cpu().clone() for name, tensor in run.method.state_dict().items()}
    choice, images = settle(run, choice) if last else (choice, None)
    judged = {
        "val": {**selection.transferred(counts, choice), choice.metric: choice.value},
        "value": choice.value,
        "searched": searched,
        "choice": choice.to_dict() if searched else None,
        "final": last,
        "kept_epoch": kept if last else None,
    }
    record = _trained(run, epoch, started, seconds, rows) | judged
    run.progress = Progress(Position(epoch + 1), [*run.progress.records, record], {}, best=run.progress.best)
    if last:
        _finish(run, counts, choice, images)
        return record
    if searched and run.world.rank == 0:
        run.checkpoints.keep_rung(VAL_COUNTS, json.dumps(counts.to_dict()).encode())
    return record


@contextlib.contextmanager
def _saving(run: Run, epoch: int) -> Iterator[Callable[[], None]]:
    """Within, which is validation, the ended epoch's weights are written; what this gives waits and seals them with the
    records.

    None where training may end: then there is no checkpoint, or it is written when it is known that training goes on.
    """
    if _may_end(run, epoch):
        yield lambda: _save(run)
    elif run.world.rank > 0:
        yield lambda: None
    else:
        with run.checkpoints.saving(Position(epoch + 1), _state(run, {}, 0)) as seal:

            def save() -> None:
                with run.used.timing(CHECKPOINTS):
                    seal(run.progress.records)

            yield save


def _may_end(run: Run, epoch: int) -> bool:
    """Whether this epoch is the last, or is unless its value, which is not known yet, is the best so far."""
    values = [record["value"] for record in run.progress.records]
    waited = epoch + 1 - best_epoch(values) if values else 0
    return epoch + 1 == run.config.recipe.epochs or 0 < run.config.patience <= waited


def _trained(run: Run, epoch: int, started: float, seconds: float, rows: int) -> Record:
    """What a record says of an epoch's training, which took `seconds` of the time since `started`."""
    sums, all_rows = run.progress.over_ranks(run.world)
    return {
        "epoch": epoch + 1,
        "step": (epoch + 1) * run.plan.num_batches,
        "time": time.time(),
        "seconds": round(seconds, 3),
        "device_seconds": round((time.monotonic() - started) * run.world.size, 3),
        "images_per_second": round(rows * run.world.size / max(seconds, 1e-9), 1),
        "used": run.used.take(),
        "learning_rate": learning_rate(run.config.recipe, epoch, run.progress.records),
        "train": {name: total / all_rows for name, total in sums.items()},
    }


def best_epoch(values: list[float]) -> int:
    """The first (1-based) epoch with the highest of `values`, one an epoch; one that is not defined is the lowest."""
    return 1 + max(range(len(values)), key=lambda index: -math.inf if math.isnan(values[index]) else values[index])


def _back_to_best(run: Run) -> Run:
    """The run with the weights of its best epoch; those of the last are kept beside the finished model.

    It is asked for no more checkpoints, which would be of these weights at that position.
    """
    if run.world.rank == 0:
        write_sealed(run.checkpoints.own / LAST, {WEIGHTS: _tensors(run.method.state_dict())})
    run.method.load_state_dict(run.progress.best)
    return replace(run, world=replace(run.world, orders=None))


def validate(run: Run, search: bool) -> Counts:
    """Validation counts over all ranks: of every readout setting, or of the one setting scored each epoch.

    A search is in float32 at least, as the finished model will be read; one setting is scored as the model is trained.
    Ranks judge the network that is kept, rank 0's: their own statistics of batch norm may be of other rows.
    """
    run.world.share_buffers(run.method)
    run.method.eval()
    known = run.readout.settings(run.method)
    all_of_them = search and run.choosing.rank.ranks
    settings = known if all_of_them else [fixed_setting(run.config.fixed_setting, known)]
    with run.arithmetic.autocast(not search):
        return _look(run, run.choosing.rank, settings)


def settle(run: Run, choice: selection.Choice) -> tuple[selection.Choice, ImageHits | None]:
    """The choice once more at its setting, where selectors without boxes look closer, with the thresholds of the second
    selector if there is one; and what every validation image showed, in one order for any number of ranks.

    None where class masks are scored: they are counted over the whole split alone.
    """
    choosing, images = run.choosing, None
    if choice.metric not in selection.SEGMENTATION_METRICS:
        counts = _look(run, choosing.rank, [choice.readout], fine=True)
        images = counts.image_hits
        choice = finer(choice, choosing.rank.choose(counts)) if choosing.rank.free else choice
    if choosing.threshold:
        choice = choosing.with_thresholds(choice, _look(run, choosing.threshold, [choice.readout], fine=True))
    return choice, images


def _look(run: Run, by: Selection, settings: list[Any], fine: bool = False) -> Counts:
    def on_batch(_images: int) -> None:
        run.world.beat()
        # a group is not asked: its ranks have unequal numbers of these batches
        if run.world.size == 1 and run.world.order(run.progress.position) is Order.SAVE:
            _save(run)

    with run.used.timing(VALIDATION):
        seen = by.look(run.method, run.readout, settings, fine=fine, device=run.world.device, on_batch=on_batch)
        if not isinstance(seen, Counts):
            return by.counts(run.world.gather(seen), settings, fine)
        images = None if seen.image_hits is None else reduce(operator.add, run.world.gather(seen.image_hits))
        return replace(seen.summed(run.world.total), image_hits=images)


def _origin(config: TrainConfig, dataset: Dataset, device: torch.device) -> str:
    """What a checkpoint is of: whoever goes on from it must train the same on the same."""
    computes = arithmetic(config, device).told  # "auto" is another on another device
    return config_hash({"train": as_kept(config), "data": dataset.fingerprint, "arithmetic": computes})


def ddp_options(method: LocalizationMethod) -> dict[str, Any]:
    """How `DistributedDataParallel` is to wrap a method, beside PyTorch's defaults.

    Before every forward it would send rank 0's buffers round. Statistics of batch norm are read in validation alone,
    which sends them itself; only what a method remembers is read in training.
    """
    return {"broadcast_buffers": method.remembers, "gradient_as_bucket_view": True}


def _save(run: Run) -> None:
    sums, rows = run.progress.over_ranks(run.world)
    if run.world.rank == 0:
        with run.used.timing(CHECKPOINTS):
            run.checkpoints.save(run.progress.position, _state(run, sums, rows), run.progress.records)


def _state(run: Run, sums: dict[str, float], rows: int) -> dict[str, Any]:
    """What a checkpoint holds beside the records, with an open epoch's sums over all ranks."""
    return {
        "method": run.method.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "config_hash": _origin(run.config, run.dataset, run.world.device),
        "sums": sums,
        "rows": rows,
        "best": run.progress.best,
    }


def _finish(run: Run, counts: Counts, choice: selection.Choice, images: ImageHits | None) -> None:
    """Write the finished model."""
    if run.world.rank == 0:
        told = {ARITHMETIC: run.arithmetic.told, TRAINING_IMAGES: run.images()}
        files = model_files(run.method, run.config, run.dataset, choice, counts, run.study, told)
        if images:
            files[VAL_IMAGES] = json.dumps(images.to_dict()).encode()
        run.checkpoints.finish(files, run.progress.records)


def model_files(
    method: LocalizationMethod,
    config: TrainConfig,
    dataset: Dataset,
    choice: selection.Choice,
    counts: Counts,
    study: str,
    told: Mapping[str, str],
) -> dict[str, bytes]:
    """A finished model as files, none of them a pickle: what `model.load_model` reads, and the counts behind it.

    `told`: what it says of its training in words, by `TOLD`.
    """
    description = {
        "format": FORMAT,
        "study": study,
        "train": as_kept(config),
        **told,
        "classes": list(dataset.classes),
        "multilabel": dataset.multilabel,
        "data": dataset.name,
        "dataset": dataset.fingerprint,
        "val_split": dataset.val.fingerprint,
        "choice": choice.to_dict(),
        "selected_on": f"val/{choice.selector}",
    }
    return {
        WEIGHTS: _tensors(method.state_dict()),
        BACKBONE: _tensors(wsol_models.network_state(method)),
        DESCRIPTION: json.dumps(description, indent=1).encode(),
        VAL_COUNTS: json.dumps(counts.to_dict()).encode(),
    }


def _tensors(state: Mapping[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in state.items()})


def _read_config(config: TrainConfig, reading: Reading) -> ReadConfig:
    return ReadConfig(
        resize_size=config.resize_size,
        image_size=config.image_size,
        train_geometry=config.recipe.train_geometry,
        crop_scale=config.recipe.crop_scale,
        mode=reading.mode,
        cache_dir=reading.cache_dir,
        cache_budget_gb=reading.cache_budget_gb,
        shard_cache_gb=reading.shard_cache_gb,
        shrunk_jpegs=config.shrunk_jpegs,
    )


def _fold(*numbers: int) -> int:
    """A 63-bit seed from several numbers (splitmix64 of each, chained)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1
