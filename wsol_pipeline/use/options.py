"""What the jobs that use a finished model can be told."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from wsol_pipeline.training.config import check_name, require
from wsol_pipeline.training.options import store_at

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store
    from wsol_pipeline.training.localization import Wanted

TOKEN = "WSOL_SERVE_TOKEN"
UNKNOWN = "unknown: state it with --license"
LOOPBACK = ("127.0.0.1", "localhost")
FORMATS = ("coco", "voc", "yolo", "csv", "masks", "overlays", "html")
Format = Literal["coco", "voc", "yolo", "csv", "masks", "overlays", "html"]


@dataclass(frozen=True)
class ModelOptions:
    """Which finished model."""

    model: str = ""
    """models:/NAME@champion or models:/NAME/3 of MLflow, or a model's folder or zip (see export.py)."""
    study: str = ""
    """In place of --model: the finished study whose winner it is."""
    storage: str = "runs"
    """The --storage of that study, and of MLflow's file where MLFLOW_TRACKING_URI is not set."""

    def __post_init__(self) -> None:
        require(not (self.model and self.study), "give --model or --study, not both", self.model)
        if self.study:
            check_name("study", self.study)

    def require_model(self) -> None:
        """Raise `UsageError` unless a model is named."""
        require(bool(self.model or self.study), "a model is needed: --model, or the --study that made it", self.model)


@dataclass(frozen=True)
class WantedOptions:
    """What is localized in each image."""

    labels: str = ""
    """The images' classes, where they are known: a class of the model for all; folder, for <class>/x.jpg; or
    column:NAME of the list. Then the map is that class's. By default the model predicts them."""
    classes: tuple[str, ...] = ()
    """Classes that may be predicted. By default all."""
    top: int | None = None
    """Classes an image. By default 1; of a multi-label model all over --conf."""
    conf: float | None = None
    """Least probability of a predicted class. By default 0; of a multi-label model 0.5."""
    threshold: str = ""
    """On the map: 0 <= τ < 1, or otsu. By default the one chosen on validation."""
    boxes: Literal["largest", "all"] = "largest"
    """The largest part of a mask, or all of its parts."""
    max_det: int = 10
    """Boxes an image and class, with --boxes all."""
    min_area: float = 0.0
    """Least share of the image that a box takes."""
    views: Literal["whole", "resize"] = "whole"
    """Of a model whose protocol crops: whole, the centre as it was judged; resize, all of an image at the crop's size,
    as it was not."""

    def __post_init__(self) -> None:
        require(not (self.labels and self.top), "--labels and --top exclude each other", self.top)

    def wanted(self) -> "Wanted":
        """The same, checked. Raises `UsageError`."""
        from wsol_pipeline.training.localization import Wanted

        return Wanted(
            self.cut, self.top, self.conf, self.classes, self.boxes, self.max_det, self.min_area
        )  # fmt: skip

    @property
    def cut(self) -> float | str | None:
        """The threshold as a number where it is one."""
        try:
            return float(self.threshold) if self.threshold else None
        except ValueError:
            return self.threshold


@dataclass(frozen=True)
class SourceOptions:
    """Which images."""

    source: str = ""
    """An image, a folder of them, a glob, an s3://bucket/prefix, a list (.txt, or .csv with a column path or uri), a
    tar or zip, a Parquet file, or an imported dataset's PLACE:train or PLACE:val."""
    image_column: str = "image"
    """Of a Parquet file: the column of encoded images, or of their URIs."""
    id_column: str = ""
    """Of a Parquet file: the column of names. By default the numbers of the rows."""
    scale_16bit: bool = False
    """Take images of 16 bits or floats too, their 0.5 to 99.5 percentiles as 0 to 255."""
    allow_test: bool = False
    """Let an imported dataset's PLACE:test be localized; nothing may then be chosen by what comes out."""


