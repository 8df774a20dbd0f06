"""The whole walk on a laptop in a few minutes: data, CAM tuned, BAS tuned, one look at the test split, new images.

    make demo        (or: python rayjobs/demo.py)

Each step is a job that also runs alone, by the line shown. Ray runs locally; Optuna and MLflow use SQLite files.
The table is the same on other CPUs and beside other work, to a point or so: what is proposed depends on a trial's
number and not on which trial ended first, nothing is pruned, and all trials begin with the very same weights.
"""

import itertools
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rayjobs import evaluate, import_dataset, localize, tune_bas, tune_cam
from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main

BUDGET = "--trials 6 --epochs 4 --sampler random --pruner none"


@dataclass(frozen=True)
class Options:
    """Options of the demonstration."""

    storage: str = "runs"
    """Where everything goes."""


def step(text: str, job: Callable[[list[str]], int], name: str, line: str) -> None:
    """Show one job's command line and run it here."""
    print(f"\n## {text}\n$ python rayjobs/{name}.py {line}\n", flush=True)
    job(shlex.split(line))


def unlabelled(folder: Path, count: int = 40) -> Path:
    """Images of another seed in a flat folder, without labels or boxes."""
    from wsol_pipeline.data.importers import synthetic
    from wsol_pipeline.storage import Store

    rows = synthetic.read(Path(), synthetic.Options(seed=1)).rows
    for number, row in enumerate(itertools.islice(rows, count)):
        assert isinstance(row.image, bytes)
        Store.at(folder).write(f"{number:03d}.jpg", row.image)
    return folder


def main(args: list[str] | None = None) -> int:
    options, started = command_line(Options, args, __doc__), time.monotonic()
    where = f"--storage {shlex.quote(options.storage)}"
    data = shlex.quote(f"{options.storage}/data/synthetic")
    step("A generated dataset: train (labels only), val, test", import_dataset.main, "import_dataset", f"--out {data}")
    step("CAM, with the budget that BAS will have", tune_cam.main, "tune_cam", f"--name demo-cam {BUDGET} {where}")
    step("BAS: λ, α, β by Optuna, top-k and threshold solved in each trial", tune_bas.main, "tune_bas",
         f"--name demo-bas {BUDGET} {where}")  # fmt: skip
    step("The test split, once", evaluate.main, "evaluate", f"--study demo-bas demo-cam {where}")
    images = unlabelled(Path(options.storage) / "unlabelled")
    step("Images that nobody labelled, by the winner: open index.html", localize.main, "localize",
         f"--study demo-bas --source {shlex.quote(str(images))} --format coco html "
         f"--out {shlex.quote(f'{options.storage}/localized')} {where}")  # fmt: skip
    print(f"\ndemo: {time.monotonic() - started:.0f} s. The same command again continues, or shows this again.")
    return 0


if __name__ == "__main__":
    run_main(main)
