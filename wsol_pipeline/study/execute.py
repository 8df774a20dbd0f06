"""A study: trials over a method's hyper-parameters, on one ledger, continued by starting the same command again."""

import contextlib
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import search_spaces
from wsol_pipeline import interrupts
from wsol_pipeline.console.screens import print_interrupted, print_outcome, ranking_markdown, trial_view
from wsol_pipeline.errors import DataError, PartialError, ResourceError, WsolError
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.study.charts import draw_front, draw_study
from wsol_pipeline.study.doubt import Doubt, doubts, sentence
from wsol_pipeline.study.lease import Lease, acquire
from wsol_pipeline.study.ledger import (
    FAILURE,
    PUBLISHED,
    Ledger,
    Space,
    Standing,
    check_trials_are_known,
    compared,
    database_needed,
    front,
    open_ledger,
    open_storage,
    pruner,
    sampler,
)
from wsol_pipeline.study.mlflow_view import connect_mlflow, study_tags, study_view, trial_views
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.plan import Plan, StudyOptions, make_plan
from wsol_pipeline.study.rehearsal import rehearse
from wsol_pipeline.study.tuner import LedgerSearcher, Point, run_trials, trial_folder
from wsol_pipeline.tracking import registry
from wsol_pipeline.tracking.projection import AWAY, Connect, Projection, deliver
from wsol_pipeline.training import cluster
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, require, to_dict
from wsol_pipeline.training.options import describe
from wsol_pipeline.training.run import resources_per_worker, trainable

WINNER = "winner.json"
Ranked = tuple[Standing, str, dict[str, Any]]  # of one setting: how it stands, which published one it is, parameters


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    `ranking`: the completed proposals, best first; `doubt`: how sure the first is, in a sentence or none; `stopped`:
    the limit it ran into, if any; `rule`: of several objectives, how the first was picked, in a sentence; `missing`:
    what MLflow lacks; `damaged`: what kept `doubt` from being known.
    """

    balance: dict[str, int]
    ranking: list[Ranked]
    best: Store | None  # the final folder of the best trial, unless it is damaged
    model_version: str | None
    failures: dict[int, dict[str, str]]
    device_hours: float
    hours: float = 0.0  # that this run of the command took
    doubt: str = ""
    rule: str = ""
    stopped: str = ""
    missing: str = ""
    damaged: str = ""


def run_study(
    options: StudyOptions,
    method: str,
    space: Space,
    point: Point = lambda name: None,
) -> int:
    """Run or continue the study of `options` and print what it found. Returns the exit code."""
    plan = make_plan(options, method, space)
    if options.print_config:
        print(json.dumps(describe(options, plan.config) | {"contract": redact(plan.contract)}, indent=2))
        return 0
    if options.dry_run:
        return rehearse(plan)
    outcome = execute(plan, point)
    print_outcome(outcome, plan)
    if outcome.damaged:
        raise DataError(outcome.damaged)
    parts = [outcome.missing] if outcome.missing else []
    if outcome.failures:
        parts.append(f"{len(outcome.failures)} of {outcome.balance['started']} trials failed (reasons above).")
    if parts:
        raise PartialError(" ".join(parts))
    return 0


def execute(plan: Plan, point: Point = lambda name: None) -> Outcome:
    """Take the lease, run what is not finished, register the winner. Safe to kill and start again anywhere."""
    options, started = plan.options, time.monotonic()
    with database_needed(), acquire(plan.folder / "lease") as lease:
        connect = connect_mlflow(options.store, options.experiment)
        _require_free_name(connect, plan)
        storage = open_storage(plan.folder, options.study_db)
        check_trials_are_known(storage, options.name, plan.folder)
        ledger = open_ledger(
            storage,
            options.name,
            space=plan.space,
            contract=plan.contract,
            published=plan.published,
            sampler=sampler(options.sampler, options.seed, options.startup_trials),
            pruner=pruner(options.pruning, min(plan.config.rungs, default=1), plan.config.recipe.epochs),
            rule=plan.rule,
        )
        ended: set[int] = set()
        views = functools.partial(trial_views, plan, ledger, lease, ended)
        summary = functools.partial(study_view, plan, ledger, lease)
        with Projection(connect, options.name, study_tags(plan), views, summary, ended) as projection:
            stopped = _run(plan, ledger, lease, projection, point)
        found = _finish(plan, ledger, projection, point)
        return dataclasses.replace(found, stopped=stopped, hours=(time.monotonic() - started) / 3600)


def _require_free_name(connect: Connect, plan: Plan) -> None:
    """Raise `UsageError` if MLflow holds other models under this study's name."""
    tags = registry.model_tags({"train": to_dict(plan.config), "dataset": plan.dataset.fingerprint})
    with contextlib.suppress(ResourceError, *AWAY):  # it is asked again when the winner is registered
        registry.check_name_is_free(connect()[0], plan.options.name, tags)


