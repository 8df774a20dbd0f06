"""What a one-device trial costs beyond its training: a study, against the same trainings in a plain loop.

    python benchmarks/study.py            (--quick only shows that it runs)

Both train the same configurations one after the other, the loop in one process without Ray, Optuna or MLflow. Seconds
a trial are those from the end of one to the end of the next, so the first trial, which starts a process, is not among
them. Study and loop alternate. The claim is at most 0.5 s a trial beyond the loop's.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
import torch
import tyro
from rich.console import Console
from rich.table import Table

from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Reading
from wsol_pipeline.training.loop import train
from wsol_pipeline.training.plan import Plan, StudyOptions, make_plan
from wsol_pipeline.training.study import execute
from wsol_pipeline.training.tuner import trial_folder


@dataclass(frozen=True)
class Options:
    """What is measured."""

    trials: int = 10
    """trainings of one epoch in each run"""
    rounds: int = 3
    """alternating runs of both"""
    quick: bool = False
    """one run of three trials"""


def space(trial) -> dict[str, float]:  # type: ignore[no-untyped-def]
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True)}


def plan_of(root: Path, name: str, trials: int) -> Plan:
    options = StudyOptions(
        name=name, data=str(root / "data"), storage=str(root), trials=trials, concurrent=1, published=0,
        pruner="none", epochs=1, cache_dir=str(root / "pixels"),
    )  # fmt: skip
    return make_plan(options, "cam", space)


def loop(plan: Plan) -> None:
    """The trainings of a study, by hand."""
    torch.set_num_threads(1)
    for number in range(plan.options.trials):
        checkpoints = CheckpointStore(trial_folder(plan.folder, number), 1)
        for _ in train(plan.config, plan.dataset, checkpoints, reading=Reading(cache_dir=plan.options.cache_dir)):
            pass


def study(plan: Plan) -> None:
    """As a user's job runs it, from start to registered model."""
    execute(plan)
    ray.shutdown()


def seconds_a_trial(plan: Plan) -> float:
    """From the first trial's end to the last one's, divided by the trials in between."""
    ends = [
        CheckpointStore(trial_folder(plan.folder, number), 1).records()[-1]["time"]
        for number in range(plan.options.trials)
    ]
    return (max(ends) - min(ends)) / (len(ends) - 1)


def measure(options: Options, root: Path) -> dict[str, list[float]]:
    """Seconds a trial, by side and round; under "first", those from a study's start to its first trial's end."""
    data = synthetic.Options(train=300, val=60, test=60)
    import_dataset(synthetic.read(root, data), Store.at(root / "data"), name="bench", origin={})
    loop(plan_of(root, "warm-up", 1))  # decodes, compiles
    found: dict[str, list[float]] = {"study": [], "loop": [], "first": []}
    for number in range(options.rounds):
        for name, way in (("study", study), ("loop", loop)):
            plan, started = plan_of(root, f"{name}-{number}", options.trials), time.time()
            way(plan)
            found[name].append(seconds_a_trial(plan))
            if name == "study":
                first = CheckpointStore(trial_folder(plan.folder, 0), 1).records()[-1]["time"]
                found["first"].append(first - started)
    return found


def report(found: dict[str, list[float]]) -> None:
    overheads = [study - loop for study, loop in zip(found["study"], found["loop"], strict=True)]
    overhead = statistics.median(overheads)
    table = Table("", "seconds (median)", "rounds", title="One-device trials of CAM, one epoch of 300 images")
    rows = {"a study's trial": found["study"], "the same in a loop": found["loop"], "overhead (<= 0.5)": overheads}
    for name, values in (rows | {"start to first trial's end": found["first"]}).items():
        table.add_row(name, f"{statistics.median(values):.2f}", ", ".join(f"{value:.2f}" for value in values))
    Console(width=100).print(table)
    result = {"benchmark": "study", "overhead_s": round(overhead, 3), "overheads_s": [round(v, 3) for v in overheads]}
    result |= {"first_s": round(statistics.median(found["first"]), 1), "holds": overhead <= 0.5}
    print(json.dumps(result | {"cores": psutil.cpu_count(), "load": round(psutil.getloadavg()[0], 1)}))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = Options(trials=3, rounds=1)
    with tempfile.TemporaryDirectory() as root:
        report(measure(options, Path(root)))


if __name__ == "__main__":
    main()
