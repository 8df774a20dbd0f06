"""A study: trials over a method's hyper-parameters, on one ledger, continued by starting the same command again."""

import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch

import search_spaces
import wsol_models
from wsol_models import readouts
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.errors import DataError, PartialError, ResourceError, UsageError, WsolError, unknown
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.storage import Store
from wsol_pipeline.training import cluster, registry, tracking
from wsol_pipeline.training.charts import draw_study
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, Recipe, TrainConfig, require, to_dict
from wsol_pipeline.training.embedded import embedded_dataset, embedded_weights
from wsol_pipeline.training.lease import Lease, acquire
from wsol_pipeline.training.ledger import FAILURE, PRUNERS, PUBLISHED, Ledger, Space, open_ledger, open_storage, pruner
from wsol_pipeline.training.loop import build_method
from wsol_pipeline.training.options import RunOptions, describe, reading, resolve
from wsol_pipeline.training.provenance import provenance
from wsol_pipeline.training.run import resources_per_worker, trainable
from wsol_pipeline.training.terminal import TrialLog, print_outcome, ranking_markdown
from wsol_pipeline.training.tuner import LedgerSearcher, Point, run_trials, trial_folder

WINNER = "winner.json"


@dataclass(frozen=True)
class StudyOptions(RunOptions):
    """Options of every tuning job."""

    name: str = "study"
    trials: int = 8
    """Trials in all, published settings included; a larger number later continues the study."""
    concurrent: int | None = None
    """Trials at once; by default as many as the cluster holds."""
    published: int = 2
    """Settings tried before any is proposed: the run's own (the preset's), then other published ones."""
    pruner: str = "successive-halving"
    """What stops poor trials early: successive-halving, median or none. Asked at the rungs."""
    rungs: tuple[int, ...] | None = None
    """Epochs after which the whole readout is searched and the pruner asked. By default a half of the epochs."""
    startup_trials: int = 4
    """Trials before Optuna's TPE sampler takes over from random proposals."""
    study_db: str | None = None
    """SQLAlchemy URL of the study's database (PostgreSQL for teams). By default SQLite in a local --storage, or a
    journal of objects in an s3:// one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trials >= 1, "trials must be at least 1", self.trials)
        require(self.concurrent is None or self.concurrent >= 1, "concurrent must be at least 1", self.concurrent)
        require(self.published >= 0, "published cannot be negative", self.published)
        require(self.startup_trials >= 0, "startup_trials cannot be negative", self.startup_trials)
        if self.pruner not in PRUNERS:
            raise unknown("pruner", self.pruner, PRUNERS)


@dataclass(frozen=True)
class Plan:
    """A study with everything about it decided, nothing of it started."""

    options: StudyOptions
    config: TrainConfig
    dataset: Dataset
    space: Space
    published: Mapping[str, Mapping[str, Any]]
    folder: Store

    @property
    def contract(self) -> dict[str, Any]:
        """What makes the trials comparable: it may not change while the study lives."""
        return {"train": to_dict(self.config), "data": self.dataset.fingerprint, "space": space_of(self.space)}


Ranked = tuple[int, str, dict[str, Any], float]  # number, published setting it is, parameters, value


@dataclass(frozen=True)
class Outcome:
    """What a study found. `ranking`: the completed trials, best first."""

    balance: dict[str, int]
    ranking: list[Ranked]
    best: Store  # the final folder of the best trial
    model_version: str | None
    failures: dict[int, dict[str, str]]


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
    outcome = execute(plan, point)
    print_outcome(outcome, plan)
    if outcome.failures:
        raise PartialError(f"{len(outcome.failures)} of {outcome.balance['started']} trials failed (reasons above).")
    return 0


def make_plan(options: StudyOptions, method: str, space: Space) -> Plan:
    """Check everything that can be checked before anything starts. Raises the errors a user can mend."""
    config = resolve(options, method)
    config = dataclasses.replace(config, rungs=_rungs(options, config.recipe.epochs))
    check_places_stay(options)
    store = options.store.check_writable()
    dataset = open_dataset(options.data) if options.data else embedded_dataset(store)
    if not options.data and not config.weights and config.backbone == "tiny" and store.is_local:
        config = dataclasses.replace(config, weights=embedded_weights(store, dataset))
    check_buildable(config, dataset)
    published = first_trials(config, space, options.preset, options.published)
    return Plan(options, config, dataset, space, published, store / options.name)


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
            pruner=pruner(options.pruner, min(plan.config.rungs, default=1)),
            seed=options.seed,
            startup_trials=options.startup_trials,
        )
        views = functools.partial(trial_views, plan, ledger, lease)
        with tracking.Projection(client, experiment, options.name, study_tags(plan), views) as projection:
            _run(plan, ledger, lease, point)
        return _finish(plan, ledger, projection, point)


def _run(plan: Plan, ledger: Ledger, lease: Lease, point: Point) -> None:
    """Run the trials that are not finished, if any."""
    options = plan.options
    say = TrialLog(plan.config.recipe.epochs, plan.config.objective)
    if not ledger.running() and len(ledger.trials()) >= options.trials:
        return
    cluster.connect(nested=options.workers > 1)
    cluster.check_storage_reaches_all(plan.folder, options.storage_is_shared)
    device = cluster.pick_device(options.device)
    require(not options.sync_batch_norm or device == "cuda", "sync_batch_norm needs GPUs", device)

    def make_job(parameters: dict[str, Any], folder: Store) -> Job:
        return Job(
            train=with_parameters(plan.config, parameters),
            data=plan.dataset.uri,
            trial=folder.uri,
            attempt=lease.attempt,
            workers=options.workers,
            cpus_per_worker=options.cpus_per_worker,
            device=device,
            reading=reading(options),
            checkpoint_batches=options.checkpoint_batches,
        )

    sample = make_job({}, plan.folder)
    concurrent = cluster.check_placement(sample, options.concurrent, options.cluster_may_grow)
    searcher = LedgerSearcher(ledger, lease, make_job, options.trials, plan.folder, say, point)
    say.plan(options.trials, ledger.balance(), searcher.orphans, concurrent, sample)
    resources = resources_per_worker(sample) if options.workers == 1 else {"CPU": cluster.TUNE_ACTOR_CPU}
    run_trials(searcher, trainable(sample), concurrent, resources, plan.folder)
    lease.check()


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
    version = None
    if tracking.wait_for_flush(projection, seconds=30):
        with tempfile.TemporaryDirectory() as folder:
            projection.add_pictures(draw_study(ledger.study, Path(folder)))
        projection.add_text("ranking.md", ranking_markdown(ranking, plan.config.objective, published_figures(ranking)))
        version = registry.register(projection, plan.options.name, best.number, final)
        projection.close_parent()
    else:
        print("MLflow does not answer: the same command writes what it has missed.", flush=True)
    plan.folder.write(WINNER, json.dumps(winner_record(plan, ledger, final)).encode())
    return Outcome(balance, ranking, final, version, failures)


def winner_record(plan: Plan, ledger: Ledger, final: Store) -> dict[str, Any]:
    """What the final evaluation needs to know of a study: the winner, and the published setting it is compared with."""
    published = [trial for trial in ledger.trials() if PUBLISHED in trial.user_attrs]
    compared = None
    for trial in published[:1]:
        folder = CheckpointStore(trial_folder(plan.folder, trial.number), 0).final()
        if folder is not None:
            compared = {"model": folder.uri, "preset": trial.user_attrs[PUBLISHED], "trial": trial.number}
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


def with_parameters(config: TrainConfig, parameters: Mapping[str, Any]) -> TrainConfig:
    """`config` with a trial's parameters: recipe fields by their names, all others are the method's own options."""
    recipe_names = {field.name for field in dataclasses.fields(Recipe)}
    recipe = {name: value for name, value in parameters.items() if name in recipe_names}
    method_options = {name: value for name, value in parameters.items() if name not in recipe_names}
    return dataclasses.replace(
        config,
        recipe=dataclasses.replace(config.recipe, **recipe),
        options={**config.options, **method_options},
    )


def space_of(space: Space) -> dict[str, str]:
    """The distributions of `space`, by parameter: what it would propose, asked in a study of its own."""
    trial = optuna.create_study().ask()
    space(trial)
    return {name: optuna.distributions.distribution_to_json(d) for name, d in trial.distributions.items()}


def trial_views(plan: Plan, ledger: Ledger, lease: Lease) -> Iterator[tracking.TrialView]:
    """Every started trial as MLflow shows it; none any more once another driver writes them."""
    for trial in ledger.trials():
        if lease.lost.is_set():
            return
        config = with_parameters(plan.config, ledger.parameters(trial.number))
        tags = {"wsol.published": str(trial.user_attrs.get(PUBLISHED, ""))}
        if FAILURE in trial.user_attrs:
            tags["wsol.failure"] = "{kind}: {message}".format(**trial.user_attrs[FAILURE])
        records = CheckpointStore(trial_folder(plan.folder, trial.number), 0).records()
        if records and records[-1]["final"]:
            tags["wsol.readout"] = json.dumps(records[-1]["choice"])
        yield tracking.TrialView(trial.number, trial.state.name, flat_parameters(config), tags, records)


def flat_parameters(config: TrainConfig) -> dict[str, Any]:
    """A training configuration as MLflow parameters: the method's options and the recipe by their own names."""
    data = to_dict(config)
    return data.pop("options") | data.pop("recipe") | data


