"""Ray Train's steady rate against torchrun's: the same loop, model, data, threads, allocator settings and priority.

    python benchmarks/training.py            (--quick only shows that it runs)

Each run is a process tree of its own, so no Ray is alive while torchrun is timed; the two alternate. The first epoch
is not counted. `others` is what the tree's processes beside the training ones used of a core meanwhile (Ray's own),
`outside` what the rest of the machine used: over 0.1 of a core, ratios mean little. glibc trims the heap of a main
thread (torchrun's) but not of a second one (Ray's), which is worth 15 % of a small step: so the allocator is told what
to do on both sides. The claims are ratios of at least 0.98 (one worker) and 0.93 (two) on two cores.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, Reading, Recipe, TrainConfig, to_dict

SIDE = str(Path(__file__).with_name("training_side.py"))
EQUAL = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
    "RAY_worker_niceness": "0",  # Ray's default is 15: whatever else runs would slow one side only
}
CLAIMS = {1: 0.98, 2: 0.93}
QUIET = 0.1  # cores used outside, over which a ratio means little


@dataclass(frozen=True)
class Options:
    """What is measured."""

    workers: tuple[int, ...] = (1, 2)
    """numbers of workers, one thread each"""
    pairs: int = 5
    """alternating pairs of runs for each"""
    images: int = 480
    """training images of 64 px, in batches of 16"""
    epochs: int = 5
    """the first of which is not counted"""
    quick: bool = False
    """one short pair for each"""


@dataclass(frozen=True)
class Result:
    """One run: images per second after the first epoch, and cores used meanwhile."""

    rate: float
    others: float
    outside: float


@dataclass(frozen=True)
class Sample:
    """CPU seconds used so far: by each process of the tree, and by the whole machine."""

    when: float
    tree: dict[int, float]
    machine: float


def take_sample(root: psutil.Process) -> Sample:
    tree = {}
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            tree[process.pid] = sum(process.cpu_times()[:2])
    times = psutil.cpu_times()
    return Sample(time.time(), tree, sum(times) - times.idle - times.iowait)


def watch(command: list[str]) -> list[Sample]:
    """Run `command` to its end; samples of what it used, twice a second."""
    samples = []
    process = subprocess.Popen(command, env=os.environ | EQUAL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            samples.append(take_sample(root))
        time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode()[-2000:] if process.stderr else command)
    return samples


def cores(samples: list[Sample], begin: float, end: float, workers: int) -> tuple[float, float]:
    """Cores used from `begin` to `end`: by the tree beside its `workers` busiest processes, and outside of the tree."""
    inside = [sample for sample in samples if begin <= sample.when <= end]
    if len(inside) < 2:
        return float("nan"), float("nan")
    first, last = inside[0], inside[-1]
    used = sorted(total - first.tree.get(pid, 0.0) for pid, total in last.tree.items())
    seconds = last.when - first.when
    return sum(used[:-workers]) / seconds, (last.machine - first.machine - sum(used)) / seconds


def run(launcher: str, workers: int, options: Options, root: Path, name: str) -> Result:
    """Train once under `launcher` in `root/name`."""
    recipe = Recipe(epochs=options.epochs, batch_size=16)
    train = TrainConfig("cam", "resnet18", options={"large": False}, readout="cam", recipe=recipe)
    trial = root / name
    job = Job(
        train, str(root / "data"), str(trial), 1, workers=workers, reading=Reading("cached", str(root / "pixels"))
    )
    (root / f"{name}.json").write_text(json.dumps(to_dict(job)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    samples = watch([sys.executable, *(launch if launcher == "torchrun" else []), SIDE, str(root / f"{name}.json")])
    first, *rest = CheckpointStore(Store.at(trial), 1).records()
    rate = len(rest) * options.images / sum(record["seconds"] for record in rest)
    return Result(rate, *cores(samples, first["time"], rest[-1]["time"], workers))


def measure(options: Options, root: Path) -> dict[int, list[dict[str, Result]]]:
    """Pairs of results by number of workers; the side that begins changes from pair to pair."""
    data = synthetic.Options(train=options.images, val=32, test=32, size=80)
    import_dataset(synthetic.read(root, data), Store.at(root / "data"), name="bench", origin={})
    results: dict[int, list[dict[str, Result]]] = {workers: [] for workers in options.workers}
    for pair in range(options.pairs):
        for workers in options.workers:
            order = ("ray", "torchrun") if pair % 2 else ("torchrun", "ray")
            found = {side: run(side, workers, options, root, f"{side}-{workers}-{pair}") for side in order}
            results[workers].append(found)
            print({side: f"{result.rate:.1f} img/s" for side, result in found.items()}, flush=True)
    return results


def report(results: dict[int, list[dict[str, Result]]]) -> None:
    title = f"CAM, resnet18, 64 px, {os.cpu_count()} cores"
    table = Table("workers", "Ray img/s", "torchrun img/s", "ratio", "pairs", "others", "outside", "claim", title=title)
    summary = {}
    for workers, pairs in results.items():
        rates = {side: statistics.median(pair[side].rate for pair in pairs) for side in ("ray", "torchrun")}
        ratios = [pair["ray"].rate / pair["torchrun"].rate for pair in pairs]
        ratio = statistics.median(ratios)
        others = statistics.median(pair["ray"].others for pair in pairs)
        outside = {side: statistics.median(pair[side].outside for pair in pairs) for side in ("ray", "torchrun")}
        table.add_row(
            str(workers), f"{rates['ray']:.1f}", f"{rates['torchrun']:.1f}", f"{ratio:.3f}",
            f"{min(ratios):.3f} to {max(ratios):.3f}", f"{others:.2f}",
            f"{outside['ray']:.2f} / {outside['torchrun']:.2f}", f">= {CLAIMS.get(workers, 0.93)}",
        )  # fmt: skip
        summary[workers] = {
            "images_per_second": {side: round(rate, 1) for side, rate in rates.items()},
            "ratio": round(ratio, 3),
            "ratios": [round(value, 3) for value in ratios],
            "ray_others_cores": round(others, 3),
            "outside_cores": {side: round(value, 2) for side, value in outside.items()},
            "quiet": max(outside.values()) < QUIET,
            "holds": ratio >= CLAIMS.get(workers, 0.93),
        }
    Console(width=120).print(table)
    print(json.dumps({"benchmark": "training", "cores": os.cpu_count(), "workers": summary}))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = Options(options.workers, pairs=1, images=64, epochs=2)
    with tempfile.TemporaryDirectory() as root:
        report(measure(options, Path(root)))


if __name__ == "__main__":
    main()
