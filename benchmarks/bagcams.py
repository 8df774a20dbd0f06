"""BagCAMs against a plain forward and against pytorch-grad-cam's Grad-CAM++ on the same layer.

    pip install -e '.[bench]' && python benchmarks/bagcams.py

ResNet50 with 14x14 maps, layer3. A round runs a forward without gradients, the map of BagCAMs, and the peer's map, one
after the other on the same images, so that a busy machine slows all three. The peer upsamples its maps to the image,
which takes it little; ours stay on the layer's grid. Claims: at most 1.6 times the forward and 0.6 times the peer, and
no more memory after 200 images than before. Prints a table and one line of JSON.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable

import psutil
import torch
import tyro
from pytorch_grad_cam import GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import wsol_models
from wsol_models import LocalizationMethod
from wsol_models.readouts import readout

STAGE = "layer3"
MEGABYTE = 2**20
CLAIMS = {"of_forward": 1.6, "of_peer": 0.6}
MOST_GROWTH_MB = 20.0  # what an allocator may keep; the graphs of 200 images are two gigabytes


class Logits(nn.Module):
    """What the peer takes: images to logits."""

    def __init__(self, method: LocalizationMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.method(images_BCHW).logits_BK


def bag(method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor) -> Tensor:
    return readout("bagcams", stages=(STAGE,)).maps(method, images_BCHW, classes_B, f"{STAGE}/ours3")


def peer_of(method: LocalizationMethod) -> Callable[[Tensor, Tensor], object]:
    peer = GradCAMPlusPlus(Logits(method), [method.get_submodule(f"backbone.{STAGE}")])
    return lambda images_BCHW, classes_B: peer(images_BCHW, [ClassifierOutputTarget(k) for k in classes_B.tolist()])


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def growth(call: Callable[[], object], images: int, batch: int) -> float:
    """Megabytes of resident memory that `images` images leave behind, after two batches that fill the allocator."""
    process = psutil.Process()
    call()
    call()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(images // batch):
        call()
    gc.collect()
    return (process.memory_info().rss - before) / MEGABYTE


@torch.no_grad()
def plain(method: LocalizationMethod, images_BCHW: Tensor) -> Tensor:
    return method(images_BCHW).logits_BK


def main(size: int = 224, batch: int = 4, classes: int = 200, rounds: int = 9, threads: int = 2) -> None:
    """size: pixels. batch: images. rounds: alternating rounds of all three."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    method = wsol_models.build("cam", backbone="resnet50", num_classes=classes, large=False).eval()
    images_BCHW, classes_B = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
    peer = peer_of(wsol_models.build("cam", backbone="resnet50", num_classes=classes, large=False).eval())
    sides: dict[str, Callable[[], object]] = {
        "plain forward": lambda: plain(method, images_BCHW),
        "BagCAMs": lambda: bag(method, images_BCHW, classes_B),
        "pytorch-grad-cam, Grad-CAM++": lambda: peer(images_BCHW, classes_B),
    }
    growth_mb = growth(sides["BagCAMs"], images=200, batch=batch)  # first, before others leave free memory to fill
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(timed(side))
    report(seconds, growth_mb, f"{batch} x {size} px", threads)


def report(seconds: dict[str, list[float]], growth_mb: float, shape: str, threads: int) -> None:
    forward, ours, peer = seconds.values()
    ratios = {
        "of_forward": statistics.median(a / b for a, b in zip(ours, forward, strict=True)),
        "of_peer": statistics.median(a / b for a, b in zip(ours, peer, strict=True)),
    }
    table = Table("side", "median seconds", title=f"ResNet50 (14x14 maps), {STAGE}, {shape}")
    for name, values in seconds.items():
        table.add_row(name, f"{statistics.median(values):.3f}")
    table.add_row("BagCAMs / forward (at most 1.6)", f"{ratios['of_forward']:.2f}")
    table.add_row("BagCAMs / Grad-CAM++ (at most 0.6)", f"{ratios['of_peer']:.2f}")
    table.add_row("memory after 200 images, MB", f"{growth_mb:+.1f}")
    Console().print(table)
    holds = {name: ratio <= CLAIMS[name] for name, ratio in ratios.items()} | {"memory": growth_mb <= MOST_GROWTH_MB}
    result = {"benchmark": "bagcams", "seconds": {name: statistics.median(v) for name, v in seconds.items()}}
    print(json.dumps(result | ratios | {"growth_mb": growth_mb, "claims": CLAIMS, "holds": holds, "threads": threads}))


if __name__ == "__main__":
    tyro.cli(main)
