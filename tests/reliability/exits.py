"""A process that ends at any point of loop, store, ledger or projection: the next one ends as if nothing had happened.

A life is a forked process that drives a small study as a job does (lease, ledger, searcher, checkpoints, MLflow), but
trains in itself: without Ray a life takes a second, so that it can end at each point in turn. It ends by SIGKILL, which
runs no `finally`.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
import mlflow.store.tracking.sqlalchemy_store  # MLflow would import it in every life
import numpy as np
import sqlalchemy.orm
from optuna.storages import RDBStorage

from tests.reliability.row import Injection, Row
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.evaluation.metrics import predicted_box
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.identity import home
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.study.ledger import open_ledger
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.plan import Plan, make_plan
from wsol_pipeline.study.samplers import pruner, sampler
from wsol_pipeline.study.tuner import LedgerSearcher, trial_folder
from wsol_pipeline.tracking.connect import connect_mlflow
from wsol_pipeline.tracking.projection import Projection, TrialView
from wsol_pipeline.tracking.runs import StudyRuns
from wsol_pipeline.training import loop
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.run import epochs, reportable

TRIALS, EPOCHS, INTERVAL = 2, 2, 2  # a checkpoint every second batch; an epoch has 5
POINTS = {  # whose calls are points, before and after each
    Store: ("write", "create", "remove"),
    RDBStorage: (
        "create_new_study", "set_study_user_attr", "create_new_trial", "set_trial_param", "set_trial_user_attr",
        "set_trial_intermediate_value", "set_trial_state_values",
    ),
    mlflow.MlflowClient: ("create_run", "log_batch", "set_terminated"),
}  # fmt: skip
sqlalchemy.orm.configure_mappers()  # and this
predicted_box(np.eye(36), 0.5, protocol("wsol-v1", image_size=32, resize_size=36))  # and what is compiled
FORK = multiprocessing.get_context("fork")  # after the imports, which take longer than a life


def in_a_process(act: Callable[..., None], *args: Any) -> int:
    """Call `act` in a forked process; its exit code."""
    process = FORK.Process(target=act, args=args)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def import_tiny(where: Path) -> None:
    """A dataset in `data`, and a database with MLflow's tables, which take seconds."""
    import_data(where / "data", 64, 16)
    connect_mlflow(Store.at(where), "wsol")


def import_data(where: str | Path, train: int, others: int) -> None:
    """Images of 40 px in 3 classes: so many of them to train on, and `others` each to validate and test."""
    options = synthetic.Options(train=train, val=others, test=others, classes=3, size=40)
    import_dataset(synthetic.read(Path(), options), Store.at(where), name="tiny", origin={"importer": "synthetic"})


def plan_of(root: Path, storage: Path, data: str | None = None) -> Plan:
    """A study of one trial of the paper's parameters and one proposed, by default on what `import_tiny` made."""
    options = StudyOptions(
        name="s", data=data or str(root / "data"), storage=str(storage), trials=TRIALS, epochs=EPOCHS, batch_size=14,
        image_size=32, resize_size=36, checkpoint_batches=INTERVAL, cache_dir=str(root / "pixels"), published=1,
    )  # fmt: skip
    return make_plan(options, "bas", lambda trial: {"alpha": trial.suggest_float("alpha", 0.0, 2.0)})


def live(root: Path, storage: Path, point: Callable[[str], None]) -> None:
    """A life, to the end of the study unless `point` ends it; then what came out is written to `outcome.json`."""
    plan = plan_of(root, storage)
    with instrumented(point, storage / "steps"):
        lease = acquire(plan.folder / "lease")  # its beats would be points at any time
        ledger = open_ledger(
            open_storage(plan.folder, None), "s", space=plan.space, contract=plan.contract, published=plan.published,
            sampler=sampler("tpe", 0, 2), pruner=pruner("successive-halving", 1, EPOCHS),
            home=home(plan.folder), lease=lease,
        )  # fmt: skip

        def views() -> Iterator[TrialView]:
            for trial in ledger.trials():
                records = CheckpointStore(trial_folder(plan.folder, trial.number), 0).records()
                yield TrialView(trial.number, trial.state.name, trial.params, {}, records)

        def job(parameters: dict[str, Any], seed: int, folder: Store) -> Job:
            return plan.job(parameters, seed, folder, lease.attempt, "cpu", ledger.home.id)

        projection = Projection(StudyRuns(connect_mlflow(Store.at(storage), "wsol"), "s", {}), views)

        def tell(*event: Any) -> None:
            projection.flush()

        searcher = LedgerSearcher(ledger, lease, job, TRIALS, plan.folder, tell, point)
        for trial_id in map(str, range(TRIALS + 1)):
            suggested = searcher.suggest(trial_id)
            if not isinstance(suggested, dict):
                break
            searcher.on_trial_start(trial_id)
            for record in epochs(from_dict(Job, suggested), loop.World()):
                if searcher.record(trial_id, reportable(record)):
                    break
            searcher.on_trial_complete(trial_id)
        assert projection.flush()
    (storage / "outcome.json").write_text(json.dumps(outcome(plan, ledger.trials(), projection.runs)))


