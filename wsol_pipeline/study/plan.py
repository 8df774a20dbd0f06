"""A study before it starts: options, configuration, first trials, and every check that needs nothing running."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import torch

import search_spaces
import wsol_models
from search_spaces import Space
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.jpegs import QUALITY, Sample, jpeg_bytes, sampled
from wsol_pipeline.data.pixels import EXACT, pixel_bytes
from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.evaluation.labelfree import NO_MASKS
from wsol_pipeline.evaluation.measures import TRUE_BOXES, Promise, Truth, choosing, promise
from wsol_pipeline.evaluation.protocols import Protocol, protocol
from wsol_pipeline.evaluation.selection import default_objective, objectives
from wsol_pipeline.images import dtype_of
from wsol_pipeline.protocol import Role
from wsol_pipeline.selectors import TARGETS
from wsol_pipeline.storage import Store, check_no_secret
from wsol_pipeline.study.choosers import TRUE, Choosers, check_consensus, choosers
from wsol_pipeline.study.database import warn_of_password
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.pareto import COST, Rule
from wsol_pipeline.tracking.connect import sqlite_file
from wsol_pipeline.training import cluster
from wsol_pipeline.training.arithmetic import require_bfloat16
from wsol_pipeline.training.build import build_method, build_readout, fixed_setting
from wsol_pipeline.training.compiling import require_compiler, require_traceable
from wsol_pipeline.training.config import Job, Recipe, TrainConfig, as_kept, require
from wsol_pipeline.training.embedded import embedded_dataset, embedded_weights
from wsol_pipeline.training.loop import Record
from wsol_pipeline.training.resolve import reading, resolve, start
from wsol_pipeline.training.selecting import by_boxes, target_objective

logger = logging.getLogger(__name__)

CHOSEN = "reading.json"  # what a study's training images are, in its folder
OWN = "own settings"  # the name of a first trial that no paper has published
DATASETS = {  # (importer, number of classes) -> the dataset that it is, by the name in presets; else a user's own
    ("cub", 200): "cub",
    ("wsolevaluation", 200): "cub",
    ("ilsvrc", 1000): "ilsvrc",
    ("wsolevaluation", 1000): "ilsvrc",
    ("wsolevaluation", 100): "openimages",
    ("tinyimagenet", 200): "tinyimagenet",
    ("voc", 20): "voc",
    ("coco", 80): "coco",
}


@dataclass(frozen=True)
class Plan:
    """A study with everything about it decided, nothing of it started."""

    options: StudyOptions
    config: TrainConfig
    dataset: Dataset
    space: Space
    published: Mapping[str, Mapping[str, Any]]
    folder: Store
    choosers: Choosers = TRUE
    sample: Sample | None = None  # of shrunk training images, where these are read or were thought of

    @property
    def promise(self) -> Promise:
        """What it will measure."""
        return promised(self.config, self.dataset, self.choosers)

    @property
    def contract(self) -> dict[str, Any]:
        """What makes the trials comparable: it may not change while the study lives."""
        several = {"also": self.rule.objectives[1:], "tolerance": self.rule.tolerance} if self.rule else {}
        data, space = self.dataset.fingerprint, space_of(self.space)
        return {"train": as_kept(self.config), "data": data, "space": space, **several}

    @property
    def rule(self) -> Rule | None:
        """How a winner is picked among several objectives; None of one."""
        also = sorted(self.options.also, key=lambda name: name == COST)
        return Rule((self.config.objective, *also), self.options.tolerance) if also else None

    @property
    def recipe(self) -> str:
        """What a trial trains, in words."""
        config, recipe = self.config, self.config.recipe
        searched = ", searched from there" if "learning_rate" in space_of(self.space) else ""
        return (
            f"recipe: {start(self.options, config.method).name}: {config.backbone} at {config.image_size} px, "
            f"{recipe.epochs} epochs, batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g}{searched}"
        )

    @property
    def pruning(self) -> str:
        """What stops trials early, in words."""
        if self.rule:
            return "nothing is pruned: what is poor in one objective may be the best of another"
        if self.options.pruning == "none" or not self.config.rungs:
            return "nothing is pruned"
        rungs = ", ".join(map(str, self.config.rungs))
        return f"{self.options.pruning} prunes by the searched {self.config.objective} after epoch {rungs}"

    @property
    def decoded_bytes(self) -> int:
        """Training images as pixels."""
        return pixel_bytes(self.dataset.train, self.config.resize_size)

    @property
    def training_images(self) -> str:
        """What training images are, in words."""
        return self.sample.told if self.sample and self.config.shrunk_jpegs else EXACT

    @property
    def streamed(self) -> bool:
        """Whether training images are streamed, by other processes than the workers."""
        if self.config.shrunk_jpegs:
            return False
        over = self.options.reading == "auto" and self.decoded_bytes > self.options.cache_budget_gb * 2**30
        stored = self.config.recipe.train_geometry == "random_resized_crop_stored"
        return over or stored or self.options.reading == "streaming"

    def cpus(self, device: str) -> int:
        """Cores of each worker on the cluster that was joined, where the options say none."""
        return cluster.gpu_share(self.streamed, self.options.gpus_per_trial) if device == "cuda" else 1

    def job(
        self,
        parameters: Mapping[str, Any],
        seed: int,
        folder: Store,
        attempt: int,
        device: Literal["cpu", "cuda"],
        study: str = "",
        cpus: int = 1,
    ) -> Job:
        """What a trial of the study with the id `study` runs with `parameters`, in `folder`; `seed` is added to its.

        `cpus` are a worker's cores where the options say none.
        """
        return Job(
            train=with_parameters(self.config, parameters, seed),
            data=self.dataset.uri,
            trial=folder.uri,
            attempt=attempt,
            study=study,
            fingerprint=self.dataset.fingerprint,
            sources=dict(self.choosers.sources),
            workers=self.options.workers,
            cpus_per_worker=self.options.cpus_per_worker or cpus,
            gpus=self.options.gpus_per_trial,
            device=device,
            reading=reading(self.options),
            checkpoint_batches=self.options.checkpoint_batches,
            stuck_minutes=self.options.stuck_minutes,
        )


def make_plan(
    options: StudyOptions, method: str, space: Space, on_record: Callable[[Record], None] = lambda record: None
) -> Plan:
    """Check everything that can be checked before anything starts. Raises the errors a user can mend.

    `on_record` is told of each epoch of the embedded start, if that has to be trained first.
    """
    config = resolve(options, method)
    config = dataclasses.replace(config, rungs=_rungs(options, config.recipe.epochs))
    check_no_secret(options.name)
    warn_of_password(options.study_db)
    check_place_is_plain(options.store)
    check_places_stay(options)
    store = options.store.check_exclusive()
    dataset = open_dataset(options.data) if options.data else embedded_dataset(store)
    if not options.data and not config.weights and config.backbone == "tiny" and store.is_local:
        config = dataclasses.replace(config, weights=embedded_weights(store, dataset, on_record))
    config = dataclasses.replace(config, weights_digest=digest_of(config.weights))
    if options.preset:
        check_preset_fits(options.preset, dataset)
    found = choosers(options, dataset, options.store)
    config = chosen_by(config, options.objective, dataset, found)
    check_buildable(config, dataset, found)
    check_also(options.also, config, dataset, found)
    check_ranks(options, found)
    published = first_trials(config, space, options.published, options.preset)
    folder = store / options.name
    quality, sample = shrunk_jpegs(options, config, dataset, folder)
    config = dataclasses.replace(config, shrunk_jpegs=quality)
    return Plan(options, config, dataset, space, published, folder, found, sample)


def shrunk_jpegs(
    options: StudyOptions, config: TrainConfig, dataset: Dataset, folder: Store
) -> tuple[int, Sample | None]:
    """The quality of the JPEGs that training images are read from, 0 for exact pixels; and a sample, if one was looked
    at.

    What a study was begun with, it keeps: pixels differ. Raises `UsageError` if it is asked for others. One that begins
    reads JPEGs where these fit the budget and pixels don't, as far as a sample tells.
    """
    size, budget = config.resize_size, options.cache_budget_gb * 2**30
    kept = _kept_jpegs(options, folder)
    begins = options.reading == "auto" and kept is None
    over = pixel_bytes(dataset.train, size) > budget and config.recipe.train_geometry != "random_resized_crop_stored"
    if not (over if begins else kept or options.reading == "shrunk"):
        return 0, None
    sample = sampled(dataset.train, size, kept or QUALITY)
    fits = jpeg_bytes(dataset.train, sample) <= budget
    return sample.quality if fits or not begins else 0, sample


def _kept_jpegs(options: StudyOptions, folder: Store) -> int | None:
    """What `shrunk_jpegs` was when the study in `folder` was begun, if it was."""
    if not folder.exists(CHOSEN):
        return None
    try:
        kept = int(json.loads(folder.read(CHOSEN))["shrunk_jpegs"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder.path(CHOSEN)} is damaged: it says what is trained on. Bring it back.") from error
    if options.reading != "auto" and (options.reading == "shrunk") != (kept > 0):
        raise UsageError(
            f"Study {options.name!r} was begun on {'small JPEGs' if kept else EXACT}, not on what --reading "
            f"{options.reading} gives: --reading auto goes on with it, another --name begins anew."
        )
    return kept


def chosen_by(config: TrainConfig, given: str | None, dataset: Dataset, found: Choosers) -> TrainConfig:
    """`config` with its selectors, and the `given` objective, or without one theirs.

    Raises `UsageError` for a consensus with a study that does not fit.
    """
    check_consensus(found, config, dataset)
    rules, rank = _rules(config), found.rank
    config = dataclasses.replace(
        config,
        select_by=rank.recorded,
        threshold_by=found.threshold.recorded if found.threshold else None,
        truth=found.truth,
    )
    if given is not None:
        return config
    if rank.name in TARGETS:
        objective = target_objective(rank.name, found.of_val(truths(dataset)[0]).images, by_boxes(rules))
    elif rank != TRUE_BOXES:
        objective = rank.kind.score
    else:
        by_val = choosing(rules, dataset.val)
        kept = by_val == rules and config.objective in objectives(rules)
        objective = config.objective if kept else default_objective(by_val)
    return dataclasses.replace(config, objective=objective)


def promised(config: TrainConfig, dataset: Dataset, found: Choosers = TRUE) -> Promise:
    """What a run of `config` measures. Raises `UsageError` if nothing could be chosen or judged."""
    val, test = truths(dataset)
    return promise(_rules(config), found.of_val(val), test, config.objective, found.rank)


def check_ranks(options: StudyOptions, found: Choosers) -> None:
    """Raise `UsageError` if a selector that ranks nothing would have to choose among trials."""
    if not found.rank.ranks and options.trials > 1:
        raise UsageError(
            f"{found.rank} finds thresholds but ranks no trials, of which there are {options.trials}: "
            f"--select-by evidence --threshold-by {found.rank}, or --trials 1."
        )


def digest_of(weights: str | None) -> str:
    """SHA-256 of a file of weights; "" of none, and of one that is not here: building the method says so."""
    if weights in (None, "imagenet") or not Path(weights).is_file():
        return ""
    with Path(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_parameters(config: TrainConfig, parameters: Mapping[str, Any], seed: int = 0) -> TrainConfig:
    """`config` with a trial's parameters: recipe fields by their names, all others are the method's own options.

    `seed` is added to that of `config`.
    """
    recipe_names = {field.name for field in dataclasses.fields(Recipe)}
    recipe = {name: value for name, value in parameters.items() if name in recipe_names}
    method_options = {name: value for name, value in parameters.items() if name not in recipe_names}
    return dataclasses.replace(
        config,
        recipe=dataclasses.replace(config.recipe, **recipe),
        options={**config.options, **method_options},
        seed=config.seed + seed,
    )


def space_of(space: Space) -> dict[str, str]:
    """The distributions of `space`, by parameter: what it would propose, asked in a study of its own."""
    trial = optuna.create_study().ask()
    space(trial)
    return {name: optuna.distributions.distribution_to_json(d) for name, d in trial.distributions.items()}


def first_trials(config: TrainConfig, space: Space, count: int, preset: str | None = None) -> dict[str, dict[str, Any]]:
    """{name: parameters} to try before anything is proposed: the run's own settings, then published ones that differ.

    The run's own are the preset's, or the method's defaults, under what the command line says; they bear the id of the
    published row that they equal, or `OWN`. `preset` comes first, then rows of the same backbone. At most `count`.
    """
    proposed = set(space_of(space))
    defaults = dataclasses.asdict(wsol_models.method_module(config.method).Config())
    own = {**dataclasses.asdict(config.recipe), **defaults, **config.options}
    mine = {name: own[name] for name in proposed}
    published = {}
    rows = search_spaces.presets(config.method).values()
    for row in sorted(rows, key=lambda row: (row.id != preset, row.backbone != config.backbone)):
        theirs = {**row.recipe, **row.method_options}
        values = {name: theirs[name] for name in proposed}
        trained = {**own, **space(optuna.trial.FixedTrial(values))}
        if all(trained[name] == value for name, value in row.method_options.items()):
            published[row.id] = values
    # where nothing is searched all rows are alike: then only a preset says that one is meant
    same = (id for id, values in published.items() if values == mine and (mine or id == preset))
    found = {next(same, OWN): mine}
    for id, values in published.items():
        if values not in found.values():
            found[id] = values
    return dict(list(found.items())[:count])


def check_place_is_plain(store: Store) -> None:
    """Raise `UsageError` for a place that databases and MLflow, which know it as a URL, would take for another."""
    if odd := [letter for letter in ("?%{}" if store.is_local else "?%{}#") if letter in store.uri]:
        raise UsageError(f"--storage cannot have {odd[0]!r} in its path, which ends or changes a URL, but got {store}.")


def check_places_stay(options: StudyOptions) -> None:
    """Raise `UsageError` for storage or a database in a submitted job's copy of its working directory."""
    places = {
        "--storage": Path(options.store.uri) if options.store.is_local else None,
        "--study-db": sqlite_file(options.study_db),
        "MLFLOW_TRACKING_URI": sqlite_file(os.environ.get("MLFLOW_TRACKING_URI")),
    }
    for option, place in places.items():
        if place:
            cluster.check_storage_stays(place, option)


