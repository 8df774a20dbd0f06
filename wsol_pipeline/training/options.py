"""What every training can be told: plain data, of which command lines and files are made.

Importing options loads no torch, ray or mlflow: `--help` and a mistyped option answer at once.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from wsol_pipeline import selectors
from wsol_pipeline.training.config import Keep, Precision, Schedule, TrainGeometry, check_name, require

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store


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
    """A paper's recipe by id, e.g. bas-ext/table1/cub/resnet50. Options given beside it win. By default a recipe for
    pretrained --weights, or one that suits a laptop."""
    config: str | None = None
    """A YAML file of options, as --print-config writes it; what else is given here wins."""
    dry_run: bool = False
    """Check configuration, data, storage, MLflow and placement, train a few batches, say what the study would take, and
    start nothing."""
    print_config: bool = False
    """Print every option with the value that the run would have, as YAML for --config, and end."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained. Without --preset: for --weights a recipe that fine-tunes on photographs, else one for a
    laptop. Options win over all of them."""

    backbone: str | None = None
    """Network: tiny, resnet18, resnet50, mobilenet_v2, ... By default the preset's; without one resnet50 for
    imagenet's weights, else tiny."""
    weights: str | None = None
    """Initial weights: 'imagenet' (downloaded), or a path that every node sees. By default from scratch."""
    epochs: int | None = None
    """Passes over the training split. By default the preset's; without one 10 with --weights, else 4."""
    batch_size: int | None = None
    """Images a step over all workers together. By default the preset's; without one 16 with
    --weights, else 32."""
    learning_rate: float | None = None
    """Base learning rate of SGD; the method's multipliers come on top. By default the preset's; without one 0.001 with
    --weights, else 0.003."""
    weight_decay: float | None = None
    """L2 penalty on every parameter, biases and normalisation included. By default the preset's; 0.0005 without
    one."""
    schedule: Schedule | None = None
    """How the learning rate falls: every --decay-every epochs (step), when validation's Top-1 accuracy or the training
    loss stops improving (plateau_*), or evenly to 0 at the end (poly). By default the preset's; step without one."""
    plateau_patience: int | None = None
    """Epochs without improvement that a plateau schedule waits before learning rate x 0.1. By default the preset's; 2
    without one."""
    decay_every: int | None = None
    """Epochs between learning rate x 0.1 in a step schedule; 0: never. By default the preset's; 0 without one."""
    clip_norm: float | None = None
    """Gradient norm above which gradients are scaled down; 0: never. By default the preset's; 1 without one."""
    train_geometry: TrainGeometry | None = None
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
    """Pixels a side of what the network sees. By default the preset's (224, mostly); without one 224 with
    --weights, else 64."""
    resize_size: int | None = None
    """Pixels a side that images are resized to before the training crop. By default the preset's, without one 256 or 72
    as above; in proportion where --image-size is given alone."""
    keep: Keep = "last"
    """Which epoch's model a training ends with. last: as the papers do; best: that of the highest searched objective on
    validation, the last beside it. Then, and with --patience, the whole readout is searched after every epoch, and the
    pruner asked."""
    patience: int = 0
    """End a training after so many epochs without a better searched objective; 0: never, as the papers do."""
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
class SelectionOptions:
    """By what trial, readout and threshold are chosen on validation. Data with boxes need nothing of this."""

    select_by: str | None = None
    """boxes (the default where val has any), annotated:FILE (boxes of some of its images: see wsol annotate),
    pseudo:FILE (boxes made by a machine; proposals:FILE or detector:FILE where wsol propose made them), or without any
    box: evidence, consensus:STUDY (agreement with another method's finished study); of one trial also otsu, vote:NAMES,
    area:SHARE, own-mask. See docs/labels-only.md."""
    threshold_by: str | None = None
    """What finds the threshold where --select-by chose trial and setting: any of these. By default the same."""
    convention: Literal["inclusive0", "inclusive1", "exclusive0"] = "exclusive0"
    """What the corners in a FILE mean: is (x1, y1) the last pixel inside the box, is the first pixel 0 or 1."""
    allow_partial: bool = False
    """Take a FILE of a machine's boxes that lacks boxes of more than a tenth of the validation images."""

    def __post_init__(self) -> None:
        for text in filter(None, (self.select_by, self.threshold_by)):
            selectors.parse(text)


