"""The whole walk on a laptop in a few minutes: data, a common start, CAM tuned, BAS tuned, one look at the test split.

    make demo        (or: python rayjobs/demo.py)

Each step is a job that also runs alone, by the line shown. Ray runs locally; Optuna and MLflow use SQLite files.
"""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass

import tyro

from rayjobs import evaluate, import_dataset, train, tune_bas, tune_cam
from wsol_pipeline.errors import run_main
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.tuner import trial_folder

SAME_BUDGET = "--trials 6 --epochs 4 --learning-rate 0.003 --clip-norm 1"


@dataclass(frozen=True)
class Options:
    """Options of the demonstration."""

    storage: str = "runs"
    """Where everything goes."""


def step(text: str, job: Callable[[list[str]], int], name: str, line: str) -> None:
    """Show one job's command line and run it here."""
    print(f"\n## {text}\n$ python rayjobs/{name}.py {line}\n", flush=True)
    job(shlex.split(line))


def main() -> int:
    options, started = tyro.cli(Options, description=__doc__), time.monotonic()
    store = Store.at(options.storage)
    where = f"--storage {shlex.quote(options.storage)}"
    data = shlex.quote(f"{options.storage}/data/synthetic")
    step("A generated dataset: train (labels only), val, test", import_dataset.main, "import_dataset", f"--out {data}")
    step(
        "A common start for both methods, in place of ImageNet weights: a small classifier",
        train.main, "train", f"--name demo-start --method cam --epochs 5 {where} --data {data} --clip-norm 1",
    )  # fmt: skip
    final = CheckpointStore(trial_folder(store / "demo-start", 0), 0).final()
    assert final is not None  # the job above has ended well
    common = f"{where} --data {data} --weights {shlex.quote(final.path('backbone.safetensors'))} {SAME_BUDGET}"
    step("CAM, with the same budget as BAS", tune_cam.main, "tune_cam", f"--name demo-cam {common}")
    step("BAS: λ, α, β by Optuna; k and threshold solved in each trial", tune_bas.main, "tune_bas",
         f"--name demo-bas {common}")  # fmt: skip
    step("The test split, once", evaluate.main, "evaluate", f"--study demo-bas demo-cam {where}")
    print(f"\ndemo: {time.monotonic() - started:.0f} s. The same command again continues, or shows this again.")
    return 0


if __name__ == "__main__":
    run_main(main)
