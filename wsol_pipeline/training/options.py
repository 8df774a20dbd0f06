"""Command-line options that jobs share, and how they become a `TrainConfig`. Parsed by tyro from the dataclass."""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import tyro

import search_spaces
from wsol_pipeline.errors import UsageError, unknown
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import objectives
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.training.config import Reading, Recipe, TrainConfig, check_name, require, to_dict

LAPTOP = Recipe(epochs=4, learning_rate=0.003, clip_norm=1.0)  # the recipe without a preset: for `tiny`

T = TypeVar("T")
Options = TypeVar("Options", bound="RunOptions")


@dataclass(frozen=True)
class WhatOptions:
    """What is run on which data, and where it is kept. The same name continues."""

    name: str = ""
    """Name of the study or run: the same name continues it. 1 to 128 letters, digits, '.', '_', '-'."""
    data: str | None = None
    """Imported dataset: a folder or s3://bucket/prefix (see import_dataset.py). By default embedded synthetic data, and
    a small classifier trained on its labels in place of ImageNet weights."""
    storage: str = "runs"
    """Where studies, checkpoints and models are kept: a folder, or s3://bucket/prefix (several nodes need that)."""
    experiment: str = "wsol"
    """MLflow experiment. The server is that of MLFLOW_TRACKING_URI, else a SQLite file in --storage."""
    preset: str | None = None
    """A paper's recipe by id, e.g. bas-ext/table1/cub/resnet50. Options given beside it win. By default a recipe that
    suits a laptop."""
    dry_run: bool = False
    """Check configuration, data, storage, MLflow and placement, train a few batches, say what the study would take, and
    start nothing."""
    print_config: bool = False
    """Print the resolved configuration and end."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained: without --preset a recipe for a laptop. Options win over the preset."""

    backbone: str | None = None
    """Network: tiny, resnet18, resnet50, mobilenet_v2, ... By default the preset's; tiny without one."""
    weights: str | None = None
    """Initial weights: 'imagenet' (downloaded), or a path that every node sees. By default from scratch."""
    epochs: int | None = None
    """Passes over the training split. By default the preset's; 4 without one."""
    batch_size: int | None = None
    """Images a step over all workers together. By default the preset's; 32 without one."""
    learning_rate: float | None = None
    """Base learning rate of SGD; the method's multipliers come on top. By default the preset's; 0.003 without one."""
    weight_decay: float | None = None
    """L2 penalty on every parameter, biases and normalisation included. By default the preset's; 0.0005 without
    one."""
    schedule: Literal["step", "plateau_top1", "plateau_loss", "poly"] | None = None
    """How the learning rate falls: every --decay-every epochs (step), when validation's Top-1 accuracy or the training
    loss stops improving (plateau_*), or evenly to 0 at the end (poly). By default the preset's; step without one."""
    plateau_patience: int | None = None
    """Epochs without improvement that a plateau schedule waits before learning rate x 0.1. By default the preset's; 2
    without one."""
    decay_every: int | None = None
    """Epochs between learning rate x 0.1 in a step schedule; 0: never. By default the preset's; 0 without one."""
    clip_norm: float | None = None
    """Gradient norm above which gradients are scaled down; 0: never. By default the preset's; 1 without one."""
    train_geometry: Literal["crop", "random_resized_crop", "random_resized_crop_stored"] | None = None
    """Training images: a random crop of the resized image (crop); a random region of it, resized (mLDFR); or such a
    region of the stored image, sharper but decoded every time: it needs streaming. By default the preset's; crop
    without one."""
    crop_scale: float | None = None
    """Smallest share of an image's area in a random resized crop. By default the preset's; 0.08 without one."""
    drop_last: bool | None = None
    """Leave out what is left of an epoch after its last whole batch. By default the preset's; no without one."""
    options: dict[str, str] = field(default_factory=dict)
    """The method's hyper-parameters by name, e.g. --options alpha 0.5 generator_after layer2; what is searched wins. By
    default the preset's, then the paper's."""
    image_size: int | None = None
    """Pixels a side of what the network sees. By default the preset's (224, mostly); 64 without one."""
    resize_size: int | None = None
    """Pixels a side that images are resized to before the training crop. By default the preset's (mostly image_size +
    32); 72 without one."""
    freeze_batch_norm: bool = False
    """Keep BatchNorm's stored statistics fixed; needed for weights with folded BatchNorm."""
    sync_batch_norm: bool = False
    """BatchNorm statistics over all workers (GPUs only)."""
    seed: int = 0
    """Seed of initialisation, order, crops and proposals."""


@dataclass(frozen=True)
class ReadoutOptions:
    """How maps are read and judged on validation. What a readout can vary is solved inside each trial."""

    readout: str | None = None
    """How maps are read: a file of wsol_models/readouts, e.g. bagcams. By default the method's own."""
    readout_options: dict[str, str] = field(default_factory=dict)
    """The readout's options by name, e.g. --readout-options scales "[1, 1.5, 2]". By default the readout's own."""
    protocol: str | None = None
    """Evaluation: wsol-v1 (largest contour), wsol-v2 (all contours), bas-ext, bas-conf; of several
    classes an image mldfr-multi (boxes) or voc-miou (class masks). By default the preset's; wsol-v1 without one."""
    objective: str | None = None
    """What validation maximises: max_box_acc_v2, pxap, miou, gt_known_loc, top1_loc, ... By default the first of these
    where boxes count, the second where masks do, the third where class masks do."""


