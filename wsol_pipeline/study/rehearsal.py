"""`--dry-run`: look at everything a study needs, train a few batches where its trials would, say what it would take.

Nothing of the study is started or written. Times are of one worker with its share of the batch, on images that lie in
memory: neither the exchange of gradients between workers nor a slow input is in them, and pruning only makes a study
shorter than what is said.
"""

import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ray
import torch

from wsol_pipeline.data.augment import Augmentation
from wsol_pipeline.data.dataset import TrainSplit, encode_labels, open_dataset
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode_resize
from wsol_pipeline.data.jpegs import decode, encode, jpeg_bytes
from wsol_pipeline.data.pixels import id_and_image
from wsol_pipeline.data.reader import Batch
from wsol_pipeline.errors import WsolError
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.study.plan import Plan, check_device
from wsol_pipeline.tracking.connect import Connect, ServerAway, connect_mlflow
from wsol_pipeline.training import cluster
from wsol_pipeline.training.checkpoint import KEEP, CheckpointStore
from wsol_pipeline.training.config import Job, Reading, TrainConfig
from wsol_pipeline.training.loop import World, set_up, train_step, validate
from wsol_pipeline.training.run import resources_per_worker, share_memory

STEPS, VAL_BATCHES = 6, 2


@dataclass(frozen=True)
class Measured:
    """What one worker was seen to do. Seconds per image; bytes; `settings` of the readout."""

    train_seconds: float
    decode_seconds: float  # of one core, as are those of a crop; of a shrunk JPEG, if these are read
    crop_seconds: float
    one_setting_seconds: float
    search_seconds: float
    settings: int
    checkpoint_bytes: int
    model_bytes: int
    peak_gpu_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What the study would take: at most, since pruning shortens it."""

    trials: int
    trial_seconds: float
    device_hours: float
    wall_hours: float
    storage_bytes: int


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run found. `mlflow`: whether it answers; `decoded_bytes`: of training images as pixels; `bound`: which
    part of a trial takes longest, in words."""

    mlflow: str
    device: str
    concurrent: int
    decoded_bytes: int
    streamed: bool
    measured: Measured
    estimate: Estimate
    bound: str


def rehearse(plan: Plan) -> Rehearsal:
    """Check services and placement, and measure. Raises what keeps the study from starting, as the study would."""
    options = plan.options
    connect = connect_mlflow(options.store, options.experiment)
    cluster.connect(nested=False)
    cluster.check_storage_reaches_all(plan.folder, options.storage_is_shared, options.cluster_may_grow)
    device = cluster.pick_device(options.device, options.cluster_may_grow)
    check_device(options, device)
    sample = plan.job({}, 0, plan.folder, attempt=0, device=device, cpus=plan.cpus(device))
    concurrent = cluster.check_placement(sample, options.concurrent, options.cluster_may_grow, plan.streamed)
    measured = measure_there(sample)
    return Rehearsal(
        mlflow=redact(_tracking(connect)),
        device=device,
        concurrent=concurrent,
        decoded_bytes=plan.decoded_bytes,
        streamed=plan.streamed,
        measured=measured,
        estimate=estimated(plan, measured, concurrent),
        # of a GPU's share of cores one half decodes what the other's worker trains on
        bound=bound(plan, measured, sample.cpus_per_worker if plan.streamed or plan.config.shrunk_jpegs else 1),
    )


def _tracking(connect: Connect) -> str:
    try:
        return f"{redact(connect()[0].tracking_uri)}: answers"
    except ServerAway as error:
        return f"{error}. The study would begin without it, and be written once it is back"


def measure_there(job: Job) -> Measured:
    """`measure` where Ray would place a worker of `job`. Raises what it raises there."""
    needs = resources_per_worker(job)
    task = ray.remote(measure).options(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=0)
    try:
        return ray.get(task.remote(job))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WsolError):
            raise error.cause from None
        reason = str(error.cause).splitlines()[0][:200]
        raise WsolError(f"A trial would fail at once: {type(error.cause).__name__}: {reason}") from error