def study_tags(plan: Plan) -> dict[str, str]:
    """Where the study's numbers come from."""
    return {
        "wsol.data": plan.dataset.uri,
        "wsol.data_fingerprint": plan.dataset.fingerprint,
        "wsol.val_fingerprint": plan.dataset.val.fingerprint,
        "wsol.protocol": plan.config.protocol,
        "wsol.objective": plan.config.objective,
        **provenance(),
    }


def connect_mlflow(store: Store, experiment: str) -> tuple[mlflow.MlflowClient, str]:
    """(client, experiment id) of MLFLOW_TRACKING_URI, or of a SQLite file in a local `store`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not store.is_local:
        raise UsageError(f"MLFLOW_TRACKING_URI is not set, and {store.uri} cannot hold MLflow's SQLite file: set it.")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment)
    return tracking.connect(uri or f"sqlite:///{store.path('mlflow.db')}", experiment, store.path("mlflow-artifacts"))


def check_places_stay(options: StudyOptions) -> None:
    """Raise `UsageError` for storage or a database in a submitted job's copy of its working directory."""
    places = {
        "--storage": Path(options.store.uri) if options.store.is_local else None,
        "--study-db": tracking.sqlite_file(options.study_db),
        "MLFLOW_TRACKING_URI": tracking.sqlite_file(os.environ.get("MLFLOW_TRACKING_URI")),
    }
    for option, place in places.items():
        if place:
            cluster.check_storage_stays(place, option)