@dataclass(frozen=True)
class ReadingOptions:
    """How images reach the workers: their speed and place, never their order or pixels."""

    reading: Literal["auto", "cached", "streaming"] = "auto"
    """cached: pixels decoded once per node; streaming: Ray Data, for sets larger than --cache-budget-gb."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""
    cache_budget_gb: float = 8.0
    """Largest decoded split kept on a node, in GB."""
    shard_cache_gb: float = 64.0
    """Disk space of a node for copies of streamed s3:// shards, in GB; a larger split is read anew in each epoch."""


@dataclass(frozen=True)
class MachineOptions:
    """What a trial runs on, and what it writes meanwhile."""

    workers: int = 1
    """Workers (processes, GPUs) that train one model together."""
    cpus_per_worker: int = 1
    """CPU cores reserved for each worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the cluster's GPUs if it has any, else CPUs; with --cluster-may-grow say cuda or cpu."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Arithmetic of forward and backward. float64, weights too, is slow, and keeps rounding, which differs between CPUs
    and numbers of threads, from being amplified into another result."""
    channels_last: bool = False
    """Memory layout that is faster on GPUs with bfloat16."""
    checkpoint_batches: int = 0
    """Also write a checkpoint every so many batches; 0: at the end of epochs only."""
    stuck_minutes: float = 20.0
    """Minutes without a batch after which a worker counts as stuck: it writes where its threads stand to Ray's log,
    dies, and is started again from its checkpoint. Decoding a split for the cache is such a time, as is a wait for
    S3."""
    storage_is_shared: bool = False
    """--storage is a local path that every node mounts."""
    cluster_may_grow: bool = False
    """An autoscaler adds nodes: don't refuse trials that don't fit yet."""


@dataclass(frozen=True)
class RunOptions(MachineOptions, ReadingOptions, ReadoutOptions, TrainingOptions, WhatOptions):
    """Options of every job that trains. Each class above is a group of its --help."""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        require(self.workers >= 1, "workers must be at least 1", self.workers)
        require(self.cpus_per_worker >= 1, "cpus_per_worker must be at least 1", self.cpus_per_worker)
        require(self.cache_budget_gb > 0, "cache_budget_gb must be positive", self.cache_budget_gb)
        require(self.shard_cache_gb >= 0, "shard_cache_gb cannot be negative", self.shard_cache_gb)
        require(self.checkpoint_batches >= 0, "checkpoint_batches cannot be negative", self.checkpoint_batches)
        require(self.stuck_minutes > 0, "stuck_minutes must be positive", self.stuck_minutes)

    @property
    def store(self) -> Store:
        """Where all studies are kept."""
        return Store.at(self.storage)


def parse(options: type[Options], args: list[str] | None = None) -> Options:
    """`options` from the command line. Raises `UsageError` for what tyro rejects."""
    return command_line(options, args, sys.modules[options.__module__].__doc__)


def command_line(options: type[T], args: Sequence[str] | None = None, description: str | None = None) -> T:
    """`tyro.cli`, with what it rejects as a `UsageError` of one line: the fault and the nearest known option.

    --help has a group for each class from which `options` inherits fields.
    """
    told, form = io.StringIO(), _form(options) if isinstance(options, type) else options
    markers = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
    try:
        with contextlib.redirect_stderr(told):
            parsed: Any = tyro.cli(form, args=args, description=_wrapped(description or ""), config=markers)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UsageError(_one_line(told.getvalue())) from None
    return options(**_flat(parsed)) if form is not options else parsed


def _form(options: type) -> type:
    """`options` with the fields that it inherits as a nested dataclass for each class that declares some."""
    hints, docs = typing.get_type_hints(options, include_extras=True), _field_docs(options)
    groups: dict[type, list[Any]] = {options: []}
    for known in dataclasses.fields(options):
        owner = next(cls for cls in reversed(options.__mro__) if known.name in inspect.get_annotations(cls))
        shown = tyro.conf.arg(help=docs[known.name], help_behavior_hint=_default_hint)
        default = dataclasses.field(default=known.default, default_factory=known.default_factory)
        groups.setdefault(owner, []).append((known.name, Annotated[hints[known.name], shown], default))
    fields = groups.pop(options)
    for owner, own in groups.items():
        group = dataclasses.make_dataclass(owner.__name__, own, namespace={"__doc__": owner.__doc__})
        fields.append((owner.__name__.removesuffix("Options").lower(), group, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass(options.__name__, fields)


def _flat(form: Any) -> dict[str, Any]:
    """The values of a form, those of its groups included, by the options' names."""
    values: dict[str, Any] = {}
    for name, value in vars(form).items():
        values |= _flat(value) if dataclasses.is_dataclass(value) else {name: value}
    return values


def _field_docs(options: type) -> dict[str, str]:
    """The string below each field, of the class that declares it last and has one."""
    docs: dict[str, str] = {}
    for cls in filter(dataclasses.is_dataclass, reversed(options.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for field_, doc in itertools.pairwise(body):
            if isinstance(field_, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                docs[ast.unparse(field_.target)] = " ".join(str(doc.value.value).split())
    return docs


def _default_hint(default: str) -> str:
    """What follows an option's text; nothing where that says itself what happens by default."""
    return "" if default in ("None", "''") else f"(default: {default})"


def _wrapped(text: str) -> str:
    """Paragraphs at the width of the terminal, 100 characters at most; indented ones, which are commands, as they are.

    tyro joins lines that begin with a letter, and doubles empty ones before others: none begins so, none is empty.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    parts = text.strip().split("\n\n")
    filled = (
        part if part.startswith(" ") else textwrap.fill(part, width, initial_indent=" ", subsequent_indent=" ")
        for part in parts
    )
    return "\n\u200b\n".join(filled)


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
        if other := search_spaces.presets().get(name):
            raise UsageError(f"Preset {name!r} is of method {other.method!r}, not of {method!r}: tune that one.")
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
    return redact({"options": to_dict(options), "train": to_dict(config)})