def check_preset_fits(id: str, dataset: Dataset) -> None:
    """Raise `UsageError` for the recipe of a known dataset on another known one; say so of a user's own data."""
    preset = search_spaces.preset(id)
    importer, classes = dataset.manifest.source.get("importer"), len(dataset.classes)
    what = f"{dataset.uri} (imported as {importer!r}, {classes} classes)"
    known = DATASETS.get((str(importer), classes))
    if known is None:
        logger.warning("Preset %s is for %s; %s is taken for data of your own.", id, preset.dataset, what)
    elif known != preset.dataset.rstrip("0123456789"):  # the year
        rows = search_spaces.presets(preset.method).values()
        fitting = [row.id for row in rows if row.dataset.rstrip("0123456789") == known]
        raise UsageError(
            f"Preset {id} is for {preset.dataset} but {what} is {known}. Presets of {preset.method!r} for that: "
            f"{', '.join(fitting) or 'none; leave --preset out and give its values as options'}."
        )


def check_buildable(config: TrainConfig, dataset: Dataset, found: Choosers = TRUE) -> None:
    """Build the method here, so that a wrong name, option or file of weights is not left for a worker to find.

    Then look at what the splits come with: whether the study can choose on validation and judge test.

    Weights to download are the workers' business: then the method is built without memory.
    """
    try:
        with torch.device("meta" if config.weights in (None, "imagenet") else "cpu"):
            weights = wsol_models.LATER if config.weights == "imagenet" else config.weights
            method = build_method(dataclasses.replace(config, weights=weights), len(dataset.classes)).eval()
            check_image_size(method, config)
            if config.compile:
                require_traceable(config.method, method)
        readout = build_readout(config)
        settings = readout.settings(method)
    except ValueError as error:
        raise UsageError(str(error)) from error
    shown = settings if found.rank.ranks else [fixed_setting(config.fixed_setting, settings)]
    by_own_mask = "own-mask" in {by.name for by in (found.rank, found.threshold) if by}
    if by_own_mask and not all(map(readout.cuts_itself, shown)):
        raise UsageError(NO_MASKS)
    if config.weights == "imagenet" and config.backbone not in wsol_models.pretrained_backbones():
        raise unknown("backbone with ImageNet weights", config.backbone, wsol_models.pretrained_backbones())
    promised(config, dataset, found)


