"""What a study of a thousand trials costs beside its training: the ledger's calls, MLflow's projection, the report.

    python benchmarks/thousand.py            (--trials 100 for a shorter look)

Nothing is trained. Trials go through the real ledger; their records, models and validation counts (made up, of
`--settings` readout settings) lie on disk as workers would leave them; the projection writes them to an MLflow SQLite
file and the report reads them. The claim is that what happens again and again (a turn of the projection, an epoch's
record) costs about the same with a thousand trials as with a hundred.
"""

import functools
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from rich.console import Console
from rich.table import Table

from rayjobs import report as report_job
from search_spaces import bas
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.identity import WINNER, home
from wsol_pipeline.study.lease import Lease, acquire
from wsol_pipeline.study.ledger import Ledger, open_ledger
from wsol_pipeline.study.mlflow_view import study_tags, study_view, trial_views
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.outcome import winner_record
from wsol_pipeline.study.plan import Plan, make_plan
from wsol_pipeline.study.samplers import pruner, sampler
from wsol_pipeline.study.tuner import trial_folder
from wsol_pipeline.tracking.connect import connect_mlflow
from wsol_pipeline.tracking.projection import Projection
from wsol_pipeline.tracking.runs import StudyRuns
from wsol_pipeline.training.build import build_method
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.loop import model_files
from wsol_pipeline.training.model import ARITHMETIC, TRAINING_IMAGES

NAME = "thousand"


@dataclass(frozen=True)
class Options:
    """What is measured."""

    trials: int = 1000
    """trials, half of them pruned after half of their epochs"""
    epochs: int = 20
    """records of a complete trial"""
    settings: int = 50
    """readout settings of a trial's validation counts (k)"""


class Clock:
    """Seconds spent inside `with`: of this process's cores, which other work does not change, and of the wall clock."""

    def __enter__(self) -> "Clock":
        self.began = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent = {"cpu": time.process_time() - self.began[0], "wall": time.perf_counter() - self.began[1]}


class Counting:
    """A client that counts the requests it makes."""

    def __init__(self, client: Any) -> None:
        self.client, self.requests = client, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.requests[name] += 1
            return getattr(self.client, name)(*args, **options)

        return call


def plan_of(options: Options, root: Path) -> Plan:
    data = synthetic.Options(train=20, val=10, test=10, classes=4)
    import_dataset(synthetic.read(root, data), Store.at(root / "data"), name="bench", origin={})
    study = StudyOptions(
        name=NAME, data=str(root / "data"), storage=str(root), trials=options.trials, epochs=options.epochs,
        sampler="random",
    )  # fmt: skip
    return make_plan(study, "bas", bas.space)


def ledger_of(plan: Plan, lease: Lease) -> Ledger:
    options = plan.options
    return open_ledger(
        open_storage(plan.folder, None), NAME, space=plan.space, contract=plan.contract, published=plan.published,
        sampler=sampler(options.sampler, options.seed, options.startup_trials), pruner=pruner("none", 1, 1),
        home=home(plan.folder), lease=lease,
    )  # fmt: skip


def record(epoch: int, value: float, choice: Any, final: bool) -> dict[str, Any]:
    """An epoch's record as the loop writes it."""
    return {
        "epoch": epoch, "step": 10 * epoch, "time": time.time(), "seconds": 1.0, "device_seconds": 1.0,
        "images_per_second": 100.0, "learning_rate": 0.01,
        "train": dict.fromkeys(("loss", "cls", "bas", "area"), 1 / epoch),
        "val": dict.fromkeys((*selection.BOX_METRICS, *selection.MASK_METRICS), value), "value": value,
        "searched": final, "choice": choice, "final": final,
    }  # fmt: skip


def counts_of(num: int, thresholds: np.ndarray, images: int, rng: np.random.Generator) -> Counts:
    """Made-up counts: hits that rise and fall over thresholds, of `num` settings."""
    best_SI = rng.uniform(0.3, 0.9, (num, 3)) * np.array([1.0, 0.8, 0.5])
    hits_SIT = (images * best_SI[..., None] * np.sin(np.pi * thresholds) ** 2).astype(np.int64)
    ones_S = np.full(num, images)
    return Counts(
        "wsol-v1", tuple(range(1, num + 1)), (0.3, 0.5, 0.7), thresholds, hits_SIT, hits_SIT // 2, hits_SIT,
        ones_S // 2, ones_S, ones_S,
    )  # fmt: skip


