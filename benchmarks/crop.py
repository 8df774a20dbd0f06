"""Random resized crops of cached pixels against the same by PyTorch's and torchvision's own functions, on one core.

    python benchmarks/crop.py            # under a minute

All cut the same regions out of 256 px images and make them 224 px, mirrored half of the time, in batches of 32; the
pixels must be equal. They take turns, and CPU seconds are compared, so a busy machine is busy for all. OpenCV's linear
resize stands beside them for its speed alone: it has no antialiasing, so its pixels differ.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import cv2
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torchvision.transforms.v2.functional import resized_crop

from wsol_pipeline.data.augment import draw_regions
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.resample import resample

SIDE, SIZE, BATCH = 256, 224, 32
Cut = Callable[[np.ndarray, tuple[int, int, int, int], bool, np.ndarray], None]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    images: int = 512
    rounds: int = 10


def ours(image_CHW: np.ndarray, box: tuple[int, int, int, int], mirrored: bool, out_CHW: np.ndarray) -> None:
    top, left, tall, wide = box
    resample(image_CHW[:, top : top + tall, left : left + wide], mirrored, out_CHW)


def pytorch(image_CHW: np.ndarray, box: tuple[int, int, int, int], mirrored: bool, out_CHW: np.ndarray) -> None:
    top, left, tall, wide = box
    region = torch.from_numpy(image_CHW[:, top : top + tall, left : left + wide].copy())[None]
    cut_CHW = functional.interpolate(region, [SIZE, SIZE], mode="bilinear", antialias=True)[0].numpy()
    out_CHW[:] = cut_CHW[:, :, ::-1] if mirrored else cut_CHW


def torchvision(image_CHW: np.ndarray, box: tuple[int, int, int, int], mirrored: bool, out_CHW: np.ndarray) -> None:
    cut = resized_crop(torch.from_numpy(image_CHW), *box, [SIZE, SIZE], antialias=True)
    out_CHW[:] = (cut.flip(-1) if mirrored else cut).numpy()


def opencv(image_CHW: np.ndarray, box: tuple[int, int, int, int], mirrored: bool, out_CHW: np.ndarray) -> None:
    top, left, tall, wide = box
    for image_HW, out_HW in zip(image_CHW[:, top : top + tall, left : left + wide], out_CHW, strict=True):
        cut_HW = cv2.resize(image_HW, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        out_HW[:] = cut_HW[:, ::-1] if mirrored else cut_HW


WAYS: dict[str, Cut] = {"ours": ours, "PyTorch": pytorch, "torchvision v2": torchvision, "OpenCV": opencv}


def epoch(cut: Cut, images: np.ndarray, number: int, keep: bool = False) -> tuple[float, np.ndarray]:
    """Images a CPU second, and what came out last (all of it with `keep`)."""
    square_N2 = np.full((len(images), 2), SIDE)
    regions = draw_regions(hash_ids(map(str, range(len(images)))), 0, number, square_N2, 0.08)
    places = list(zip(*(values.tolist() for values in regions), strict=True))
    kept, started = [], time.process_time()
    for first in range(0, len(images), BATCH):
        out = np.empty((BATCH, 3, SIZE, SIZE), np.uint8)
        for image, (*box, mirrored), into in zip(images[first:], places[first : first + BATCH], out, strict=False):
            cut(image, tuple(box), mirrored, into)
        kept = [*kept, out] if keep else [out]
    return len(images) / (time.process_time() - started), np.concatenate(kept)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = np.random.default_rng(0).integers(0, 256, (options.images // BATCH * BATCH, 3, SIDE, SIDE), np.uint8)
    want = epoch(pytorch, images, 0, keep=True)[1].astype(np.int16)
    apart = {name: np.abs(epoch(cut, images, 0, keep=True)[1] - want) for name, cut in WAYS.items()}
    assert not any(apart[name].any() for name in ("ours", "torchvision v2"))
    rounds = [{name: epoch(cut, images, number)[0] for name, cut in WAYS.items()} for number in range(options.rounds)]
    table = Table("crop", "images a CPU second", "x PyTorch (median of pairs)", "grey levels apart: mean, most")
    found = {}
    for name in WAYS:
        rate, ratio = median(r[name] for r in rounds), median(r[name] / r["PyTorch"] for r in rounds)
        table.add_row(name, f"{rate:.0f}", f"{ratio:.2f}", f"{apart[name].mean():.2f}, {apart[name].max()}")
        found[name] = {"images_per_cpu_second": round(rate), "ratio": round(ratio, 2)}
    Console(width=100).print(table)
    print(json.dumps({"benchmark": "crop", "images": len(images), **found}))


if __name__ == "__main__":
    main()