@dataclass(frozen=True)
class RunningOptions:
    """How the work is done; none of it changes a result."""

    batch_size: int = 32
    """Images a forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    workers: int = 1
    """Models at work: 1 works in this process, without Ray; more are Ray actors, with a GPU each where there are."""
    decoders: int = 0
    """Threads of each that read images. By default one a core of its machine."""
    max_bad: float = 1.0
    """Share of images (0 to 1) that may be broken before the job stops."""
    storage_is_shared: bool = False
    """A local --source is mounted on every node of the cluster."""


@dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """Options of an export."""

    out: str = ""
    """Where it goes: for a folder a new one, or s3://bucket/prefix; else a file."""
    format: Literal["folder", "onnx", "torch-export", "mlflow"] = "folder"
    """folder: what load_model reads, with a card; mlflow: the same as MLflow's model; onnx and torch-export: the graph
    from bytes to probabilities and a raw map."""
    opset: int = 18
    """Of ONNX."""
    images: str = ""
    """Images to compare on, as --source of localize.py has them. By default those of the validation split of
    --study."""
    license: str = UNKNOWN
    """Terms of the weights, for the card."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_model()
        require(bool(self.out), "out must say where the export goes", self.out)


@dataclass(frozen=True)
class LocalizeOptions(RunningOptions, WantedOptions, SourceOptions, ModelOptions):
    """Options of a localization. Each class above is a group of its --help."""

    out: str = "localized"
    """Where results go: a folder or s3://bucket/prefix. The same command again continues there."""
    format: tuple[Format, ...] = ()
    """Written beside the Parquet parts: coco, voc, yolo, csv, masks, overlays, html. Later too, with --out alone."""
    gallery: int = 200
    """Images on the page of --format html, at most."""
    save_conf: bool = False
    """Add the score to the lines of --format yolo."""
    chunk: int = 1024
    """Images of a part: what a death loses at most."""
    extend: bool = False
    """The source has new images: localize these too."""
    redo_changed: bool = False
    """Images of the source have changed: localize their parts anew."""
    verify: bool = False
    """Check that --out holds each image of its listing once, and end."""

    def __post_init__(self) -> None:
        ModelOptions.__post_init__(self)
        WantedOptions.__post_init__(self)
        for name in ("batch_size", "workers", "chunk"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        require(self.decoders >= 0, "decoders cannot be negative", self.decoders)
        require(0 <= self.max_bad <= 1, "max_bad is a share of images in 0..1", self.max_bad)
        require(self.gallery >= 1, "gallery must be at least 1", self.gallery)
        if self.source:
            self.require_model()

    @property
    def store(self) -> "Store":
        """Where results go."""
        return store_at(self.out)


@dataclass(frozen=True)
class ProposeOptions:
    """Options of boxes that a machine makes for the images of validation."""

    by: Literal["proposals", "detector"] = "proposals"
    """proposals: Selective Search, which knows no box; detector: one of torchvision's, which uses boxes of COCO."""
    reference: str = ""
    """The classifier that points: models:/NAME@champion or a model's folder. By default the winner of --study."""
    study: str = ""
    """A finished study on the data, in place of --reference."""
    data: str | None = None
    """The dataset. By default the study's."""
    storage: str = "runs"
    """The --storage of the study."""
    out: str = "boxes.csv"
    """The file that is written, for --select-by proposals:FILE or detector:FILE."""
    proposals_python: str = ""
    """A Python that has opencv-contrib-python-headless, in an environment of its own."""
    children: int = 0
    """Such Pythons at once. By default one a core."""
    arch: str = "fasterrcnn_resnet50_fpn_v2"
    """The detector: one of torchvision's."""
    weights: str = ""
    """Its weights, trained on COCO: a file that you have downloaded."""
    mode: Literal["rpn", "boxes"] = "rpn"
    """rpn: what it proposes before it classifies, chosen as proposals are; boxes: its surest detection at the peak."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""

    def __post_init__(self) -> None:
        if self.study:
            check_name("study", self.study)
        require(bool(self.reference or self.study), "a classifier is needed: --reference or --study", self.reference)
        require(bool(self.study or self.data), "--data is needed where no --study says which", self.study)
        require(self.children >= 0, "children cannot be negative", self.children)
        needs = "--by proposals needs --proposals-python, a Python with opencv-contrib-python-headless"
        require(bool(self.proposals_python) or self.by != "proposals", needs, self.proposals_python)
        needs = "--by detector needs --weights, a file of the detector's weights that you have downloaded"
        require(bool(self.weights) or self.by != "detector", needs, self.weights)


@dataclass(frozen=True)
class DetectorOptions:
    """Options of a detector that learns from a localizer's boxes."""

    taught: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Where the teacher's boxes are: an --out of localize.py, of training images with --labels."""
    study: str = ""
    """The teacher: the finished study whose winner made them."""
    storage: str = "runs"
    """The --storage of that study."""
    data: str | None = None
    """The dataset whose test images judge. By default the study's."""
    out: str = "student"
    """A folder for the detector and its verdict."""
    arch: Literal["retinanet_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2", "ssdlite320_mobilenet_v3_large"] = (
        "retinanet_resnet50_fpn_v2"
    )
    """The detector: one of torchvision's."""
    weights: str = ""
    """What it starts from: a file of torchvision's weights of its backbone (a classifier), or of a detector, which then
    stands on true boxes of other data. By default random ones."""
    steps: int = 5000
    """Steps of training: the end is fixed before, and nothing is chosen by test."""
    batch_size: int = 8
    """Images a step."""
    learning_rate: float = 0.005
    """The highest."""
    seed: int = 0
    """Of initial weights, order and mirror images."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""

    def __post_init__(self) -> None:
        require(bool(self.taught), "--from must say where the teacher's boxes are", self.taught)
        require(bool(self.study), "--study must name the teacher", self.study)
        check_name("study", self.study)
        for name in ("steps", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        require(0 < self.learning_rate < float("inf"), "learning_rate must be positive", self.learning_rate)
        require(self.seed >= 0, "seed cannot be negative", self.seed)


@dataclass(frozen=True)
class ServeOptions(ModelOptions):
    """Options of a server. A host that others reach needs a token in the environment, `WSOL_SERVE_TOKEN`."""

    host: str = "127.0.0.1"
    """Where it listens. By default on this machine alone."""
    port: int = 8000
    """Of the page and the endpoint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    replicas: int = 1
    """Models at work, with a GPU each, or their share of the cores."""
    batch_size: int = 8
    """Images a forward pass, of those that wait; none waits for others."""
    max_mib: float = 16.0
    """Largest request."""
    max_megapixels: float = 24.0
    """Largest image."""
    queue: int = 64
    """Requests that may wait; more are answered 503."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_model()
        require(0 < self.port < 2**16, "port must be in 1..65535", self.port)
        for name in ("replicas", "batch_size", "queue"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        require(0 < self.max_mib <= 64, "max_mib must be in 0 < m <= 64", self.max_mib)
        require(0 < self.max_megapixels <= 64, "max_megapixels must be in 0 < m <= 64", self.max_megapixels)
        need = f"{TOKEN} in the environment must hold a token of 16 characters or more where --host is open to others"
        require(self.is_loopback or len(self.token) >= 16, need, self.host)

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can ask."""
        return self.host in LOOPBACK

    @property
    def token(self) -> str:
        """What a request must bear; none if it is empty."""
        return os.environ.get(TOKEN, "")