def truths(dataset: Dataset) -> tuple[Truth, Truth]:
    """What validation and test can be scored against, from the manifest: test stays closed."""
    infos = (dataset.manifest.splits[role] for role in (Role.VAL, Role.TEST))
    val, test = (Truth(info.rows, info.boxes, info.masks, dataset.multilabel) for info in infos)
    return val, test


def check_also(also: tuple[str, ...], config: TrainConfig, dataset: Dataset, found: Choosers = TRUE) -> None:
    """Raise `UsageError` for a further objective that validation does not yield, or that is there already."""
    known = (*promised(config, dataset, found).val, COST)
    for name in also:
        if name not in known:
            raise unknown(f"further objective under {config.protocol}", name, known)
    names = (config.objective, *also)
    require(len(set(names)) == len(names), "--also must differ from --objective and name each once", names)


def check_device(options: StudyOptions, device: str) -> None:
    """Raise `UsageError` for what GPUs alone can do."""
    require(not options.sync_batch_norm or device == "cuda", "sync_batch_norm needs GPUs", device)
    require(options.gpus_per_trial == 1 or device == "cuda", "gpus_per_trial below 1 needs GPUs", device)
    # of several machines workers say so, whose are not seen from here
    if options.compile and cluster.is_one_machine():
        require_compiler(device)
    if options.precision == "bfloat16" and cluster.is_one_machine():
        require_bfloat16(torch.device(device))


def check_image_size(method: wsol_models.LocalizationMethod, config: TrainConfig) -> None:
    """Raise `UsageError` if images of this size shrink to nothing on the way through the network."""
    try:
        with torch.no_grad():
            method(torch.zeros(1, 3, config.image_size, config.image_size, dtype=dtype_of(method)))
    except RuntimeError as error:
        raise UsageError(
            f"{config.method} on {config.backbone} cannot take images of {config.image_size} px "
            f"({str(error).splitlines()[0][:120]}): use a larger --image-size."
        ) from error


def _rules(config: TrainConfig) -> Protocol:
    return protocol(config.protocol, image_size=config.image_size, resize_size=config.resize_size)


def _rungs(options: StudyOptions, epochs: int) -> tuple[int, ...]:
    if options.rungs is None:
        return (max(1, epochs // 2),) if epochs > 1 and options.pruning != "none" else ()
    require(all(0 < rung < epochs for rung in options.rungs), f"rungs must lie in 1..{epochs - 1}", options.rungs)
    return options.rungs