def _run(plan: Plan, ledger: Ledger, lease: Lease, projection: Projection, point: Point) -> str:
    """Run the trials that are not finished, if any; the limit that kept it from starting more, if one did.

    Raises `KeyboardInterrupt` once the trials have ended, if a signal asked for that.
    """
    options = plan.options
    proposed, confirm = ledger.proposals(), (options.confirm, options.confirm_seeds)
    if not ledger.running() and len(proposed) >= options.trials and not ledger.unconfirmed(*confirm):
        return ""
    cluster.connect(nested=options.workers > 1)
    cluster.check_storage_reaches_all(plan.folder, options.storage_is_shared, options.cluster_may_grow)
    device = cluster.pick_device(options.device, options.cluster_may_grow)
    require(not options.sync_batch_norm or device == "cuda", "sync_batch_norm needs GPUs", device)

    def trial_job(parameters: dict[str, Any], seed: int, folder: Store) -> Job:
        return plan.job(parameters, seed, folder, lease.attempt, device)

    sample = trial_job({}, 0, plan.folder)
    concurrent = cluster.check_placement(sample, options.concurrent, options.cluster_may_grow)
    resources = resources_per_worker(sample) if options.workers == 1 else {"CPU": cluster.TUNE_ACTOR_CPU}
    say = trial_view(plan, ledger, lambda: projection.away)
    searcher = LedgerSearcher(
        ledger, lease, trial_job, options.trials, plan.folder, say, point, options.budget(), confirm
    )
    done = sum(trial.state.is_finished() for trial in ledger.proposals())
    say.plan(options.trials, done, searcher.orphans, concurrent, sample, plan.pruning)
    try:
        with say, interrupts.gently():
            run_trials(searcher, trainable(sample), concurrent, resources, plan.folder)
    except KeyboardInterrupt:
        kept = {number: searcher.checkpoints(number).position() for number in ledger.running()}
        print_interrupted(ledger.balance(), kept, searcher.ended_at_request, plan.folder)
        raise
    lease.check()
    return searcher.stopped


def _finish(plan: Plan, ledger: Ledger, projection: Projection, point: Point) -> Outcome:
    """Register the winner, draw the study, close the books."""
    balance = ledger.balance()
    if balance["running"]:
        raise ResourceError(f"{balance['running']} trials are still running: the same command continues.")
    failures = {t.number: t.user_attrs[FAILURE] for t in ledger.trials() if FAILURE in t.user_attrs}
    if balance["complete"] == 0:
        reasons = "; ".join(f"trial {n}: {f['kind']}: {f['message'][:120]}" for n, f in list(failures.items())[:3])
        raise WsolError(f"No trial of {plan.options.name!r} is complete ({reasons or balance}).")
    best = ledger.ranking()[0]
    ranking = [
        (standing, ledger.get(standing.number).user_attrs.get(PUBLISHED, ""), ledger.parameters(standing.number))
        for standing in ledger.ranking()
    ]
    device_hours = ledger.device_seconds() / 3600
    final = CheckpointStore(trial_folder(plan.folder, best.number), 0).final()
    if final is None:
        damaged = f"The model of trial {best.number} in {plan.folder.uri} is gone or altered."
        return Outcome(balance, ranking, None, None, failures, device_hours, damaged=damaged)
    point("registering")
    doubt, damaged = None, ""
    try:
        doubt = doubts(plan.folder, ledger.ranking(), plan.config.objective, rule=plan.rule)
    except DataError as error:  # what was found stands all the same
        damaged = str(error)
    record = winner_record(plan, ledger, final, doubt)
    plan.folder.write(WINNER, json.dumps(record).encode())
    told, rule = (record.get(name, "") for name in ("doubt", "rule"))
    version, missing = _to_mlflow(plan, ledger, projection, ranking, final, f"{rule} {told}".strip())
    return Outcome(
        balance, ranking, final, version, failures, device_hours, doubt=told, rule=rule, missing=missing,
        damaged=damaged,
    )  # fmt: skip


