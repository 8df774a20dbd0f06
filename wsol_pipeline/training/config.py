"""What a run is: frozen dataclasses, checked on construction, plain data on the way to workers and into checkpoints."""

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from wsol_pipeline.errors import UsageError, unknown

T = TypeVar("T")
Schedule = Literal["step", "plateau_top1", "plateau_loss", "poly"]  # see `optim.learning_rate`
TrainGeometry = Literal["crop", "random_resized_crop", "random_resized_crop_stored"]  # see `augment.Augmentation`
Keep = Literal["last", "best"]
Precision = Literal["auto", "float32", "bfloat16", "float64", "reproducible"]
NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_name(kind: str, name: str) -> str:
    """`name` if it can stand in a path, a database and a URL alike. Raises `UsageError`."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise UsageError(f"A {kind} is 1 to 128 letters, digits, '.', '_' or '-' but got {name!r}.")
    return name


def require(condition: bool, rule: str, value: object) -> None:
    """Raise `UsageError` with the rule and the value that broke it."""
    if not condition:
        raise UsageError(f"{rule} but got {value!r}.")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain data (JSON types)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def as_kept(config: "TrainConfig") -> dict[str, Any]:
    """A configuration as it is kept and compared: a file of weights by what it holds, not by where it lies."""
    data = to_dict(config)
    digest = data.pop("weights_digest")
    return data | {"weights": f"sha256:{digest}"} if digest else data


def from_dict(cls: type[T], data: dict[str, Any]) -> T:
    """The inverse of `to_dict`. Unknown keys raise `UsageError` with the nearest known one."""
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in hints:
            raise unknown(f"{cls.__name__} field", key, hints)
        nested = hints[key]
        if dataclasses.is_dataclass(nested) and isinstance(value, dict):
            value = from_dict(typing.cast(type, nested), value)
        values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def config_hash(data: dict[str, Any]) -> str:
    """Sixteen hex digits of the SHA-256 over `data` as canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], most: int = 5) -> str:
    """What differs between two trees of plain data, in words; "" if nothing does."""
    was, is_ = _flatten(json.loads(json.dumps(before))), _flatten(json.loads(json.dumps(now)))
    different = sorted(key for key in was.keys() | is_.keys() if was.get(key) != is_.get(key))
    changes = "; ".join(f"{key} was {was.get(key)!r}, now {is_.get(key)!r}" for key in different[:most])
    return changes + (f"; and {len(different) - most} more" if len(different) > most else "")


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


