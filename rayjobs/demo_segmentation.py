"""From image labels to a segmentation network on a laptop, on generated images whose masks are exact.

    make demo-segmentation    (or: python rayjobs/demo_segmentation.py)

Each step is a job that also runs alone, by the line shown. Ray runs locally; MLflow uses a SQLite file.
"""

import shlex
import time
from dataclasses import dataclass

from rayjobs import evaluate, import_dataset, refine, seeds, segment, train
from rayjobs.demo import step
from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main

IMAGES = "--dataset synthetic --objects 3 --classes 4 --train 600 --val 100 --test 150 --audit"
JUDGED = "--protocol voc-miou --objective miou"
NETWORK = "--network lraspp_mobilenet_v3_large --crop 80 --batch-size 16 --epochs 16 --learning-rate 0.02"
# name: what it is, and what it is made of
STATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "seg-cam-seeds": ("CAM's seeds, labels known", ()),
    "seg-bas-seeds": ("BAS's seeds, labels known", ()),
    "seg-seeds": ("both maps added up, labels known", ("seg-cam-seeds", "seg-bas-seeds")),
    "seg-pamr": ("PAMR's masks of these, labels known", ("seg-seeds",)),
    "seg-pamr-lraspp": ("the network, of images alone", ("seg-pamr",)),
}


@dataclass(frozen=True)
class Options:
    """Options of the demonstration."""

    storage: str = "runs"
    """Where everything goes."""


def start_weights(storage: str) -> str:
    """The backbone that the classifier has learnt: from scratch the area term of BAS empties the maps."""
    from wsol_pipeline.storage import Store
    from wsol_pipeline.training.model import BACKBONE
    from wsol_pipeline.verdict.rows import finished_study

    return Store(finished_study(Store.at(storage), "seg-cam")["model"]).path(BACKBONE)


def main(args: list[str] | None = None) -> int:
    options, started = command_line(Options, args, __doc__), time.monotonic()
    where = f"--storage {shlex.quote(options.storage)}"
    data = shlex.quote(f"{options.storage}/data/several")
    study = f"--data {data} {JUDGED} {where}"
    step("Generated images of one to three objects, with exact masks", import_dataset.main, "import_dataset",
         f"{IMAGES} --out {data}")  # fmt: skip
    step("A classifier, whose CAM is the baseline", train.main, "train",
         f"--name seg-cam --method cam --epochs 8 --learning-rate 0.02 {study}")  # fmt: skip
    weights = shlex.quote(start_weights(options.storage))
    step("BAS, from the classifier's backbone", train.main, "train",
         "--name seg-bas --method bas --options segmentation true --epochs 6 --backbone tiny "
         f"--weights {weights} {study}")  # fmt: skip
    step("Seeds of each, and of both maps added up", seeds.main, "seeds",
         f"--study seg-cam --keep full --field none {where}")  # fmt: skip
    step("", seeds.main, "seeds", f"--study seg-bas --field none {where}")
    kept = shlex.quote(f"{options.storage}/seg-cam-seeds")
    step("", seeds.main, "seeds", f"--study seg-bas --fuse {kept} --name seg-seeds --field none {where}")
    step("Pseudo masks that follow the edges of the image", refine.main, "refine",
         f"--seeds seg-seeds --by pamr --pamr-size full {where}")  # fmt: skip
    step("A network that sees no label", segment.main, "segment", f"--masks seg-pamr {NETWORK} {where}")
    step("Seeds and masks on training images, the network on test", evaluate.main, "evaluate",
         f"--segmentation seg-seeds seg-pamr seg-pamr-lraspp {where}")  # fmt: skip
    print_stations(options.storage)
    print(f"\ndemo: {time.monotonic() - started:.0f} s. The same command again continues, or shows this again.")
    return 0


def print_stations(storage: str) -> None:
    """Validation's mIoU of each station, and by how much it is above what it was made of."""
    from wsol_pipeline.segmentation.station import finished
    from wsol_pipeline.storage import Store

    miou = {name: finished(Store.at(storage), name).manifest["val"]["miou"] for name in STATIONS}
    print("\nmIoU on validation, %:")
    for name, (what, made_of) in STATIONS.items():
        gain = f"{miou[name] - max(miou[each] for each in made_of):+.1f}" if made_of else ""
        print(f"  {what:<42} {miou[name]:5.1f} {gain:>6}")


if __name__ == "__main__":
    run_main(main)
