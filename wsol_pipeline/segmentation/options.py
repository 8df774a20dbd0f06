"""What the jobs of the walk can be told: seeds, refinement, segmentation networks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wsol_pipeline.errors import UsageError, unknown
from wsol_pipeline.training.config import check_name, require
from wsol_pipeline.training.options import store_at

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store

REFINEMENTS = ("irn", "pamr", "crf")  # in the order in which they may follow each other
NETWORKS = (  # of wsol_models.segmentation, which imports torch
    "deeplabv2_resnet101", "deeplabv3_resnet101", "deeplabv3_resnet50", "lraspp_mobilenet_v2",
    "lraspp_mobilenet_v3_large",
)  # fmt: skip
Field = Literal["none", "exact", "library"]


@dataclass(frozen=True)
class PlaceOptions:
    """Where stations are kept and what makes them."""

    name: str = ""
    """Name of the result: the same name continues it."""
    storage: str = "runs"
    """The --storage of the study: all stations are kept there too."""
    workers: int = 1
    """Processes (GPUs) that share the work; over 1 they are Ray actors, or workers of one training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    experiment: str = "wsol"
    """MLflow experiment."""
    dry_run: bool = False
    """Check what there is, say what it would take, and start nothing."""

    preset: str = ""
    """Seeds and pseudo masks as a published row has them, e.g. bas-ext/table13/voc12/average; what else is given wins,
    and an evaluation shows its figures beside."""
    export: str = ""
    """Seeds and pseudo masks: also write them here as palette PNG, run lengths (Parquet) and COCO annotations."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, "workers must be at least 1", self.workers)
        if self.name:
            check_name("name", self.name)

    @property
    def store(self) -> "Store":
        return store_at(self.storage)


@dataclass(frozen=True)
class SeedOptions(PlaceOptions):
    """How image labels become seeds."""

    study: str = "bas"
    """The finished study (or run) whose winner makes the maps."""
    fuse: tuple[str, ...] = ()
    """Further methods whose maps are added: finished studies of the same data, or folders of seeds that were kept whole
    (--keep full). By default none."""
    fuse_weights: tuple[float, ...] = ()
    """A weight for the study and each of --fuse. By default all are 1."""
    threshold: str = "val"
    """Where the background ends: val (one constant, the best mIoU on validation's masks), labels (one constant, by what
    BAS suppresses: no mask), image (one for each image, likewise), or a number in 0..1."""
    per: Literal["image", "class"] = "image"
    """With --threshold image: one cut for an image, or one for each of its classes."""
    steps: int = 20
    """Cuts that --threshold image and labels try: 100 for a final run."""
    agnostic: Literal["none", "replace", "average", "average_all"] = "none"
    """What a map of all objects, of a BAS with foreground_head, does to class maps that are above it (Table 13)."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Sizes at which a photograph is seen, of its own."""
    mirror: bool = True
    """Add the maps of the mirror image."""
    base: int = 0
    """Short side in pixels that scale 1 has. 0: the photograph's own."""
    readout: str = ""
    """How maps are read: a file of wsol_models/readouts. By default the method's own maps, else its CAM."""
    keep: Literal["strided", "full"] = "strided"
    """Also keep maps of the image's size, which --fuse reads."""
    foreground_at: float = 0.30
    """Confident labels, which train IRN: the threshold above which a pixel is of its class."""
    background_at: float = 0.05
    """The threshold below which it is background (IRN .05, BAS with IRN .17, AdvCAM .15)."""
    field: Field = "exact"
    """The dense random field that confident labels are drawn to edges by: exact (on every s-th pixel), library
    (pydensecrf2, the extra wsol[crf]) or none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("study", self.study)
        require(self.steps >= 1, "steps must be at least 1", self.steps)
        require(bool(self.scales) and min(self.scales) > 0, "scales must be over 0", self.scales)
        require(0 <= self.background_at <= self.foreground_at <= 1,
                "background_at and foreground_at must be in 0..1, in this order",
                (self.background_at, self.foreground_at))  # fmt: skip
        weights = len(self.fuse_weights)
        require(not weights or weights == 1 + len(self.fuse), "fuse_weights needs one for each method", weights)
        self.constant  # noqa: B018  # refuses a threshold that is none

    @property
    def constant(self) -> float | None:
        """The threshold, if it is a number."""
        if self.threshold in ("val", "labels", "image"):
            return None
        try:
            value = float(self.threshold)
        except ValueError:
            raise unknown("threshold", self.threshold, ("val", "labels", "image", "a number")) from None
        require(0 <= value < 1, "threshold must be in 0..1", value)
        return value

    @property
    def result(self) -> str:
        return self.name or f"{self.study}-seeds"


@dataclass(frozen=True)
class IrnOptions:
    """How IRN's boundaries are trained, and the walk on them."""

    backbone: str = ""
    """IRN: the frozen network below its branches. By default the study's (the paper has resnet50)."""
    weights: str | None = None
    """IRN: 'imagenet' (the paper), or a file of the backbone's weights. By default what the study's network has become,
    if it is of that backbone."""
    irn_epochs: int = 3
    """IRN: passes over the training images."""
    irn_batch: int = 32
    """IRN: images a step over all workers."""
    irn_lr: float = 0.1
    """IRN: learning rate of the boundary branch; it falls to 0."""
    irn_momentum: float = 1e-4
    """IRN: SGD's momentum. The authors' code hands it the weight decay; .9 is what one would expect."""
    irn_crop: int = 512
    """IRN: side in pixels of the crops it is trained on; 12 cells of 4 px at least."""
    irn_pad: int = 512
    """IRN: smaller images are padded to so many pixels a side before it, as the authors' code does; 0: none is."""
    power: float = 1.0
    """Walk: exponent of the seeds before it (BAS with IRN 1.5)."""
    walk_radius: int = 5
    """Walk: pairs of cells closer than this are connected."""
    beta: float = 10.0
    """Walk: exponent of affinities."""
    exponent: int = 8
    """Walk: the transition matrix is squared so often."""