@dataclass(frozen=True)
class Recipe:
    """SGD as the papers use it; presets carry the papers' values."""

    epochs: int = 10
    batch_size: int = 32  # global: the same whatever the number of workers
    learning_rate: float = 0.02
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = True
    schedule: Schedule = "step"
    plateau_patience: int = 2  # epochs without improvement that a plateau schedule waits before lr x 0.1
    decay_every: int = 0  # step: epochs between lr x 0.1; 0: never
    decay_counts_from: int = 0  # 0: before 0-based epochs divisible by decay_every; 1: before 1-based ones
    clip_norm: float = 0.0  # gradient norm above which gradients are scaled down; 0: never
    train_geometry: TrainGeometry = "crop"  # what training images are
    crop_scale: float = 0.08  # smallest share of an image's area in a random resized crop
    drop_last: bool = False  # leave out what is left of an epoch after its last whole batch

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs must be at least 1", self.epochs)
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        require(self.learning_rate > 0, "learning_rate must be positive", self.learning_rate)
        require(self.weight_decay >= 0, "weight_decay cannot be negative", self.weight_decay)
        require(0 <= self.momentum < 1, "momentum must be in [0, 1)", self.momentum)
        require(self.plateau_patience >= 0, "plateau_patience cannot be negative", self.plateau_patience)
        require(self.decay_every >= 0, "decay_every cannot be negative", self.decay_every)
        require(self.decay_counts_from in (0, 1), "decay_counts_from must be 0 or 1", self.decay_counts_from)
        require(self.clip_norm >= 0, "clip_norm cannot be negative", self.clip_norm)
        require(0 < self.crop_scale <= 1, "crop_scale must be in (0, 1]", self.crop_scale)
        for kind, known in (("schedule", Schedule), ("train_geometry", TrainGeometry)):
            if getattr(self, kind) not in typing.get_args(known):
                raise unknown(kind, getattr(self, kind), typing.get_args(known))


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of one training run, apart from the data."""

    method: str = "bas"
    backbone: str = "tiny"
    weights: str | None = None  # "imagenet", a path, or None: from scratch
    weights_digest: str = ""  # SHA-256 of the file that `weights` names, if known: it may lie elsewhere tomorrow
    options: dict[str, Any] = field(default_factory=dict)  # the method's hyper-parameters, by its Config's names
    readout: str = "topk"
    readout_options: dict[str, Any] = field(default_factory=dict)  # by the readout's own names
    fixed_setting: Any = None  # the readout setting scored each epoch; None: the readout's first
    protocol: str = "wsol-v1"
    objective: str = "max_box_acc_v2"
    select_by: str = "boxes"  # what ranks trials and settings on validation: see `wsol_pipeline.selectors`
    threshold_by: str | None = None  # what finds the thresholds; None: the same
    truth: str = ""  # SHA-256 of what these bring: boxes, other models; "": nothing
    recipe: Recipe = field(default_factory=Recipe)
    image_size: int = 64
    resize_size: int = 72
    shrunk_jpegs: int = 0  # quality of the JPEGs that training images are read from; 0: their exact pixels
    freeze_batch_norm: bool = False
    sync_batch_norm: bool = False  # statistics over all workers; GPUs only
    precision: Precision = "auto"  # see `arithmetic.arithmetic`, `build.build_method`
    channels_last: bool | None = None  # None: on GPUs
    deterministic: bool = False  # the same bits again on a GPU
    compile: bool = False  # see `compiling`
    seed: int = 0
    keep: Keep = "last"  # which epoch's model the finished one is; best: by the searched objective on validation
    patience: int = 0  # epochs without a better searched objective after which training ends; 0: never
    rungs: tuple[int, ...] = ()  # epochs (1-based) after which the whole readout is searched and the pruner asked

    def __post_init__(self) -> None:
        require(8 <= self.image_size <= self.resize_size, "8 <= image_size <= resize_size is needed", self.image_size)
        require(self.seed >= 0, "seed cannot be negative", self.seed)
        require(self.patience >= 0, "patience cannot be negative", self.patience)
        if self.keep not in typing.get_args(Keep):
            raise unknown("epoch to keep", self.keep, typing.get_args(Keep))
        precisions = typing.get_args(Precision)
        require(self.precision in precisions, f"precision is one of {', '.join(precisions)}", self.precision)

    @property
    def searches_each_epoch(self) -> bool:
        """Whether the whole readout is searched after every epoch: values at one setting don't compare epochs."""
        return self.keep == "best" or self.patience > 0


@dataclass(frozen=True)
class Reading:
    """How rows reach a worker: speed and place only, never the order or the pixels."""

    mode: Literal["auto", "cached", "streaming"] = "auto"
    cache_dir: str | None = None
    cache_budget_gb: float = 8.0
    shard_cache_gb: float = 64.0


@dataclass(frozen=True)
class Job:
    """One training run as a worker gets it: what to train, on what, and where it writes."""

    train: TrainConfig
    data: str
    trial: str  # URI of the trial's folder
    attempt: int
    study: str = ""  # the id of the study that its results belong to
    fingerprint: str = ""  # of the data; "": whatever lies there
    sources: dict[str, Any] = field(default_factory=dict)  # what the selectors bring, by their names
    workers: int = 1
    cpus_per_worker: int = 1
    gpus: float = 1.0  # of each worker, where device is cuda; below 1 it shares one, and has as much of its memory
    device: Literal["cpu", "cuda"] = "cpu"
    reading: Reading = field(default_factory=Reading)
    checkpoint_batches: int = 0  # also write a checkpoint every so many batches; 0: at the end of epochs only
    stuck_minutes: float = 20.0  # without a batch, after which a worker dies and is started again
