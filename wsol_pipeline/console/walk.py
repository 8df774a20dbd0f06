"""Last screens of the stations from image labels to a segmentation network."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from wsol_pipeline.segmentation import published
from wsol_pipeline.segmentation.options import PlaceOptions
from wsol_pipeline.segmentation.segment import Judgement
from wsol_pipeline.segmentation.station import Station
from wsol_pipeline.segmentation.tune import Tried, best, by_labels
from wsol_pipeline.text import format_parameters
from wsol_pipeline.training import cluster
from wsol_pipeline.verdict.score import local_device

NOTES = {
    "map_of_nothing": "maps are 0 everywhere",
    "walk_of_nothing": "images had nothing left after refinement",
    "all_background": "masks are background everywhere",
}


BESIDE = {
    "image": "a threshold for each image", "labels": "one threshold, from labels alone",
    "centred": "the centred box of the best size",
}  # fmt: skip


def place_work(options: PlaceOptions) -> str:
    """Connect to Ray where the work is shared or this is a job of a cluster; the device for it."""
    if options.workers > 1 or "RAY_ADDRESS" in os.environ:
        cluster.connect(nested=False)
        return cluster.pick_device(options.device)
    return local_device(options.device)


def print_station(found: Station) -> None:
    """What validation says of seeds or masks, each class, and what was counted."""
    val, kind = found.manifest["val"], found.manifest["kind"]
    if "miou" in val:
        note = f" at threshold {val['threshold']:.3f}" if "threshold" in val else ""
        best = f"; best possible {val['oracle']:.1f} %" if "oracle" in val else ""
        print(f"{kind}: {val['miou']:.1f} % mIoU on validation{note}{best}")
        _print_classes(val)
    for name, label in BESIDE.items():
        if name in val:
            print(f"  {label}: {val[name]:.1f} %")
    for name, number in found.manifest.get("notes", {}).items():
        if number:
            print(f"  {number} {NOTES[name]}")
    print(f"They are at {found.place.uri}.", flush=True)


def print_judgement(judged: Judgement) -> None:
    """A network on test."""
    low, high = judged.interval
    print(f"{judged.name} on {judged.rows} ({judged.images} images): {judged.figures['miou']:.1f} % mIoU "
          f"(95 % interval over images {low:.1f} to {high:.1f}); supervision: {judged.supervision}")  # fmt: skip
    if "oracle" in judged.figures:
        best = f"{judged.figures['oracle']:.1f} % at {judged.figures['oracle_threshold']:.3f}"
        print(f"  with the best threshold on these images, an upper bound as papers print it: {best}")
        chosen = f"{judged.figures['centred']:.1f} %, " if "centred" in judged.figures else ""
        print(f"  the centred box: {chosen}of the best size {judged.figures['centred_oracle']:.1f} %")
    _print_classes(judged.figures)


def print_published(preset: str) -> None:
    """What the paper reports for a row, and how that differs from what is judged here."""
    if not preset:
        return
    row = published.row(preset)
    figures = ", ".join(f"{name} {value:.1f} %" for name, value in row.figures.items())
    print(f"  published ({preset}): {figures}; seed and mask at the best threshold on the images judged")
    if row.note:
        print(f"  {row.note}")


def _print_classes(figures: Mapping[str, Any]) -> None:
    table = Table("class", "IoU %", box=None)
    for name, value in figures["classes"].items():
        table.add_row(name, f"{value:.1f}")
    Console().print(table)
    if figures["absent"]:
        print(f"  absent from the masks: {', '.join(figures['absent'])}")


def print_tried(tried: Tried) -> None:
    """A trial of a search of masks, in a line."""
    found = tried.fault if tried.miou is None else f"masks {tried.miou:.1f} % mIoU, seeds {tried.seeds:.1f} %"
    print(f"trial {tried.number}: {format_parameters(tried.parameters)}: {found}", flush=True)


def print_search(trials: Sequence[Tried]) -> None:
    """All trials, the best by masks, and what labels alone would have chosen."""
    table = Table("trial", "masks", "seeds", "at labels' cut", "L_bas + L_ac", title="mIoU on validation, %", box=None)
    for one in trials:
        values = ((one.miou, 1), (one.seeds, 1), (one.labels, 1), (one.labels_score, 3))
        table.add_row(str(one.number), *("-" if value is None else f"{value:.{digits}f}" for value, digits in values))
    Console().print(table)
    chosen = best(trials)
    print(f"Best: trial {chosen.number}, {format_parameters(chosen.parameters)}")
    if (other := by_labels(trials)) is not None:
        print(f"Labels alone (the least L_bas + L_ac) choose trial {other.number}: masks of {other.miou:.1f} % mIoU")


def print_record(record: dict[str, Any]) -> None:
    """An epoch of a training, in a line."""
    val = f", validation {record['val']['miou']:.1f} % mIoU" if "miou" in record["val"] else ""
    speed = f"{record['images_per_second']:.1f} images/s"
    print(f"epoch {record['epoch']}: loss {record['train']['loss']:.4f}{val}, {speed}", flush=True)


def print_work(data: str, what: str) -> None:
    """What a command would do, which --dry-run starts none of."""
    from wsol_pipeline.data.dataset import open_dataset

    dataset = open_dataset(data)
    rows = f"{dataset.train.num_rows} training and {dataset.val.num_rows} validation images"
    print(f"{what}: {rows} of {len(dataset.classes)} classes in {data}. Nothing was started.")