def measure(job: Job) -> Measured:
    """Train and validate a few batches of a job's share, in this process."""
    torch.set_num_threads(job.cpus_per_worker)
    share_memory(job)
    dataset, world = open_dataset(job.data), World(device=torch.device(job.device))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointStore(Store.at(folder), 0)
        reading = Reading("streaming", job.reading.cache_dir)
        run = set_up(job.train, dataset, checkpoints, world, reading, job.sources)
        rows = max(2, job.train.recipe.batch_size // job.workers)
        start = time.perf_counter()
        batch = first_rows(dataset.train, rows, job.train.image_size, job.reading.cache_dir)
        decoding = time.perf_counter() - start
        if job.train.shrunk_jpegs:
            decoding = shrunk_seconds(dataset.train, rows, job.train, job.reading.cache_dir)
        run.method.train()
        steps = [_seconds(world, lambda: train_step(run, 0, batch)) for _ in range(STEPS)]
        rank = run.choosing.rank.few(VAL_BATCHES * job.train.recipe.batch_size)
        few = dataclasses.replace(run, choosing=dataclasses.replace(run.choosing, rank=rank))
        validate(few, search=False)  # the evaluator compiles
        one, searched = (_seconds(world, functools.partial(validate, few, search)) for search in (False, True))
    parameters = _bytes(run.method.state_dict().values())
    images = rank.rows.num_rows
    return Measured(
        train_seconds=statistics.median(steps[1:]) / len(batch.ids),
        decode_seconds=decoding / len(batch.ids),
        crop_seconds=crop_seconds(job.train, len(batch.ids)),
        one_setting_seconds=one / images,
        search_seconds=searched / images,
        settings=len(run.readout.settings(run.method)),
        checkpoint_bytes=parameters + _bytes(s["momentum_buffer"] for s in run.optimizer.state.values()),
        model_bytes=parameters,
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if job.device == "cuda" else 0,
    )


def first_rows(split: TrainSplit, count: int, size: int, cache_dir: str | None) -> Batch:
    """A batch of `count` rows at `size` pixels, uncropped: the first ones, again from the start if there are fewer."""
    rows = np.array(list(itertools.islice(itertools.cycle(range(split.num_rows)), count)))
    table = split.shard_set(cache_dir).read(rows, ["id", "image", "labels", "width", "height"])
    images = torch.from_numpy(np.stack(list(decode_resize(id_and_image(table), size))))
    labels = torch.from_numpy(encode_labels(table["labels"].to_pylist(), split))
    sizes_B2 = np.stack([table[side].to_numpy() for side in ("width", "height")], axis=1).astype(np.int64)
    return Batch(table["id"].to_pylist(), images, labels, None, sizes_B2, global_size=count)


def shrunk_seconds(split: TrainSplit, count: int, config: TrainConfig, cache_dir: str | None) -> float:
    """Of decoding shrunk JPEGs of the first `count` rows."""
    images = first_rows(split, count, config.resize_size, cache_dir).images_BCHW.numpy()
    jpegs = [np.frombuffer(encode(image, config.shrunk_jpegs), np.uint8) for image in images]
    start = time.perf_counter()
    for jpeg in jpegs:
        decode(jpeg)
    return time.perf_counter() - start


def crop_seconds(config: TrainConfig, count: int) -> float:
    """Of one image; what is in it makes no difference."""
    recipe = config.recipe
    augmentation = Augmentation(recipe.train_geometry, config.resize_size, config.image_size, recipe.crop_scale)
    images = np.zeros((count, 3, config.resize_size, config.resize_size), np.uint8)
    hashes, sizes_B2 = hash_ids(map(str, range(count))), np.full((count, 2), config.resize_size)
    augmentation.apply(images, hashes, sizes_B2, 0, 0)  # compiles
    start = time.perf_counter()
    augmentation.apply(images, hashes, sizes_B2, 0, 0)
    return (time.perf_counter() - start) / count


def bound(plan: Plan, measured: Measured, cores: int) -> str:
    """Which of a trial's parts takes longest, beside the others, and what would make it shorter.

    `cores`: those that make a worker's training images. Cached ones are cropped by one thread of it.
    """
    epochs, images = plan.config.recipe.epochs, plan.dataset.train.num_rows / plan.options.workers
    decoded = (plan.streamed or plan.config.shrunk_jpegs > 0) * measured.decode_seconds / cores
    made = decoded + measured.crop_seconds / (cores if plan.streamed else 1)
    seconds = {"steps": epochs * images * measured.train_seconds, "input": epochs * images * made}
    told = {name: f"{name} {spent:,.0f} s ({epochs * images / spent:,.0f} images/s)" for name, spent in seconds.items()}
    seconds["validation"] = validation_seconds(plan, measured) / plan.options.workers
    told["validation"] = f"validation {seconds['validation']:,.0f} s"
    first, *rest = sorted(seconds, key=lambda name: -seconds[name])
    helps = {
        "steps": "",
        "input": _budget(plan) * plan.streamed,
        "validation": "; more --cpus-per-worker score maps sooner, fewer --rungs search them less often",
    }
    return f"{told[first]} of a trial, beside {' and '.join(told[name] for name in rest)}{helps[first]}"


def _budget(plan: Plan) -> str:
    """What would hold a plan's training images."""
    small = f", of {jpeg_bytes(plan.dataset.train, plan.sample) / 2**30:.1f} small JPEGs" if plan.sample else ""
    return f"; a --cache-budget-gb of {plan.decoded_bytes / 2**30:.1f} would hold its pixels{small}"


def validation_seconds(plan: Plan, measured: Measured) -> float:
    """Of a whole trial, by one worker: one setting after each epoch, all at each rung and at the end."""
    epochs, rungs, rows = plan.config.recipe.epochs, len(plan.config.rungs), plan.dataset.val.num_rows
    again = rows * measured.one_setting_seconds  # the hits of single images, at the end
    searches = (rungs + 1) * rows * (measured.search_seconds - measured.one_setting_seconds)
    return epochs * rows * measured.one_setting_seconds + again + searches


def estimated(plan: Plan, measured: Measured, concurrent: int) -> Estimate:
    """The whole study, confirmations included, if no trial is pruned."""
    options, config = plan.options, plan.config
    trials = options.trials + min(options.confirm, options.trials) * options.confirm_seeds
    trained = config.recipe.epochs * plan.dataset.train.num_rows * measured.train_seconds
    seconds = (trained + validation_seconds(plan, measured)) / options.workers
    hours = trials * seconds * options.workers / 3600
    rounds = -(-trials // concurrent)
    stored = trials * (KEEP * measured.checkpoint_bytes + 2 * measured.model_bytes)
    return Estimate(trials, seconds, hours, rounds * seconds / 3600, stored)


def _seconds(world: World, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _bytes(tensors: object) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # type: ignore[attr-defined]