def check_buildable(config: TrainConfig, dataset: Dataset) -> None:
    """Build the method here, so that a wrong name, option or file of weights is not left for a worker to find.

    Weights to download are the workers' business: then the method is built without memory.
    """
    try:
        with torch.device("meta" if config.weights in (None, "imagenet") else "cpu"):
            weights = None if config.weights == "imagenet" else config.weights
            method = build_method(dataclasses.replace(config, weights=weights), len(dataset.classes))
        readouts.readout(config.readout).settings(method.eval())
        protocol(config.protocol, image_size=config.image_size, resize_size=config.resize_size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config.objective not in selection.METRICS:
        raise unknown("objective", config.objective, selection.METRICS)


def first_trials(config: TrainConfig, space: Space, preset: str | None, count: int) -> dict[str, dict[str, Any]]:
    """{name: parameters} to try before anything is proposed: the run's own settings, then published ones that differ.

    The run's own are the preset's, or the method's defaults under what the command line says; they are named by the
    published row they equal, if any. At most `count`.
    """
    proposed = set(space_of(space))
    defaults = dataclasses.asdict(wsol_models.method_module(config.method).Config())
    own = {**dataclasses.asdict(config.recipe), **defaults, **config.options}
    published = {}
    for row in search_spaces.presets(config.method).values():
        theirs = {**row.recipe, **row.method_options}
        if all(own[name] == value for name, value in row.method_options.items() if name not in proposed):
            published[row.id] = {name: theirs[name] for name in proposed}
    mine = {name: own[name] for name in proposed}
    found = {preset or next((id for id, values in published.items() if values == mine), "defaults"): mine}
    for id, values in published.items():
        if values not in found.values():
            found[id] = values
    return dict(list(found.items())[:count])


def _rungs(options: StudyOptions, epochs: int) -> tuple[int, ...]:
    if options.rungs is None:
        return (max(1, epochs // 2),) if epochs > 1 and options.pruner != "none" else ()
    require(all(0 < rung < epochs for rung in options.rungs), f"rungs must lie in 1..{epochs - 1}", options.rungs)
    return options.rungs
