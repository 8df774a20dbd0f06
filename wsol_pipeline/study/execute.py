"""A study: trials over a method's hyper-parameters, on one ledger, continued by starting the same command again."""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

from ray.tune import PlacementGroupFactory

from wsol_pipeline import interrupts
from wsol_pipeline.errors import DataError, PartialError, ResourceError, WsolError
from wsol_pipeline.storage import Store, storage_needed
from wsol_pipeline.study.certainty import certainty_of, sizes_of
from wsol_pipeline.study.database import check_trials_are_known, database_needed, open_storage
from wsol_pipeline.study.doubt import doubts
from wsol_pipeline.study.events import Listener, Telling
from wsol_pipeline.study.identity import WINNER, check_folders_are_known, home, require_made_for, settle
from wsol_pipeline.study.lease import Lease, acquire
from wsol_pipeline.study.ledger import FAILURE, PUBLISHED, Ledger, open_ledger
from wsol_pipeline.study.outcome import Outcome, epochs_told, winner_record
from wsol_pipeline.study.plan import CHOSEN, Plan, check_device
from wsol_pipeline.study.samplers import pruner, sampler
from wsol_pipeline.study.standing import beside_box
from wsol_pipeline.study.streak import ABSTAINED
from wsol_pipeline.study.tuner import LedgerSearcher, Point, run_trials, trial_folder
from wsol_pipeline.training import cluster, used
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.run import resources_per_worker, trainable


def execute(plan: Plan, listeners: Sequence[Listener] = (), point: Point = lambda name: None) -> Outcome:
    """Take the lease, run what is not finished, pick the winner. Safe to kill and start again anywhere.

    Prints nothing: `listeners` are told what happens (`events`). Raises `KeyboardInterrupt` once the trials have ended,
    if a signal asked for that.
    """
    tell, started = Telling(listeners), time.monotonic()
    with storage_needed(plan.folder), database_needed(), acquire(plan.folder / "lease") as lease, tell.closing():
        tell("leased", None, {"lease": lease})
        ledger = _open(plan, lease)
        tell("opened", None, {"ledger": ledger, "lease": lease})
        stopped = _run(plan, ledger, lease, tell, point)
        found = _finish(plan, ledger, lease, point, stopped)
        outcome = dataclasses.replace(found, stopped=stopped, hours=(time.monotonic() - started) / 3600)
        tell("found", None, {"outcome": outcome})
    return outcome


def _open(plan: Plan, lease: Lease) -> Ledger:
    options = plan.options
    storage = open_storage(plan.folder, options.study_db, lease.confirm)
    check_trials_are_known(storage, options.name, plan.folder)
    own = home(plan.folder)
    settle(plan.folder, own, lease)
    if not plan.folder.exists(CHOSEN):
        kept = {"shrunk_jpegs": plan.config.shrunk_jpegs, "training_images": plan.training_images}
        plan.folder.write(CHOSEN, json.dumps(kept).encode(), lease.confirm)
    ledger = open_ledger(
        storage,
        options.name,
        space=plan.space,
        contract=plan.contract,
        published=plan.published,
        sampler=sampler(options.sampler, options.seed, options.startup_trials),
        pruner=pruner(options.pruning, min(plan.config.rungs, default=1), plan.config.recipe.epochs),
        home=own,
        lease=lease,
        rule=plan.rule,
        shared=options.study_db is not None,
    )
    check_folders_are_known(plan.folder, len(ledger.trials(waiting=True)))
    return ledger