@dataclass(frozen=True)
class RefineOptions(IrnOptions, PlaceOptions):
    """How seeds become pseudo masks."""

    seeds: str = ""
    """The finished seeds."""
    by: tuple[str, ...] = ("irn",)
    """What refines them: irn, pamr, crf, or several in this order; none for the seeds as they are."""
    threshold: str = "val"
    """Where the background ends after it: val, or a number in 0..1."""
    pamr_size: Literal["strided", "full"] = "strided"
    """PAMR works at stride 4, or at the image's size (35 times the work)."""
    field: Field = "exact"
    """What --by crf is: exact (on every s-th pixel) or library (pydensecrf2)."""
    alpha: float = 0.0
    """CRF: background score (1 - max)^alpha; 0: the seeds' constant."""
    seed: int = 0
    """Seed of IRN's training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.seeds), "--seeds must name finished seeds", self.seeds)
        for step in self.by:
            if step not in (*REFINEMENTS, "none"):
                raise unknown("refinement", step, (*REFINEMENTS, "none"))
        order = [REFINEMENTS.index(step) for step in self.steps]
        require(order == sorted(set(order)), "refinements follow each other as irn, pamr, crf", self.by)
        require(
            self.threshold == "val" or _is_share(self.threshold), "threshold must be val or in 0..1", self.threshold
        )
        require(self.irn_crop >= 80, "irn_crop must be at least 80 px: pairs lie 9 cells of 4 px apart", self.irn_crop)
        if self.field == "none" and "crf" in self.by:
            raise UsageError("--by crf needs --field exact or library.")

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(step for step in self.by if step != "none")

    @property
    def result(self) -> str:
        return self.name or f"{self.seeds.removesuffix('-seeds')}-{'-'.join(self.steps) or 'masks'}"


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) < 1
    except ValueError:
        return False


@dataclass(frozen=True)
class TuneMasksOptions(IrnOptions, PlaceOptions):
    """A search over BAS and what refines its seeds. What it searches it begins at the values given here."""

    study: str = "bas"
    """The finished study of bas whose winner is trained anew in each trial, with other loss weights."""
    start_weights: str = ""
    """The file that the study had as --weights, if it had one: models know it by its SHA-256 alone."""
    trials: int = 10
    """Trainings of BAS, the winner's own settings first. More of them continue the search."""
    by: tuple[str, ...] = ("pamr",)
    """What refines seeds: irn (its thresholds, radius and exponents are searched too), pamr, crf (its background is),
    or several in this order; none."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Sizes at which a photograph is seen, of its own."""
    base: int = 0
    """Short side in pixels that scale 1 has. 0: the photograph's own."""
    field: Field = "exact"
    """The dense random field of confident labels and of --by crf: exact, library or none."""
    pamr_size: Literal["strided", "full"] = "strided"
    """PAMR works at stride 4, or at the image's size."""
    seed: int = 0
    """Seed of the search and of IRN's training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("study", self.study)
        require(self.trials >= 1, "trials must be at least 1", self.trials)
        self.stations("trial")  # refuses what they do not know

    def stations(self, trial: str, **read: Any) -> tuple[SeedOptions, RefineOptions]:
        """Seeds and masks of a trial. `read`: options by name, "seeds." or "refine." before it."""
        placed = {name: getattr(self, name) for name in ("storage", "workers", "device", "experiment", "field")}
        walk = {name: getattr(self, name) for name in IrnOptions.__dataclass_fields__}
        own: dict[str, dict[str, Any]] = {"seeds": {}, "refine": {}}
        for name, value in read.items():
            station, _, option = name.partition(".")
            own[station][option] = value
        seeds = SeedOptions(**placed, study=trial, scales=self.scales, base=self.base, **own["seeds"])
        refinement = {**placed, **walk, "pamr_size": self.pamr_size, "seed": self.seed, **own["refine"]}
        return seeds, RefineOptions(seeds=seeds.result, by=self.by, **refinement)

    @property
    def result(self) -> str:
        return self.name or f"{self.study}-tuned"


@dataclass(frozen=True)
class SegmentOptions(PlaceOptions):
    """How a segmentation network learns from pseudo masks."""

    masks: str = ""
    """The finished pseudo masks."""
    network: str = "deeplabv3_resnet50"
    """deeplabv3_resnet50, deeplabv3_resnet101, lraspp_mobilenet_v3_large, lraspp_mobilenet_v2, deeplabv2_resnet101."""
    weights: str | None = None
    """Initial weights of its backbone: 'imagenet' (downloaded), or a path that every node sees. By default random."""
    supervision: Literal["labels", "full"] = "labels"
    """full lets weights in that were trained on masks of pixels; the result says so."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 16
    """Images a step over all workers together."""
    learning_rate: float | None = None
    """Of the backbone, new layers have ten times it; it falls to 0 by (1 - t)^.9. By default the network's, x batch /
    32."""
    crop: int | None = None
    """Side in pixels of the random crops. By default the network's (480; lraspp and deeplabv2 321)."""
    freeze_batch_norm: bool = False
    """Keep BatchNorm's stored statistics fixed: for batches of one image a worker."""
    checkpoint_batches: int = 0
    """Batches between checkpoints inside an epoch. 0: at its end only."""
    seed: int = 0
    """Seed of initialisation, order and crops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network not in NETWORKS:
            raise unknown("network", self.network, NETWORKS)
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))

    @property
    def result(self) -> str:
        return self.name or f"{self.masks}-{self.network.split('_')[0]}"


@dataclass(frozen=True)
class WalkOptions(SegmentOptions):
    """The training of a network, and what is made before it. `seeds.py` and `refine.py` have all their options."""

    study: str = ""
    """Instead of --masks: the finished study whose seeds and pseudo masks are made first, where they are missing."""
    by: tuple[str, ...] = ("irn",)
    """With --study: what refines its seeds: irn, pamr, crf, or several in this order; none."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """With --study: sizes at which a photograph is seen, of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.masks) != bool(self.study), "either --masks or --study must be given", self.masks or "neither"
        )
        if self.study:
            self.refinement  # noqa: B018  # refuses what it does not know

    def _placed(self, **own: Any) -> dict[str, Any]:
        shared = {name: getattr(self, name) for name in ("storage", "workers", "device", "experiment")}
        return {**shared, **own}

    @property
    def seeds(self) -> SeedOptions:
        return SeedOptions(**self._placed(study=self.study, scales=self.scales))

    @property
    def refinement(self) -> RefineOptions:
        return RefineOptions(**self._placed(seeds=self.seeds.result, by=self.by, seed=self.seed))

    @property
    def training(self) -> SegmentOptions:
        masks = self.masks or self.refinement.result
        own = {name: getattr(self, name) for name in SegmentOptions.__dataclass_fields__}
        return SegmentOptions(**{**own, "masks": masks})
