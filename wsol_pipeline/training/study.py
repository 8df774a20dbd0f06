"""A study: trials over a method's hyper-parameters, on one ledger, continued by starting the same command again."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

import search_spaces
from wsol_pipeline.errors import DataError, PartialError, ResourceError, WsolError
from wsol_pipeline.storage import STORAGE_ERRORS, Store
from wsol_pipeline.training import cluster, registry, tracking
from wsol_pipeline.training.charts import draw_study
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, require
from wsol_pipeline.training.lease import Lease, acquire
from wsol_pipeline.training.ledger import FAILURE, PUBLISHED, Ledger, Space, open_ledger, open_storage, pruner, sampler
from wsol_pipeline.training.options import describe
from wsol_pipeline.training.plan import Plan, StudyOptions, make_plan
from wsol_pipeline.training.rehearsal import rehearse
from wsol_pipeline.training.run import resources_per_worker, trainable
from wsol_pipeline.training.terminal import TrialLog, print_outcome, ranking_markdown
from wsol_pipeline.training.tuner import LedgerSearcher, Point, run_trials, trial_folder
from wsol_pipeline.training.views import connect_mlflow, study_tags, trial_views

WINNER = "winner.json"
Ranked = tuple[int, str, dict[str, Any], float]  # number, published setting it is, parameters, value


@dataclass(frozen=True)
class Outcome:
    """What a study found. `ranking`: the completed trials, best first; `stopped`: the limit it ran into, if any."""

    balance: dict[str, int]
    ranking: list[Ranked]
    best: Store  # the final folder of the best trial
    model_version: str | None
    failures: dict[int, dict[str, str]]
    device_hours: float
    stopped: str = ""


def run_study(
    options: StudyOptions,
    method: str,
    space: Space,
    point: Point = lambda name: None,
) -> int:
    """Run or continue the study of `options` and print what it found. Returns the exit code."""
    plan = make_plan(options, method, space)
    if options.print_config:
        print(json.dumps(describe(options, plan.config) | {"contract": plan.contract}, indent=2))
        return 0
    if options.dry_run:
        return rehearse(plan)
    outcome = execute(plan, point)
    print_outcome(outcome, plan)
    if outcome.failures:
        raise PartialError(f"{len(outcome.failures)} of {outcome.balance['started']} trials failed (reasons above).")
    return 0


def execute(plan: Plan, point: Point = lambda name: None) -> Outcome:
    """Take the lease, run what is not finished, register the winner. Safe to kill and start again anywhere."""
    options = plan.options
    with acquire(plan.folder / "lease") as lease:
        client, experiment = connect_mlflow(options.store, options.experiment)
        ledger = open_ledger(
            open_storage(plan.folder, options.study_db),
            options.name,
            space=plan.space,
            contract=plan.contract,
            published=plan.published,
            sampler=sampler(options.sampler, options.seed, options.startup_trials),
            pruner=pruner(options.pruner, min(plan.config.rungs, default=1), plan.config.recipe.epochs),
        )
        views = functools.partial(trial_views, plan, ledger, lease)
        with tracking.Projection(client, experiment, options.name, study_tags(plan), views) as projection:
            stopped = _run(plan, ledger, lease, point)
        return dataclasses.replace(_finish(plan, ledger, projection, point), stopped=stopped)


def _run(plan: Plan, ledger: Ledger, lease: Lease, point: Point) -> str:
    """Run the trials that are not finished, if any; the limit that kept it from starting more, if one did."""
    options = plan.options
    say = TrialLog(plan.config.recipe.epochs, plan.config.objective)
    if not ledger.running() and len(ledger.trials()) >= options.trials:
        return ""
    cluster.connect(nested=options.workers > 1)
    cluster.check_storage_reaches_all(plan.folder, options.storage_is_shared)
    device = cluster.pick_device(options.device)
    require(not options.sync_batch_norm or device == "cuda", "sync_batch_norm needs GPUs", device)

    def trial_job(parameters: dict[str, Any], folder: Store) -> Job:
        return plan.job(parameters, folder, lease.attempt, device)

    sample = trial_job({}, plan.folder)
    concurrent = cluster.check_placement(sample, options.concurrent, options.cluster_may_grow)
    searcher = LedgerSearcher(ledger, lease, trial_job, options.trials, plan.folder, say, point, options.budget())
    say.plan(options.trials, ledger.balance(), searcher.orphans, concurrent, sample)
    resources = resources_per_worker(sample) if options.workers == 1 else {"CPU": cluster.TUNE_ACTOR_CPU}
    run_trials(searcher, trainable(sample), concurrent, resources, plan.folder)
    lease.check()
    return searcher.stopped


def _finish(plan: Plan, ledger: Ledger, projection: tracking.Projection, point: Point) -> Outcome:
    """Register the winner, draw the study, close the books."""
    balance = ledger.balance()
    if balance["running"]:
        raise ResourceError(f"{balance['running']} trials are still running: the same command continues.")
    failures = {t.number: t.user_attrs[FAILURE] for t in ledger.trials() if FAILURE in t.user_attrs}
    if balance["complete"] == 0:
        reasons = "; ".join(f"trial {n}: {f['kind']}: {f['message'][:120]}" for n, f in list(failures.items())[:3])
        raise WsolError(f"No trial of {plan.options.name!r} is complete ({reasons or balance}).")
    best = ledger.ranking()[0]
    final = CheckpointStore(trial_folder(plan.folder, best.number), 0).final()
    if final is None:
        raise DataError(f"The model of trial {best.number} in {plan.folder.uri} is gone or altered.")
    ranking = [
        (trial.number, trial.user_attrs.get(PUBLISHED, ""), ledger.parameters(trial.number), trial.value or 0.0)
        for trial in ledger.ranking()
    ]
    point("registering")
    plan.folder.write(WINNER, json.dumps(winner_record(plan, ledger, final)).encode())
    version = _to_mlflow(plan, ledger, projection, ranking, final)
    return Outcome(balance, ranking, final, version, failures, ledger.device_seconds() / 3600)


def _to_mlflow(
    plan: Plan, ledger: Ledger, projection: tracking.Projection, ranking: list[Ranked], final: Store
) -> str | None:
    """Write what is missing, the study's pictures and table, and register the winner; its version, None if away."""
    try:
        if not tracking.wait_for_flush(projection, seconds=30):
            raise ResourceError("it does not answer")
        version = registry.register(projection, plan.options.name, ranking[0][0], final)
        projection.add_text("ranking.md", ranking_markdown(ranking, plan.config.objective, published_figures(ranking)))
        with tempfile.TemporaryDirectory() as folder:
            projection.add_pictures(draw_study(ledger.study, Path(folder)))
        projection.close_parent()
    except (ResourceError, MlflowException, *STORAGE_ERRORS) as error:
        print(f"MLflow was not written in full ({str(error)[:160]}): the same command writes the rest.", flush=True)
        return None
    return version


def winner_record(plan: Plan, ledger: Ledger, final: Store) -> dict[str, Any]:
    """What the final evaluation needs to know of a study: the winner, and the published setting it is compared with."""
    rows, compared = search_spaces.presets(), None
    for trial in ledger.trials():
        folder = CheckpointStore(trial_folder(plan.folder, trial.number), 0).final()
        if trial.user_attrs.get(PUBLISHED) in rows and folder is not None:
            compared = {"model": folder.uri, "preset": trial.user_attrs[PUBLISHED], "trial": trial.number}
            break
    return {
        "method": plan.config.method,
        "model": final.uri,
        "trial": ledger.ranking()[0].number,
        "trials": ledger.balance()["started"],
        "published": compared,
        "data": plan.dataset.uri,
    }


def published_figures(ranking: Sequence[Ranked]) -> dict[str, Mapping[str, float]]:
    """What the papers report for the published settings among the trials, by preset id."""
    rows = search_spaces.presets()
    return {note: rows[note].published for _, note, _, _ in ranking if note in rows}
