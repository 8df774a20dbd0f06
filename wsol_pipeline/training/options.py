"""Command-line options that jobs share, and how they become a `TrainConfig`. Parsed by tyro from the dataclass."""

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import tyro

import search_spaces
from wsol_pipeline.errors import UsageError, unknown
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import objectives
from wsol_pipeline.storage import Store
from wsol_pipeline.training.config import Reading, Recipe, TrainConfig, check_name, require, to_dict, without_passwords

LAPTOP = Recipe(epochs=4, learning_rate=0.003, clip_norm=1.0)  # the recipe without a preset: for `tiny`

T = TypeVar("T")
Options = TypeVar("Options", bound="RunOptions")


@dataclass(frozen=True)
class RunOptions:
    """Options of every job that trains."""

    name: str = ""
    """Name of the study or run: the same name continues it. 1 to 128 letters, digits, '.', '_', '-'."""
    data: str | None = None
    """Imported dataset: a folder or s3://bucket/prefix (see import_dataset.py). Without it: embedded synthetic data,
    and a small classifier trained on its labels in place of ImageNet weights."""
    storage: str = "runs"
    """Where studies, checkpoints and models are kept: a folder, or s3://bucket/prefix (several nodes need that)."""
    preset: str | None = None
    """A paper's recipe by id, e.g. bas-ext/table1/cub/resnet50. Options given beside it win."""
    backbone: str | None = None
    """Network: tiny (default without a preset), resnet18, resnet50, mobilenet_v2."""
    weights: str | None = None
    """Initial weights: 'imagenet' (downloaded), or a path that every node sees. Without it: from scratch."""
    epochs: int | None = None
    """Passes over the training split."""
    batch_size: int | None = None
    """Images a step over all workers together."""
    learning_rate: float | None = None
    """Base learning rate of SGD; the method's multipliers come on top."""
    weight_decay: float | None = None
    """L2 penalty on every parameter, biases and normalisation included."""
    schedule: Literal["step", "plateau_top1", "plateau_loss", "poly"] | None = None
    """How the learning rate falls: every --decay-every epochs (step, the default), when validation's Top-1 accuracy or
    the training loss stops improving, or evenly to 0 at the end (poly)."""
    plateau_patience: int | None = None
    """Epochs without improvement that a plateau schedule waits before learning rate x 0.1."""
    decay_every: int | None = None
    """Epochs between learning rate x 0.1 in a step schedule; 0: never."""
    clip_norm: float | None = None
    """Gradient norm above which gradients are scaled down; 0: never."""
    train_geometry: Literal["crop", "random_resized_crop", "random_resized_crop_stored"] | None = None
    """Training images: a random crop of the resized image (crop, the default); a random region of it, resized
    (mLDFR); or such a region of the stored image, sharper but decoded every time: it needs streaming."""
    crop_scale: float | None = None
    """Smallest share of an image's area in a random resized crop."""
    drop_last: bool | None = None
    """Leave out what is left of an epoch after its last whole batch."""
    options: dict[str, str] = field(default_factory=dict)
    """The method's hyper-parameters by name, e.g. --options alpha 0.5 generator_after layer2; what is searched wins."""
    readout: str | None = None
    """How maps are read, if not by the method's own readout: a file of wsol_models/readouts, e.g. bagcams."""
    readout_options: dict[str, str] = field(default_factory=dict)
    """The readout's options by name, e.g. --readout-options scales "[1, 1.5, 2]"."""
    image_size: int | None = None
    """Pixels a side of what the network sees: 64 without a preset, the paper's with one (224, mostly)."""
    resize_size: int | None = None
    """Pixels a side that images are resized to before the training crop: 72 without a preset, else the paper's (mostly
    image_size + 32)."""
    freeze_batch_norm: bool = False
    """Keep BatchNorm's stored statistics fixed; needed for weights with folded BatchNorm."""
    sync_batch_norm: bool = False
    """BatchNorm statistics over all workers (GPUs only)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward."""
    channels_last: bool = False
    """Memory layout that is faster on GPUs with bfloat16."""
    protocol: str | None = None
    """Evaluation: wsol-v1 (largest contour; without a preset), wsol-v2 (all contours), bas-ext, bas-conf; of several
    classes an image mldfr-multi (boxes) or voc-miou (class masks)."""
    objective: str | None = None
    """What validation maximises: max_box_acc_v2 (default where boxes count), pxap (where masks do), miou (where class
    masks do), gt_known_loc, top1_loc, ..."""
    seed: int = 0
    """Seed of initialisation, order, crops and proposals."""
    workers: int = 1
    """Workers (processes, GPUs) that train one model together."""
    cpus_per_worker: int = 1
    """CPU cores reserved for each worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the cluster's GPUs if it has any."""
    reading: Literal["auto", "cached", "streaming"] = "auto"
    """cached: pixels decoded once per node; streaming: Ray Data, for sets larger than --cache-budget-gb."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""
    cache_budget_gb: float = 8.0
    """Largest decoded split kept on a node, in GB."""
    shard_cache_gb: float = 64.0
    """Disk space of a node for copies of streamed s3:// shards, in GB; a larger split is read anew in each epoch."""
    checkpoint_batches: int = 0
    """Also write a checkpoint every so many batches; 0: at the end of epochs only."""
    storage_is_shared: bool = False
    """--storage is a local path that every node mounts."""
    cluster_may_grow: bool = False
    """An autoscaler adds nodes: don't refuse trials that don't fit yet."""
    experiment: str = "wsol"
    """MLflow experiment. The server is MLFLOW_TRACKING_URI, else a SQLite file in --storage."""
    print_config: bool = False
    """Print the resolved configuration and end."""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        require(self.workers >= 1, "workers must be at least 1", self.workers)
        require(self.cpus_per_worker >= 1, "cpus_per_worker must be at least 1", self.cpus_per_worker)
        require(self.cache_budget_gb > 0, "cache_budget_gb must be positive", self.cache_budget_gb)
        require(self.shard_cache_gb >= 0, "shard_cache_gb cannot be negative", self.shard_cache_gb)
        require(self.checkpoint_batches >= 0, "checkpoint_batches cannot be negative", self.checkpoint_batches)

    @property
    def store(self) -> Store:
        """Where all studies are kept."""
        return Store.at(self.storage)


