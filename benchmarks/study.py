"""What a one-device trial costs beyond its training: a study, against the same trainings in a plain loop.

    python benchmarks/study.py            (--quick only shows that it runs)

Both train the same configurations one after the other, the loop in one process without Ray, Optuna or MLflow. Seconds
a trial are those from the end of one to the end of the next, so the first trial, which starts a process, is not among
them. Study, the same with MLflow written at its end only, and loop alternate. The claim is at most 0.4 s a trial beyond
the loop's.

Two costs within a trial are measured beside it: what MLflow's thread spends on a record (an epoch), and what part of a
trial its searches of the readout are, at the rung and at the end, for BAS's k and for BagCAMs.
"""

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import ray
import torch
import tyro
from rich.console import Console
from rich.table import Table

from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.study.execute import execute
from wsol_pipeline.study.mlflow_listener import MlflowListener
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.plan import Plan, make_plan
from wsol_pipeline.study.tuner import trial_folder
from wsol_pipeline.tracking.projection import Projection
from wsol_pipeline.training.build import build_method, build_readout
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Reading
from wsol_pipeline.training.loop import train

LAYERS = {"stages": '["block1", "block2", "block3", "block4"]', "weightings": '["ours1", "ours2", "ours3"]'}
SEARCHES = {"k of BAS": ("bas", "topk", {}), "BagCAMs on CAM": ("cam", "bagcams", LAYERS)}  # (method, readout, options)
CLASSES = 24  # so values of k


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
    execute(plan, [MlflowListener(plan)])
    ray.shutdown()


def seconds_a_trial(plan: Plan) -> float:
    """From the first trial's end to the last one's, divided by the trials in between."""
    ends = [
        CheckpointStore(trial_folder(plan.folder, number), 1).records()[-1]["time"]
        for number in range(plan.options.trials)
    ]
    return (max(ends) - min(ends)) / (len(ends) - 1)


@contextlib.contextmanager
def watched_projection() -> Iterator[list[tuple[float, float]]]:
    """A list that gets (wall, CPU) seconds of the writing thread at every turn of the projection."""
    spent, flush = [], Projection.flush

    def timed(projection: Projection) -> bool:
        wall, cpu = time.perf_counter(), time.thread_time()
        reached = flush(projection)
        spent.append((time.perf_counter() - wall, time.thread_time() - cpu))
        return reached

    with mock.patch.object(Projection, "flush", timed):
        yield spent


def study_then_mlflow(plan: Plan) -> None:
    """A study whose projection waits until the trials have ended."""
    with mock.patch.object(Projection, "_loop"):
        study(plan)


def measure(options: Options, root: Path) -> dict[str, list[float]]:
    """Seconds a trial, by side and round; under "first", those from a study's start to its first trial's end; under
    "record" and "record, CPU", what MLflow's thread takes for a record."""
    data = synthetic.Options(train=300, val=60, test=60)
    import_dataset(synthetic.read(root, data), Store.at(root / "data"), name="bench", origin={})
    loop(plan_of(root, "warm-up", 1))  # decodes, compiles
    sides = {"study": study, "mlflow-last": study_then_mlflow, "loop": loop}
    found: dict[str, list[float]] = {name: [] for name in (*sides, "first", "record", "record, CPU")}
    for number in range(options.rounds):
        for name, way in sides.items():
            plan, started = plan_of(root, f"{name}-{number}", options.trials), time.time()
            with watched_projection() as spent:
                way(plan)
            found[name].append(seconds_a_trial(plan))
            if name == "study":
                first = CheckpointStore(trial_folder(plan.folder, 0), 1).records()[-1]["time"]
                found["first"].append(first - started)
                for kind, seconds in zip(("record", "record, CPU"), zip(*spent, strict=True), strict=True):
                    found[kind].append(sum(seconds) / options.trials)
    return found