def outcome(plan: Plan, trials: list[Any], runs: StudyRuns) -> dict[str, Any]:
    """What must not depend on deaths: the ledger, each trial's epochs and weights, and MLflow's runs."""
    stores = [CheckpointStore(trial_folder(plan.folder, trial.number), 0) for trial in trials]
    found = runs.client.search_runs([runs.experiment_id])
    return {
        "trials": [[t.number, t.state.name, t.params, t.values, t.intermediate_values] for t in trials],
        "epochs": [[record["epoch"] for record in store.records()] for store in stores],
        "weights": [weights_of(store.trial.uri) for store in stores],
        "runs": sorted(
            [run.data.tags["wsol.trial"], run.info.status, steps_of(runs.client, run.info.run_id)] for run in found
        ),
    }


def weights_of(trial: str) -> str | None:
    """SHA-256 of a finished model's weights, None of a trial without one."""
    final = CheckpointStore(Store.at(trial), 0).final()
    return hashlib.sha256(final.read("model.safetensors")).hexdigest() if final else None


def steps_of(client: mlflow.MlflowClient, run: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run, "train/loss")]


class instrumented:
    """Within, every call of `POINTS`, every step of training and every file that is written aside passes a point."""

    def __init__(self, point: Callable[[str], None], steps: Path) -> None:
        self.point, self.steps, self.patches = point, steps, []
        for owner, names in POINTS.items():
            for name in names:
                self._wrap(owner, name, f"{owner.__name__}.{name}")
        self._wrap(Store, "_aside", "aside")
        self._wrap(loop, "train_step", "train_step", self._count)

    def _wrap(self, owner: Any, name: str, told: str, after: Callable[..., None] = lambda *args: None) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self.point(f"before {told}")
            result = original(*args, **options)
            after(*args)
            self.point(f"after {told}")
            return result

        self.patches.append(mock.patch.object(owner, name, wrapped))

    def _count(self, run: loop.Run, epoch: int, batch: Any) -> None:
        line = f"{time.time()} {run.checkpoints.trial.name} {epoch} {run.progress.position.samples}\n"
        with self.steps.open("a") as file:
            file.write(line)

    def __enter__(self) -> None:
        for patch in self.patches:
            patch.start()

    def __exit__(self, *_: object) -> None:
        for patch in self.patches:
            patch.stop()


def steps(storage: Path) -> list[tuple[float, str]]:
    """The (time, which) of each training step, of all lives."""
    lines = (storage / "steps").read_text().splitlines() if (storage / "steps").exists() else []
    return [(float(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]


def live_and_tell(root: Path, storage: Path) -> None:
    """A life that writes down the name of every point it passes."""
    with (storage / "points").open("w") as file:
        live(root, storage, lambda name: print(name, file=file, flush=True))


def live_until(root: Path, storage: Path, last: int) -> None:
    """A life that ends at the `last` passing of a point."""
    left = iter(range(last, -1, -1))
    live(root, storage, lambda name: next(left) or os.kill(os.getpid(), signal.SIGKILL))


def inject(times: int, folder: Path) -> Iterator[Injection]:
    assert in_a_process(import_tiny, folder) == 0
    undisturbed = new_storage(folder, "undisturbed")
    assert in_a_process(live_and_tell, folder, undisturbed) == 0
    names = (undisturbed / "points").read_text().splitlines()
    expected = json.loads((undisturbed / "outcome.json").read_text())
    numbers = sorted({len(names) * turn // times for turn in range(times)})
    random.Random(0).shuffle(numbers)  # so that a run that is broken off has been everywhere
    for number in numbers:
        storage = new_storage(folder, "killed")
        died = in_a_process(live_until, folder, storage, number)
        began = time.time()
        ended = in_a_process(live_until, folder, storage, len(names) * 2)
        yield judged(f"{number}: {names[number]}", storage, expected, [died, ended], began)
        shutil.rmtree(storage)


def new_storage(folder: Path, name: str) -> Path:
    storage = folder / name
    storage.mkdir()
    shutil.copy(folder / "mlflow.db", storage)
    return storage


def judged(where: str, storage: Path, expected: dict[str, Any], exits: list[int], began: float) -> Injection:
    """What a life that died and its heir have left, beside what one undisturbed life leaves."""
    if exits != [-signal.SIGKILL, 0]:
        return Injection(where, wrong=f"exit codes {exits}")
    found = json.loads((storage / "outcome.json").read_text())
    wrong = "; ".join(f"{key}: {found[key]}, not {expected[key]}" for key in expected if found[key] != expected[key])
    done = steps(storage)
    again = len(done) - len({step for _, step in done})
    seconds = next((at - began for at, _ in done if at > began), None)
    return Injection(where, again, seconds, wrong)


ROW = Row("exits", "process exit at a point of loop, store, ledger or projection", 300, "batches", INTERVAL, 60, inject)