def parse(options: type[Options], args: list[str] | None = None) -> Options:
    """`options` from the command line. Raises `UsageError` for what tyro rejects."""
    return command_line(options, args, sys.modules[options.__module__].__doc__)


def command_line(options: type[T], args: Sequence[str] | None = None, description: str | None = None) -> T:
    """`tyro.cli`, with what it rejects as a `UsageError` of one line: the fault and the nearest known option."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(options, args=args, description=description)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UsageError(_one_line(told.getvalue())) from None


def _one_line(box: str) -> str:
    """The text of tyro's box, which is of letters or of lines, before its pointer to --help."""
    text = " ".join(line.strip("│ ") for line in box.splitlines()[1:-1])
    parts = [" ".join(part.split()) for part in re.split("[─-]{4,}", text) if "full helptext" not in part]
    return "; ".join(part.rstrip(".") for part in parts) + "."


def resolve(options: RunOptions, method: str) -> TrainConfig:
    """The training configuration: the preset's values (or the laptop defaults), under what was given beside them."""
    preset, presets = _preset(options.preset, method), search_spaces.presets(method)
    recipe = Recipe(**preset.recipe) if preset else LAPTOP
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Recipe)}
    recipe = dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})
    require(
        options.reading != "cached" or recipe.train_geometry != "random_resized_crop_stored",
        "random_resized_crop_stored cuts stored images, which no cache holds: reading must be auto or streaming",
        options.reading,
    )
    published = next((row.readout for row in [preset or next(iter(presets.values()), None)] if row), {})
    own = options.readout in (None, published.get("name"))
    rules = protocol(options.protocol or (preset.protocol if preset else "wsol-v1"))
    return TrainConfig(
        method=method,
        backbone=options.backbone or (preset.backbone if preset else "tiny"),
        weights=options.weights,
        options={**(preset.method_options if preset else {}), **plain_values(options.options)},
        readout=options.readout or published.get("name", "cam"),
        readout_options={**(published.get("options", {}) if own else {}), **plain_values(options.readout_options)},
        fixed_setting=published.get("setting") if preset and own else None,
        protocol=rules.name,
        objective=options.objective or ("max_box_acc_v2" if rules.ious else objectives(rules)[0]),
        recipe=recipe,
        image_size=options.image_size or (preset.image_size if preset else 64),
        resize_size=options.resize_size or (preset.resize_size or preset.image_size + 32 if preset else 72),
        freeze_batch_norm=options.freeze_batch_norm,
        sync_batch_norm=options.sync_batch_norm,
        precision=options.precision,
        channels_last=options.channels_last,
        seed=options.seed,
    )


def _preset(name: str | None, method: str) -> search_spaces.Preset | None:
    known = search_spaces.presets(method)
    if name is not None and name not in known:
        raise unknown(f"preset of {method!r}", name, known)
    return known[name] if name else None


def plain_values(options: Mapping[str, str]) -> dict[str, Any]:
    """Values of the command line as what they look like: JSON (numbers, true, null, lists), else text."""
    return {name: _plain_value(value) for name, value in options.items()}


def _plain_value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value


def reading(options: RunOptions) -> Reading:
    """How rows reach the workers."""
    return Reading(options.reading, options.cache_dir, options.cache_budget_gb, options.shard_cache_gb)


def describe(options: RunOptions, config: TrainConfig) -> dict[str, Any]:
    """What `--print-config` shows."""
    return json.loads(without_passwords(json.dumps({"options": to_dict(options), "train": to_dict(config)})))
