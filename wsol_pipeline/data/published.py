"""What the papers' datasets are: how many images and classes, to tell them from parts, small sets and other data."""

from dataclasses import dataclass
from typing import NamedTuple

from wsol_pipeline.data.shards import Manifest
from wsol_pipeline.protocol import Role


class Deviation(NamedTuple):
    """Something that a run has otherwise than what it is compared with."""

    what: str
    published: str
    here: str


@dataclass(frozen=True)
class PaperData:
    """A dataset as it was published, in numbers of images; `val` are those of the held-out set beside it, if any."""

    classes: int
    train: int
    test: int
    val: int = 0
    multilabel: bool = False


PAPER_DATA = {  # by the name in a preset
    "cub": PaperData(200, 5_994, 5_794, val=1_000),  # CUBV2
    "ilsvrc": PaperData(1000, 1_281_167, 50_000, val=10_000),  # ImageNetV2
    "openimages": PaperData(100, 29_819, 5_000, val=2_500),  # of the 30k
    "voc07": PaperData(20, 5_011, 4_952, multilabel=True),
    "voc12": PaperData(20, 10_582, 1_449, multilabel=True),  # with SBD; the test annotations are not public
    "coco14": PaperData(80, 82_081, 40_137, multilabel=True),  # images with an object
}


def is_paper_data(manifest: Manifest, name: str) -> bool:
    """Whether an import is the dataset `name`: drawn from nothing, of its classes, and whole.

    Whole: all its images are there, those held out for validation and those in quarantine included.
    """
    paper = PAPER_DATA[name]
    images = sum(split.rows for split in manifest.splits.values()) + sum(manifest.quarantine.values())
    whole = images in (paper.train + paper.test, paper.train + paper.test + paper.val)
    kind = (len(manifest.classes), manifest.multilabel) == (paper.classes, paper.multilabel)
    return whole and kind and manifest.source.get("importer") != "synthetic"


def data_deviations(manifest: Manifest, name: str) -> list[Deviation]:
    """What an import has otherwise than the dataset `name`, the whole first if it is another."""
    paper, splits = PAPER_DATA[name], manifest.splits
    kinds = {False: "one class an image", True: "several classes an image"}
    compared = [
        Deviation("classes", str(paper.classes), str(len(manifest.classes))),
        Deviation("labels", kinds[paper.multilabel], kinds[manifest.multilabel]),
        Deviation("training images", f"{paper.train:,}", f"{splits[Role.TRAIN].rows:,}"),
        Deviation("test images", f"{paper.test:,}", f"{splits[Role.TEST].rows:,}"),
    ]
    found = [deviation for deviation in compared if deviation.published != deviation.here]
    if is_paper_data(manifest, name):
        return found
    drawn = "generated, " if manifest.source.get("importer") == "synthetic" else ""
    images = sum(split.rows for split in splits.values())
    return [Deviation("data", name, f"{manifest.name} ({drawn}{images:,} images in all)"), *found]
