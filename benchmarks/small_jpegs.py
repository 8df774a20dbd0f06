"""What a core makes of photographs, of small JPEGs of them and of cached pixels; and who decodes the small ones best.

    python benchmarks/small_jpegs.py                      # a minute, one core
    python benchmarks/small_jpegs.py --photographs DIR    # of your own JPEGs

Images a CPU second through the reader's own code, from bytes in memory or a mapped file to batches of 32 crops of
224 px of the square of 256 px, on one thread; all ways in turn, medians of rounds. The images are made here unless
given: 500x375 noise with the spectrum of a photograph, of about 110 KB as ILSVRC's. Beside them decoders of the small
JPEGs, to RGB in planes: photographs go through torchvision's, after a look at their header.
"""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.io import ImageReadMode, decode_jpeg

from wsol_pipeline.data.dataset import TrainSplit, open_dataset
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode as checked
from wsol_pipeline.data.images import decode_resize
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.jpegs import QUALITY, Jpegs, cached_jpegs, decode
from wsol_pipeline.data.pixels import id_and_image
from wsol_pipeline.data.reader import ReadConfig, TrainReader
from wsol_pipeline.data.schema import Row
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

BATCH, SIZE_WH, RGB = 32, (500, 375), ImageReadMode.RGB


@dataclass(frozen=True)
class Options:
    images: int = 512
    """How many: they lie in memory."""
    rounds: int = 5
    """Passes over them, of each way in turn."""
    photographs: Path | None = None
    """A folder of JPEGs, read in the order of their names; by default images are made."""


def photograph(number: int) -> bytes:
    """Noise whose amplitude falls with the frequency as in photographs, more in light than in colour, as a JPEG."""
    width, height = SIZE_WH
    rng = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency**1.4, (height, width))
    planes *= np.array([50, 12, 12])[:, None, None] / planes.std(axis=(1, 2), keepdims=True)
    sink = io.BytesIO()
    pixels_HWC = (planes + 128).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels_HWC), "YCbCr").convert("RGB").save(sink, "JPEG", quality=96)
    return sink.getvalue()


def rows(options: Options) -> Iterator[Row]:
    """Training rows, and one to validate and to test with."""
    files = sorted(options.photographs.rglob("*.[jJ][pP]*[gG]"))[: options.images] if options.photographs else []
    images = [path.read_bytes() for path in files] or [photograph(number) for number in range(options.images)]
    for number, image in enumerate(images):
        yield Row(Role.TRAIN, f"{number:05d}", (0,), image)
    for role in (Role.VAL, Role.TEST):
        yield Row(role, role.value, (0,), images[0], boxes=((0.0, 0.0, 9.0, 9.0),), box_labels=(0,))


def originals(split: TrainSplit, config: ReadConfig) -> Callable[[], int]:
    """Photographs in memory, decoded, resized and cropped as a stream does it."""
    pairs = id_and_image(split.shard_set().read(np.arange(split.num_rows), ["id", "image"]))
    sizes_N2 = np.full((split.num_rows, 2), config.resize_size)

    def work() -> int:
        for first in range(0, len(pairs), BATCH):
            part = pairs[first : first + BATCH]
            hashes = hash_ids([name for name, _ in part])
            images = decode_resize(part, config.resize_size)
            config.augmentation.apply(images, hashes, sizes_N2[: len(part)], 0, 0)
        return len(pairs)

    return work


def epoch(split: TrainSplit, config: ReadConfig) -> Callable[[], int]:
    """An epoch of what the reader caches."""
    reader = TrainReader(split, split.plan(BATCH, seed=0), config, epochs=1)
    return lambda: sum(len(batch.ids) for batch in reader.epoch(0))


def decoders(jpegs: Jpegs) -> dict[str, Callable[[], int]]:
    """Decoding alone of the small JPEGs, to pixels in RGB."""
    ends = jpegs.ends_N.tolist()
    data = [jpegs.data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    ways: dict[str, Callable[[np.ndarray], object]] = {
        "OpenCV, as small JPEGs are": decode,
        "torchvision": lambda one: np.ascontiguousarray(decode_jpeg(torch.from_numpy(one.copy()), mode=RGB).numpy()),
        "torchvision, as photographs are": lambda one: np.ascontiguousarray(checked(one.tobytes()).numpy()),
        "PIL": lambda one: np.ascontiguousarray(np.array(Image.open(io.BytesIO(one))).transpose(2, 0, 1)),
    }
    return {name: lambda way=way: len([way(one) for one in data]) for name, way in ways.items()}  # type: ignore[misc]


def rates(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Images a CPU second of each way in each round; one before them does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            start = time.process_time()
            images = work()
            if number:
                found[name].append(images / (time.process_time() - start))
    return found


def main(options: Options) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        source = Source(("one",), "exclusive0", list(rows(options)))
        import_dataset(source, Store.at(f"{root}/data"), name="bench", origin={})
        split = open_dataset(f"{root}/data").train
        exact = ReadConfig(mode="cached", cache_dir=f"{root}/cache")
        small = replace(exact, shrunk_jpegs=QUALITY)
        jpegs = cached_jpegs(split, small.resize_size, QUALITY, small.cache_dir)
        ways = {
            "photographs": originals(split, exact),
            "small JPEGs": epoch(split, small),
            "pixels": epoch(split, exact),
        }
        found = rates(ways | {f"decoding alone: {name}": way for name, way in decoders(jpegs).items()}, options.rounds)
        report(found, jpegs, sum(shard.bytes for shard in split.shards) / split.num_rows)


def report(found: dict[str, list[float]], jpegs: Jpegs, stored: float) -> None:
    table = Table("one core", "images per CPU s", "rounds", "x photographs")
    base = median(found["photographs"])
    for name, values in found.items():
        rate = median(values)
        table.add_row(name, f"{rate:,.0f}", f"{min(values):,.0f} to {max(values):,.0f}", f"{rate / base:.2f}")
    Console(width=100).print(table)
    print(f"{jpegs.told}; photographs of {stored / 1000:.1f} KB")
    summary = {name: round(median(values)) for name, values in found.items()}
    like = {"bytes": round(len(jpegs.data) / len(jpegs.ends_N)), "difference": round(jpegs.sample.difference, 3)}
    print(json.dumps({"benchmark": "small_jpegs", "images": len(jpegs.ends_N), **like, **summary}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
