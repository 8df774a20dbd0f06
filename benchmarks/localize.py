"""Throughput of `wsol localize` beside the bare forward, in one interleaved run; memory over the length of a listing.

    python benchmarks/localize.py --images 400 --backbone resnet50
    python benchmarks/localize.py --memory 1000 20000

The bare forward has its batches in memory and makes nothing of what comes out. Both have the same network, threads and
batch size, and take turns, so that a busy machine slows both. The ratio is the claim, not the images a second.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import save

from wsol_pipeline.console.using import pace
from wsol_pipeline.images import normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.training.build import build_method
from wsol_pipeline.training.checkpoint import write_sealed
from wsol_pipeline.training.config import TrainConfig, to_dict
from wsol_pipeline.training.model import DESCRIPTION, WEIGHTS, ModelFiles, batched
from wsol_pipeline.use.localizer import Localizer
from wsol_pipeline.use.options import LocalizeOptions
from wsol_pipeline.use.run import localize
from wsol_pipeline.use.sources import Item, listed

WIDTH, HEIGHT = 500, 375


def untrained(backbone: str, image_size: int) -> ModelFiles:
    """A CAM model of 200 classes as files; what it says is noise, what it costs is not."""
    sizes = {"image_size": image_size, "resize_size": image_size + 32}
    config = TrainConfig(method="cam", readout="cam", backbone=backbone, **sizes)
    thresholds = {"gt_known_loc": [0.3]}
    description = {
        "train": to_dict(config), "classes": [str(k) for k in range(200)], "multilabel": False,
        "choice": {"metric": "gt_known_loc", "value": 0.0, "setting": 0, "readout": "cam", "thresholds": thresholds},
    }  # fmt: skip
    weights = build_method(config, 200).state_dict()
    return ModelFiles(save(dict(weights)), json.dumps(description).encode())


def photographs(folder: Path, count: int, size_wh: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """JPEGs of half a megapixel at most, each another crop of blurred noise: they decode as photographs do."""
    rng = np.random.default_rng(0)
    whole = Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8)).resize((4 * WIDTH, 4 * HEIGHT))
    for number in range(count):
        x, y = rng.integers(0, 3 * WIDTH), rng.integers(0, 3 * HEIGHT)
        whole.crop((x, y, x + size_wh[0], y + size_wh[1])).save(folder / f"{number:06d}.jpg", quality=90)


def clocks() -> np.ndarray:
    """Seconds passed, and seconds of this process on any core: the latter are the same on a machine that others use."""
    return np.array([time.perf_counter(), time.process_time()])


def turns(localizer: Localizer, items: list[Item], batch_BCHW: torch.Tensor) -> np.ndarray:
    """Both clocks over the job's work on some images, and over the forward alone on as many, [2, 2]."""
    started = clocks()
    localizer.run(items)
    between = clocks()
    with torch.no_grad():
        localizer.model.method(normalize(batch_BCHW[: len(items)]))
    return np.stack([between - started, clocks() - between])


def flat(lengths: list[int]) -> None:
    """The job's own process on ever longer listings: its peak so far after each. Images and network are tiny, so that
    what grows with the listing is not hidden by what does not."""
    for length in lengths:
        with tempfile.TemporaryDirectory() as temporary:
            source, model = Path(temporary) / "images", Store.at(f"{temporary}/model")
            source.mkdir()
            photographs(source, length, (32, 24))
            files = untrained("tiny", 32)
            write_sealed(model, {WEIGHTS: files.weights, DESCRIPTION: files.description})
            outcome = localize(LocalizeOptions(source=str(source), model=model.uri, out=f"{temporary}/out"), pace)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"{outcome.images} images, {outcome.boxes} boxes: peak {peak:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", help="measure memory alone, on listings of so many images")
    args = parser.parse_args()
    if args.memory:
        flat(args.memory)
        return
    with tempfile.TemporaryDirectory() as temporary:
        photographs(Path(temporary), args.images)
        options = LocalizeOptions(source=temporary, model="-", batch_size=args.batch_size, device="cpu")
        localizer, items = Localizer(untrained(args.backbone, args.image_size), options), listed(options)
        shape = args.batch_size, 3, args.image_size, args.image_size
        batch_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8)
        turns(localizer, items[: args.batch_size], batch_BCHW)
        ratios, memory = [], []
        for number in range(args.rounds):
            spent = sum(turns(localizer, some, batch_BCHW) for some in batched(items, args.batch_size))
            (whole, whole_cpu), (forward, forward_cpu) = np.asarray(spent)
            ratios.append((forward / whole, forward_cpu / whole_cpu))
            memory.append(psutil.Process().memory_info().rss / 2**20)
            told = f"{len(items) / whole:.1f} images/s, forward alone {len(items) / forward:.1f}"
            print(f"round {number}: {told}, ratio {ratios[-1][0]:.3f} ({ratios[-1][1]:.3f} of CPU time), "
                  f"{memory[-1]:.0f} MiB", flush=True)  # fmt: skip
    wall, cpu = (median(of) for of in zip(*ratios, strict=True))
    told = f"ratio {wall:.3f} ({cpu:.3f} of CPU time), memory {memory[0]:.0f} -> {memory[-1]:.0f} MiB"
    print(f"{args.backbone}, {WIDTH}x{HEIGHT}, {torch.get_num_threads()} threads, median of {args.rounds}: {told}")


if __name__ == "__main__":
    main()