def make_trial(
    options: Options, plan: Plan, ledger: Ledger, method: Any, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """One trial from its proposal to its end, as driver and worker would write it; what the ledger's part cost."""
    with Clock() as asking:
        number = ledger.ask().number
    thresholds = protocol(plan.config.protocol).thresholds
    counts = counts_of(options.settings, np.asarray(thresholds), 1000, rng)
    choice = selection.choose(counts, plan.config.objective)
    pruned = number % 2 == 1
    epochs = options.epochs // 2 if pruned else options.epochs
    records = [
        record(epoch, choice.value, choice.to_dict() if epoch == options.epochs else None, epoch == options.epochs)
        for epoch in range(1, epochs + 1)
    ]
    checkpoints = CheckpointStore(trial_folder(plan.folder, number), 1)
    if pruned:
        checkpoints.save(Position(epochs), {}, records)
    else:
        told = {ARITHMETIC: "float32", TRAINING_IMAGES: plan.training_images}
        files = model_files(method, plan.config, plan.dataset, choice, counts, ledger.home.id, told)
        checkpoints.finish(files, records)
    with Clock() as recording:
        ledger.spend(number, float(epochs))
        ledger.report(number, epochs, choice.value)
    ledger.prune(number) if pruned else ledger.complete(number, choice.value)
    return {"ask": asking.spent, "record": recording.spent}


def timed(projection: Projection) -> dict[str, float]:
    """Seconds and requests of one turn."""
    client = projection.runs.client
    assert isinstance(client, Counting)
    client.requests.clear()
    with Clock() as turn:
        assert projection.flush()
    return turn.spent | {"requests": client.requests.total()}


def measure(options: Options, root: Path) -> dict[str, Any]:
    plan = plan_of(options, root)
    with acquire(plan.folder / "lease") as lease:
        ledger, rng = ledger_of(plan, lease), np.random.default_rng(0)
        found: dict[str, Any] = {"memory of the driver before its trials": resident()}
        method = build_method(plan.config, len(plan.dataset.classes))
        calls = [make_trial(options, plan, ledger, method, rng) for _ in range(options.trials)]
        found |= {
            f"{name}, trials {part}": mean_of([call[name] for call in some])
            for part, some in (("1 to 50", calls[:50]), ("the last 50", calls[-50:]))
            for name in ("ask", "record")
        }
        found |= projected(plan, ledger, lease)
        found["memory of the driver after them"] = resident()
        final = CheckpointStore(trial_folder(plan.folder, ledger.ranking()[0].number), 1).final()
        assert final is not None
        with Clock() as clock:
            plan.folder.write(WINNER, json.dumps(winner_record(plan, ledger, ledger.ranking(), final, None)).encode())
        found["winner's record"] = clock.spent
    with Clock() as clock:
        report_job.main(["--study", NAME, "--storage", str(root)])
    found["report.py"] = clock.spent
    databases = {"mlflow.db": root / "mlflow.db", "study.db": root / NAME / "study.db"}
    return found | {name: {"MB": file.stat().st_size / 1e6} for name, file in databases.items()}


def resident() -> dict[str, float]:
    return {"MB": psutil.Process().memory_info().rss / 1e6}


def mean_of(spent: list[dict[str, float]]) -> dict[str, float]:
    return {way: float(np.mean([one[way] for one in spent])) for way in ("cpu", "wall")}


def projected(plan: Plan, ledger: Ledger, lease: Lease) -> dict[str, Any]:
    """The projection's turns: the first, one without news, one with an epoch of one trial, a new driver's first."""
    client, experiment = connect_mlflow(plan.options.store, "bench")()

    def projection() -> Projection:
        runs = StudyRuns(lambda: (Counting(client), experiment), NAME, study_tags(plan))  # type: ignore[arg-type]
        views = functools.partial(trial_views, plan, ledger, lease, runs.ended)
        return Projection(runs, views, functools.partial(study_view, plan, ledger, lease))

    one = projection()
    found = {"first turn, everything": timed(one), "turn without news": timed(one)}
    number = ledger.ask().number
    CheckpointStore(trial_folder(plan.folder, number), 1).save(Position(1), {}, [record(1, 50.0, None, False)])
    found["turn with one epoch"] = timed(one)
    return found | {"a new driver's first turn": timed(projection())}


def show(found: dict[str, Any], options: Options) -> None:
    columns = {"cpu": "CPU seconds", "wall": "seconds", "requests": "requests to MLflow", "MB": "MB"}
    table = Table("", *columns.values(), title=f"{options.trials} trials")
    for name, row in found.items():
        table.add_row(name, *(f"{row[key]:.4g}" if key in row else "" for key in columns))
    Console(width=100).print(table)
    result = {"benchmark": "thousand", "trials": options.trials, "found": found}
    print(json.dumps(result | {"cores": psutil.cpu_count(), "load": round(psutil.getloadavg()[0], 1)}))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        show(measure(options, Path(root)), options)


if __name__ == "__main__":
    main()