def _run(plan: Plan, ledger: Ledger, lease: Lease, tell: Telling, point: Point) -> str:
    """Run the trials that are not finished, if any; the limit that kept it from starting more, if one did."""
    options = plan.options
    proposed, confirm = ledger.proposals(), (options.confirm, options.confirm_seeds)
    if not ledger.running() and len(proposed) >= options.trials and not ledger.unconfirmed(*confirm):
        return ""
    cluster.connect(nested=options.workers > 1)
    cluster.check_storage_reaches_all(plan.folder, options.storage_is_shared, options.cluster_may_grow)
    device = cluster.pick_device(options.device, options.cluster_may_grow)
    check_device(options, device)

    cpus = plan.cpus(device)

    def trial_job(parameters: dict[str, Any], seed: int, folder: Store) -> Job:
        return plan.job(parameters, seed, folder, lease.attempt, device, ledger.home.id, cpus)

    sample = trial_job({}, 0, plan.folder)
    concurrent = cluster.check_placement(sample, options.concurrent, options.cluster_may_grow, plan.streamed)
    resources: Any = resources_per_worker(sample) if options.workers == 1 else {"CPU": cluster.TUNE_ACTOR_CPU}
    if options.gpus_per_trial < 1:
        resources = placed
    searcher = LedgerSearcher(
        ledger, lease, trial_job, options.trials, plan.folder, tell, point, options.budget(), confirm,
        options.stuck_minutes,
    )  # fmt: skip
    done = sum(trial.state.is_finished() for trial in ledger.proposals())
    tell("planned", None, {
        "trials": options.trials, "done": done, "adopted": searcher.orphans, "concurrent": concurrent,
        "workers": sample.workers, "device": device, "pruning": plan.pruning, "measures": plan.promise.sentences,
        "recipe": plan.recipe, "images": plan.training_images,
    })  # fmt: skip
    try:
        with interrupts.gently():
            run_trials(searcher, trainable(sample), concurrent, resources, plan.folder)
    except KeyboardInterrupt:
        kept = {number: searcher.checkpoints(number).position() for number in ledger.running()}
        tell("over", None, {})
        left = {"balance": ledger.balance(), "kept": kept, "asked": searcher.ended_at_request}
        tell("interrupted", None, left)
        raise
    tell("over", None, {})
    lease.check()
    return searcher.stopped


def placed(payload: dict[str, Any]) -> PlacementGroupFactory:
    """What Ray reserves for a trial that shares a GPU, or has one of its own since it found its share too small."""
    return PlacementGroupFactory([resources_per_worker(from_dict(Job, payload))])


def _finish(plan: Plan, ledger: Ledger, lease: Lease, point: Point, stopped: str) -> Outcome:
    """Pick the winner, and say how sure that is; close the books."""
    ledger.fence()  # what is read is Optuna's memory in part
    balance = ledger.balance()
    if balance["running"]:
        raise ResourceError(f"{balance['running']} trials are still running: the same command continues.")
    failures = {t.number: t.user_attrs[FAILURE] for t in ledger.trials() if FAILURE in t.user_attrs}
    ranking = ledger.ranking()
    if not ranking:
        reasons = "; ".join(f"trial {n}: {f['kind']}: {f['message'][:120]}" for n, f in list(failures.items())[:3])
        told = f"No trial of {plan.options.name!r} is complete ({reasons or balance}). {stopped}".strip()
        raise (PartialError if {f["kind"] for f in failures.values()} == {ABSTAINED} else WsolError)(told)
    best = ranking[0]
    ranked = [
        (standing, ledger.get(standing.number).user_attrs.get(PUBLISHED, ""), ledger.parameters(standing.number))
        for standing in ranking
    ]
    device_hours = ledger.device_seconds() / 3600
    checkpoints = CheckpointStore(trial_folder(plan.folder, best.number), 0)
    final = checkpoints.final()
    if final is None:
        damaged = f"The model of trial {best.number} in {plan.folder.uri} is gone or altered."
        return Outcome(balance, ranked, None, failures, device_hours, damaged=damaged, notes=plan.choosers.notes)
    require_made_for(plan.job(ranked[0][2], 0, plan.folder, lease.attempt, "cpu", ledger.home.id), final)
    point("registering")
    doubt, sure, beside, damaged = None, "", "", ""
    try:
        doubt = doubts(plan.folder, ranking, plan.config.objective, rule=plan.rule)
        sizes = sizes_of(final, plan.dataset, plan.choosers, plan.options.cache_dir)
        sure = " ".join(filter(None, (certainty_of(final, plan.config, plan.choosers), sizes)))
        beside = beside_box(final, plan.config, plan.dataset, plan.options.cache_dir)
    except DataError as error:  # what was found stands all the same
        damaged = str(error)
    record = winner_record(plan, ledger, ranking, final, doubt)
    records = checkpoints.records()
    kept = epochs_told(records, plan.config.recipe.epochs)
    sentences = {"certainty": sure, "standing": beside, "kept": kept}
    record |= {name: text for name, text in sentences.items() if text}
    plan.folder.write(WINNER, json.dumps(record).encode(), ledger.confirm_driver)
    wins, rule = (record.get(name, "") for name in ("doubt", "rule"))
    return Outcome(
        balance, ranked, final, failures, device_hours, doubt=f"{wins} {sure}".strip(), rule=rule, damaged=damaged,
        standing=f"{beside} {kept}".strip(), used=used.told(records), notes=plan.choosers.notes,
    )  # fmt: skip