def measure_searches(options: Options, root: Path) -> dict[str, dict[str, float]]:
    """By readout: the shares of a four-epoch trial's seconds, medians over the rounds, and the number of settings."""
    data = synthetic.Options(train=300, val=60, test=60, classes=CLASSES)
    import_dataset(synthetic.read(root, data), Store.at(root / "data"), name="bench", origin={})
    found = {}
    for name, (method, readout, readout_options) in SEARCHES.items():
        run = StudyOptions(
            name="searches", data=str(root / "data"), storage=str(root), epochs=4, rungs=(2,), readout=readout,
            readout_options=readout_options,
        )  # fmt: skip
        plan = make_plan(run, method, space)
        rounds = []
        for number in range(options.rounds + 1):  # the first compiles and decodes
            checkpoints = CheckpointStore(plan.folder / f"{readout}-{number}", 1)
            rounds.append(shares(list(train(plan.config, plan.dataset, checkpoints))))
        count = len(build_readout(plan.config).settings(build_method(plan.config, CLASSES).eval()))
        medians = {part: statistics.median(parts[part] for parts in rounds[1:]) for part in rounds[0]}
        found[name] = {"settings": count} | medians
    return found


def shares(records: list[dict[str, Any]]) -> dict[str, float]:
    """What training, passes at one readout setting, and searched passes are of a trial's seconds.

    Of the trial's last validation, which is searched and then keeps the images at what was chosen, the latter is taken
    for as long as the passes at one setting.
    """
    passes = [record["device_seconds"] - record["seconds"] for record in records]
    one = statistics.mean(p for p, record in zip(passes, records, strict=True) if not record["searched"])
    rungs = sum(p for p, record in zip(passes, records, strict=True) if record["searched"] and not record["final"])
    parts = {
        "training": sum(record["seconds"] for record in records),
        "one setting": one * sum(not record["searched"] or record["final"] for record in records),
        "searched at rungs": rungs,
        "searched at the end": passes[-1] - one,
    }
    return {name: seconds / sum(parts.values()) for name, seconds in parts.items()}


def report(found: dict[str, list[float]], searches: dict[str, dict[str, float]]) -> None:
    overheads = [study - loop for study, loop in zip(found["study"], found["loop"], strict=True)]
    slower = [study - last for study, last in zip(found["study"], found["mlflow-last"], strict=True)]
    overhead = statistics.median(overheads)
    table = Table("", "seconds (median)", "rounds", title="One-device trials of CAM, one epoch of 300 images")
    rows = {
        "a study's trial": found["study"],
        "the same in a loop": found["loop"],
        "overhead (<= 0.4)": overheads,
        "slower by MLflow's thread": slower,
        "MLflow's thread, a record": found["record"],
        "the same, CPU": found["record, CPU"],
        "start to first trial's end": found["first"],
    }
    for name, values in rows.items():
        table.add_row(name, f"{statistics.median(values):.3f}", ", ".join(f"{value:.3f}" for value in values))
    Console(width=100).print(table)
    parts = [part for part in next(iter(searches.values())) if part != "settings"]
    table = Table("readout", "settings", *parts, title="Shares of a trial: four epochs of 300 images, 60 to validate")
    for name, row in searches.items():
        table.add_row(name, str(row["settings"]), *(f"{row[part]:.1%}" for part in parts))
    Console(width=100).print(table)
    result: dict[str, Any] = {"benchmark": "study", "overhead_s": round(overhead, 3)}
    result |= {"overheads_s": [round(value, 3) for value in overheads], "holds": overhead <= 0.4}
    result |= {"first_s": round(statistics.median(found["first"]), 1), "slower_by_mlflow_s": statistics.median(slower)}
    result |= {"record_s": statistics.median(found["record"]), "record_cpu_s": statistics.median(found["record, CPU"])}
    print(json.dumps(result | {"searches": searches, "cores": psutil.cpu_count(), "load": psutil.getloadavg()[0]}))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = Options(trials=3, rounds=1)
    with tempfile.TemporaryDirectory() as root:
        report(measure(options, Path(root)), measure_searches(options, Path(root) / "searches"))


if __name__ == "__main__":
    main()