@dataclass(frozen=True)
class ReadingOptions:
    """How images reach the workers: their speed and place, never their order; their pixels where they are shrunk."""

    reading: Literal["auto", "cached", "shrunk", "streaming"] = "auto"
    """cached: pixels decoded once per node; shrunk: training images as small JPEGs, an eighth as large, of pixels that
    differ a little; streaming: Ray Data, exact at any size. auto: the first of them that --cache-budget-gb holds, which
    a study then keeps to."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels and small JPEGs; by default below the user's cache folder."""
    cache_budget_gb: float = 8.0
    """Largest split kept on a node, as pixels or as small JPEGs, in GB."""
    shard_cache_gb: float = 64.0
    """Disk space of a node for copies of streamed s3:// shards, in GB; a larger split is read anew in each epoch."""


@dataclass(frozen=True)
class MachineOptions:
    """What a trial runs on, and what it writes meanwhile."""

    workers: int = 1
    """Workers (processes, GPUs) that train one model together."""
    cpus_per_worker: int | None = None
    """CPU cores reserved for each worker: they crop images and score maps. By default 1 without GPUs; with them a GPU's
    share of its node's cores but one, or half of it where images are streamed, which other processes decode (and 1
    where an autoscaler has added no node yet)."""
    gpus_per_trial: float = 1.0
    """Share of a GPU, and of its memory, that a trial of one worker has: with 0.25 four small ones train on one. A
    trial for which that is too little memory goes on with a GPU of its own, after the others."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the cluster's GPUs if it has any, else CPUs; with --cluster-may-grow say cuda or cpu."""
    precision: Precision = "auto"
    """Arithmetic of forward and backward. auto: on GPUs bfloat16, if they have it, with losses and what is pooled in
    float32; on CPUs float32. float32: on GPUs without TF32. float64, weights too, is slow, and its rounding, which
    differs between machines and numbers of threads, 10^9 times smaller. reproducible: float64, and of each gradient
    three digits are kept, so that no training amplifies what differs: the result is the same on other machines."""
    channels_last: bool | None = None
    """Memory layout that is faster on GPUs with bfloat16. By default there alone."""
    deterministic: bool = False
    """Only kernels that give the same bits again: slower. A run on a GPU that was interrupted ends as if it had not
    been only then; on CPUs it does anyway."""
    compile: bool = False
    """Let TorchInductor make kernels for the network that is trained, at the first steps of each trial. It rounds
    otherwise than without. Not for ADL, CutMix and DA-WSOL; needs a C compiler on workers' machines."""
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
class RunOptions(MachineOptions, ReadingOptions, SelectionOptions, ReadoutOptions, TrainingOptions, WhatOptions):
    """Options of every job that trains. Each class above is a group of its --help."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("name", self.name)
        require(self.workers >= 1, "workers must be at least 1", self.workers)
        cpus = self.cpus_per_worker
        require(cpus is None or cpus >= 1, "cpus_per_worker must be at least 1", cpus)
        share = self.gpus_per_trial
        require(0 < share <= 1, "gpus_per_trial must be above 0 and at most 1 (more GPUs are more --workers)", share)
        require(share == 1 or self.workers == 1, "gpus_per_trial below 1 needs --workers 1", self.workers)
        require(share == 1 or self.device != "cpu", "gpus_per_trial below 1 needs GPUs", self.device)
        require(self.cache_budget_gb > 0, "cache_budget_gb must be positive", self.cache_budget_gb)
        require(self.shard_cache_gb >= 0, "shard_cache_gb cannot be negative", self.shard_cache_gb)
        require(self.checkpoint_batches >= 0, "checkpoint_batches cannot be negative", self.checkpoint_batches)
        require(self.stuck_minutes > 0, "stuck_minutes must be positive", self.stuck_minutes)

    @property
    def store(self) -> "Store":
        """Where all studies are kept."""
        return store_at(self.storage)


def store_at(place: str) -> "Store":
    """`Store.at`, whose import (an S3 client's) waits until something is read or written."""
    from wsol_pipeline.storage import Store

    return Store.at(place)