def _to_mlflow(
    plan: Plan, ledger: Ledger, projection: Projection, ranking: list[Ranked], final: Store, sure: str
) -> tuple[str | None, str]:
    """Write what is missing, the study's pictures and table, and register the winner: (its version, what is missing).

    `sure`: by what rule the winner was picked and how sure that is, in sentences.
    """
    versions: list[str] = []
    names = plan.rule.objectives if plan.rule else (plan.config.objective,)
    table = ranking_markdown(ranking, names, published_figures(ranking), sure)
    with tempfile.TemporaryDirectory() as folder:
        pictures = [*draw_study(ledger.study, Path(folder))]
        if plan.rule:
            pictures.append(draw_front(ledger.ranking(), plan.rule, Path(folder)))
        steps = {
            "the winner's model": lambda: versions.append(
                registry.register(projection, plan.options.name, ranking[0][0].number, final)
            ),
            "ranking.md": lambda: projection.add_text("ranking.md", table),
            "pictures": lambda: projection.add_pictures(pictures),
            "the study's end": projection.close_parent,
        }
        missing = deliver(projection, steps)
    return next(iter(versions), None), f"{missing}: the same command writes it." if missing else ""


def winner_record(plan: Plan, ledger: Ledger, final: Store, doubt: Doubt | None) -> dict[str, Any]:
    """What the final evaluation needs to know of a study: the winner, and the published setting it is compared with.

    With how sure the winner is: values over seeds where there are several, and how often which trial wins redraws.
    """
    rows, compared = search_spaces.presets(), None
    for trial in ledger.trials():
        if trial.user_attrs.get(PUBLISHED) not in rows:
            continue
        folder = CheckpointStore(trial_folder(plan.folder, trial.number), 0).final()
        if folder is not None:
            compared = {"model": folder.uri, "preset": trial.user_attrs[PUBLISHED], "trial": trial.number}
            break
    best = ledger.ranking()[0]
    sure: dict[str, Any] = {}
    if len(best.values) > 1:
        sure["confirmed"] = {"values": best.values, "mean": best.mean, "std": best.std, "n": len(best.values)}
    if doubt:
        sure |= {"wins": doubt.wins, "doubt": sentence(doubt)}
    if plan.rule:
        sure |= several_objectives(ledger.ranking(), plan.rule)
    record = {
        "method": plan.config.method,
        "model": final.uri,
        "trial": best.number,
        "trials": len(ledger.proposals()),
        "published": compared,
        "data": plan.dataset.uri,
    }
    return redact(sure | record)


def several_objectives(ranking: Sequence[Standing], rule: Rule) -> dict[str, Any]:
    """What `winner.json` says of a study of several objectives: names, values, rule and front, means over seeds."""
    kind = "settings" if len(ranking[0].values) == 1 else "confirmed settings"
    return {
        "objectives": rule.objectives,
        "tolerance": rule.tolerance,
        "values": dict(zip(rule.objectives, ranking[0].means, strict=True)),
        "rule": rule.sentence({standing.number: standing.means for standing in compared(ranking)}, kind),
        "front": [{"trial": s.number, "seeds": len(s.trials), "values": s.means} for s in front(ranking, rule)],
    }


def published_figures(ranking: Sequence[Ranked]) -> dict[str, Mapping[str, float]]:
    """What the papers report for the published settings among the trials, by preset id."""
    rows = search_spaces.presets()
    return {note: rows[note].published for _, note, _ in ranking if note in rows}
