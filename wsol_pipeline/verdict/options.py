"""What the jobs that judge, solve and reproduce can be told."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from wsol_pipeline import selectors
from wsol_pipeline.training.config import Precision, check_name, require
from wsol_pipeline.training.options import RunOptions, SelectionOptions, store_at

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store


@dataclass(frozen=True)
class EvaluateOptions:
    """Which studies to judge, and where."""

    study: tuple[str, ...] = ("bas",)
    """Names of studies (or runs). The first one's winner is the contender; the others stand beside it."""
    storage: str = "runs"
    """The --storage of those studies."""
    data: str | None = None
    """Where the studies' dataset is today, if it was moved. It is known by its fingerprint."""
    champion: bool = True
    """Give the first study's winner the alias 'champion' in the model registry."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one, here or, for a job on a cluster, on one of its nodes."""
    cluster_may_grow: bool = False
    """A job on a cluster whose autoscaler adds the GPU nodes: with --device cuda, wait for one."""
    batch_size: int = 64
    """Images a forward pass."""
    selectors: tuple[str, ...] = ()
    """Say too what it would have cost to choose the first study's winner by these instead of by boxes, e.g. otsu
    evidence consensus:cam evidence+otsu (trials and settings by one, thresholds by another)."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""
    experiment: str = "wsol"
    """MLflow experiment of the studies."""
    segmentation: tuple[str, ...] = ()
    """Instead: segmentation networks by name, each class on test; or seeds and pseudo masks, on training images whose
    masks were imported with --audit."""
    training_images: bool = False
    """Instead of test: on the images that trained the models, by boxes that were imported with --audit (CorLoc). Their
    labels are known, and nothing is chosen on them."""

    def __post_init__(self) -> None:
        require(len(self.study) >= 1, "at least one --study is needed", self.study)
        for name in self.study:
            check_name("study", name)
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        require(
            not (self.training_images and self.segmentation),
            "--training-images is of studies; --segmentation A knows by itself what A is of",
            self.segmentation,
        )
        for part in "+".join(self.selectors).split("+") if self.selectors else ():
            selectors.parse(part)

    @property
    def store(self) -> "Store":
        """Where all studies are kept."""
        return store_at(self.storage)


@dataclass(frozen=True)
class SolveOptions(SelectionOptions):
    """Which model is read anew, and how. Without --select-by it is chosen as its study was."""

    study: str = "bas"
    """The finished study (or run) whose winner is read."""
    name: str = ""
    """Name of the result, a study of one trial. By default <study>-<readout>."""
    storage: str = "runs"
    """The --storage of both."""
    data: str | None = None
    """Where the study's dataset is today, if it was moved. It is known by its fingerprint."""
    readout: str = "bagcams"
    """A file of wsol_models/readouts."""
    readout_options: dict[str, str] = field(default_factory=dict)
    """The readout's options by name, e.g. --readout-options stages '["layer3"]'."""
    objective: str | None = None
    """What validation maximises; by default what the study did."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one, here or, for a job on a cluster, on one of its nodes."""
    cluster_may_grow: bool = False
    """A job on a cluster whose autoscaler adds the GPU nodes: with --device cuda, wait for one."""
    batch_size: int = 32
    """Images a pass."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""
    experiment: str = "wsol"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("study", self.study)
        check_name("name", self.result)
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        require(self.result != self.study, "name must differ from study", self.result)

    @property
    def result(self) -> str:
        """The name of what comes out."""
        return self.name or f"{self.study}-{self.readout}"

    @property
    def store(self) -> "Store":
        """Where both are kept."""
        return store_at(self.storage)


@dataclass(frozen=True)
class AnnotateOptions:
    """Which images to annotate, and where to lay them out."""

    study: str = ""
    """A finished study on the data, whose model --prefill asks."""
    data: str | None = None
    """The dataset. By default the study's."""
    storage: str = "runs"
    """The --storage of the study."""
    images: int = 50
    """How many. A larger number later keeps these: 30 to 50 choose a threshold."""
    by: Literal["class", "disagreement"] = "class"
    """class: of each class in turn, whatever a model does with them; disagreement: those on which readings of the
    study's model differ most, which choose and from which nothing can be measured."""
    out: str = "todo"
    """A folder to lay them out in."""
    prefill: bool = False
    """Write the study's boxes, at Otsu's threshold, as a start: they are to be corrected, not to be taken."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""

    def __post_init__(self) -> None:
        if self.study:
            check_name("study", self.study)
        require(self.images >= 1, "images must be at least 1", self.images)
        require(bool(self.study or self.data), "--study or --data is needed to know which images", self.study)
        require(bool(self.study) or not self.prefill, "--prefill needs a --study whose boxes to write", self.study)
        needs = "--by disagreement needs a --study whose readings to compare"
        require(bool(self.study) or self.by != "disagreement", needs, self.study)

    @property
    def store(self) -> "Store":
        """Where the study is kept."""
        return store_at(self.storage)


AUTO = "auto"


@dataclass(frozen=True)
class ReproduceOptions(RunOptions):
    """Options of a reproduction. What is not given is as the paper has it."""

    row: str = ""
    """The published row by id, e.g. bas-ext/table1/cub/resnet50: a preset of any method (--list)."""
    seeds: int = 3
    """Trainings, with --seed and the following ones. A larger number later adds the missing ones."""
    listed: Annotated[tuple[str, ...] | None, tyro.conf.arg(name="list")] = None
    """Show the rows whose ids hold all of these texts (all rows, without one) with their figures, and end."""
    name: str = AUTO
    """Name of the reproduction: the same name continues it. auto: made of the row's id."""
    preset: tyro.conf.Suppress[str | None] = None
    precision: Precision = "float32"
    """Arithmetic of forward and backward: the papers' unless told, on GPUs too, without TF32."""
    dry_run: bool = False
    """Check configuration, data, storage, MLflow and placement, train a few batches, say what it would take, and start
    nothing."""
    max_device_hours: float | None = None
    """Start no more seeds once this is spent: hours of training and validation x workers, over all runs of the
    command."""
    time_budget: float | None = None
    """Hours after which this run of the command starts no more seeds."""
    concurrent: int | None = None
    """Seeds at once, from the second on; by default as many as the cluster holds."""
    study_db: str | None = None
    """SQLAlchemy URL of the study's database. By default as for a study."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seeds >= 1, "seeds must be at least 1", self.seeds)
        require(bool(self.row) or self.listed is not None, "--row must be the id of a published row (--list)", self.row)
