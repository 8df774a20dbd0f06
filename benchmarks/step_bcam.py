"""A B-CAM training step against CAM's on the same network.

    python benchmarks/step_bcam.py
    python benchmarks/step_bcam.py --backbone vgg16

Both pass the images through the network once, forward and backward; B-CAM's two aggregators, four poolings and four
scores come on top. Pairs of steps alternate, so that a busy machine slows both. The claim is a ratio of at most 1.05.
Prints a table and one line of JSON.
"""

import json
import statistics
import time

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import wsol_models

METHODS = ("bcam", "cam")


def timed(name: str, method: wsol_models.LocalizationMethod, images_BCHW: Tensor, targets_B: Tensor) -> float:
    """Seconds of one forward and backward."""
    method.zero_grad(set_to_none=True)
    start = time.perf_counter()
    terms = wsol_models.method_module(name).losses(method(images_BCHW, targets_B), method.config)
    torch.stack(list(terms.values())).sum().backward()
    return time.perf_counter() - start


def main(
    backbone: str = "resnet50", size: int = 112, batch: int = 8, classes: int = 200, pairs: int = 7, threads: int = 2
) -> None:
    """size: pixels. batch: images. pairs: alternating pairs of steps."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    methods = {name: wsol_models.build(name, backbone=backbone, num_classes=classes) for name in METHODS}
    images_BCHW, targets_B = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
    for name, method in methods.items():  # warm-up
        timed(name, method, images_BCHW, targets_B)
    seconds = [[timed(name, methods[name], images_BCHW, targets_B) for name in METHODS] for _ in range(pairs)]
    bcam_s, cam_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(a / b for a, b in seconds)
    table = Table("step", "median seconds", title=f"{backbone}, {batch} x {size} px, {classes} classes")
    table.add_row("B-CAM", f"{bcam_s:.3f}")
    table.add_row("CAM", f"{cam_s:.3f}")
    table.add_row("ratio (at most 1.05)", f"{ratio:.3f}")
    Console().print(table)
    result = {"benchmark": "step_bcam", "backbone": backbone, "bcam_s": bcam_s, "cam_s": cam_s, "ratio": ratio}
    print(json.dumps(result | {"claim": "ratio <= 1.05", "holds": ratio <= 1.05, "threads": threads}))


if __name__ == "__main__":
    tyro.cli(main)
