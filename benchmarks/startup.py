"""How long a person waits for --help, a typo and --version, beside what a job imports once it runs.

    python benchmarks/startup.py            (--quick only shows that it runs)

Whole processes, one after the other, in rounds; the peer is a Python that imports torch, ray and mlflow, which every
one of these answers waited for when options imported them.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
IMPORTS = "imports of a job that runs"
RUNS = {
    IMPORTS: ("-c", "import torch, ray.tune, mlflow"),
    "tune bas --help": ("-m", "rayjobs", "tune", "bas", "--help"),
    "evaluate --help": ("-m", "rayjobs", "evaluate", "--help"),
    "import --help": ("-m", "rayjobs", "import", "--help"),
    "a typo": ("-m", "rayjobs", "tune", "bas", "--epocs", "3"),
    "--version": ("-m", "rayjobs", "--version"),
    "all commands": ("-m", "rayjobs"),
}


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    rounds: int = 5
    quick: bool = False


def seconds(arguments: tuple[str, ...]) -> float:
    """From the start of a process to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    found: dict[str, list[float]] = {name: [] for name in RUNS}
    for number in range(1 if options.quick else options.rounds + 1):
        for name, arguments in RUNS.items():
            took = seconds(arguments)
            if number or options.quick:  # the first round fills the system's cache
                found[name].append(took)
    medians = {name: statistics.median(took) for name, took in found.items()}
    peer = medians[IMPORTS]
    for name, median in medians.items():
        print(f"{name:<28} {median:6.2f} s  {peer / median:5.1f}x")
    print(json.dumps({"benchmark": "startup", "cores": os.cpu_count(), "seconds": medians}))


if __name__ == "__main__":
    main()
