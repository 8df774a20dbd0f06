"""Optuna over the walk: what BAS is trained with and what refinement reads, judged by the masks that come out.

A trial is a training of BAS and the stations after it, each kept below a name of its own and continued like any other.
The background's constant is solved in each, never sampled. Which parameters a trial has depends on the seed, its number
and what the trials before it have found, so a search that was killed goes on as if it had not been.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
import torch
from optuna.distributions import FloatDistribution, IntDistribution

from search_spaces.bas import space
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.segmentation import cuts, make_seeds, refine, station
from wsol_pipeline.segmentation.fit import Record
from wsol_pipeline.segmentation.options import SeedOptions, TuneMasksOptions
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.study.plan import digest_of
from wsol_pipeline.study.samplers import SAMPLERS
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.loop import World, train
from wsol_pipeline.training.model import load_model
from wsol_pipeline.verdict.rows import finished_study
from wsol_pipeline.verdict.score import Progress, silent

KIND, STARTUP = "search of masks", 5
NOT_ASKED = (*make_seeds.NOT_ASKED, "trials", "start_weights")  # change no trial
Parameters = dict[str, Any]  # of BAS; those of stations have "seeds." or "refine." before the option's name
READ: dict[str, dict[str, Any]] = {
    "irn": {
        "seeds.foreground_at": FloatDistribution(0.2, 0.5), "seeds.background_at": FloatDistribution(0.0, 0.2),
        "refine.power": FloatDistribution(0.5, 2.0), "refine.walk_radius": IntDistribution(3, 8),
        "refine.beta": FloatDistribution(4.0, 16.0), "refine.exponent": IntDistribution(4, 9),
    },
    "crf": {"refine.alpha": FloatDistribution(0.0, 16.0)},
}  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """A trial: `miou` of its masks on validation (None of one whose maps hold nothing, and `fault` says so), `seeds` of
    its seeds; `labels`: seeds at the threshold that labels alone choose, `labels_score` what it was chosen by (L_bas +
    L_ac, the lower the better); `masks`: the name of the station."""

    number: int
    parameters: Parameters
    masks: str
    miou: float | None = None
    seeds: float | None = None
    labels: float | None = None
    labels_score: float | None = None
    fault: str = ""


@dataclass(frozen=True)
class Search:
    """What all trials share."""

    options: TuneMasksOptions
    device: str
    progress: Progress
    on_record: Callable[[Record], None]

    def tried(self, winner: Mapping[str, Any], number: int, parameters: Parameters, attempt: int) -> Tried:
        """A trial, made or continued: BAS, its seeds, their masks."""
        name = f"{self.options.result}-{number:04d}"
        self._train(winner, name, parameters, attempt)
        read = {each: value for each, value in parameters.items() if "." in each}
        seeds, masks = self.options.stations(name, **read)
        try:
            val = make_seeds.make_seeds(seeds, self.device, self.progress).manifest["val"]
            refined = refine.refine(masks, self.device, self.progress, self.on_record).manifest["val"]
        except make_seeds.NothingError as error:
            return Tried(number, parameters, masks.result, fault=str(error))
        beside = val.get("labels"), val.get("labels_score")
        return Tried(number, parameters, masks.result, refined["miou"], val["miou"], *beside)

    def _train(self, winner: Mapping[str, Any], name: str, parameters: Parameters, attempt: int) -> None:
        """BAS as the study's winner was trained, but for its loss weights; kept as a finished study."""
        store, dataset = self.options.store, open_dataset(winner["data"])
        checkpoints = CheckpointStore(store / name / "training", attempt)
        if checkpoints.final() is None:
            model = load_model(Store(winner["model"]))
            weights, digest = start_of(model.description["train"]["weights"], self.options.start_weights)
            losses = {each: value for each, value in parameters.items() if "." not in each}
            options = {**model.config.options, **losses}
            config = replace(model.config, options=options, weights=weights, weights_digest=digest)
            for record in train(config, dataset, checkpoints, World(device=torch.device(self.device))):
                self.on_record(record)
        final = checkpoints.final()
        assert final is not None
        study = {**winner, **model_named(final, store), "data": store.relative(dataset.uri), "published": None}
        (store / name).write(WINNER, json.dumps(study | {"study": f"{winner['study']}/{name}"}).encode())


def tune_masks(
    options: TuneMasksOptions,
    device: str,
    progress: Progress = silent,
    on_record: Callable[[Record], None] = lambda record: None,
    on_trial: Callable[[Tried], None] = lambda tried: None,
) -> list[Tried]:
    """All trials in their order, made or continued. The first has what the study's winner was trained with."""
    winner, search = finished_study(options.store, options.study), Search(options, device, progress, on_record)
    dataset, place = open_dataset(winner["data"]), options.store / options.result
    model = load_model(Store(winner["model"]))
    cuts.require_bas(model.method, "A search of masks")
    start_of(model.description["train"]["weights"], options.start_weights)
    make_seeds.require_classes(dataset, by_masks=True)
    told = {name: value for name, value in asdict(options).items() if name not in NOT_ASKED}
    identity = {"kind": KIND, "sources": [winner["seal"]], "dataset": dataset.fingerprint, "options": told}
    trials: list[Tried] = []
    with acquire(place / "lease") as lease:
        station.begin(place, json.loads(json.dumps(identity)))
        for number in range(options.trials):
            file = f"trials/{number:04d}.json"
            if not place.exists(file):
                parameters = proposed(options, vars(model.method.config), trials)
                found = search.tried(winner, number, parameters, lease.attempt)
                place.write(file, json.dumps(asdict(found)).encode(), lease.confirm)
            trials.append(Tried(**json.loads(place.read(file))))
            on_trial(trials[-1])
    return trials


def start_of(kept: str | None, given: str) -> tuple[str | None, str]:
    """What a training like the study's begins with, and its SHA-256 if it is a file.

    `kept`: what the winner's description has of it. Raises `UsageError` unless `given` is that file.
    """
    if kept is None or not kept.startswith("sha256:"):
        return kept, ""
    digest = digest_of(given or None)
    if kept != f"sha256:{digest}":
        what = f"{given} is another file" if given else "say where it is today"
        raise UsageError(f"The study began with a file of weights ({kept[:19]}...): {what} (--start-weights).")
    return given, digest


def best(trials: Sequence[Tried]) -> Tried:
    """The trial whose masks are best on validation. Raises `DataError` if none has any."""
    able = [tried for tried in trials if tried.miou is not None]
    if not able:
        raise DataError(f"None of {len(trials)} trials has masks: {trials[-1].fault}")
    return max(able, key=lambda tried: tried.miou or 0.0)


def by_labels(trials: Sequence[Tried]) -> Tried | None:
    """The trial that labels alone would have chosen."""
    able = [tried for tried in trials if tried.labels_score is not None]
    return min(able, key=lambda tried: tried.labels_score or 0.0) if able else None


def proposed(options: TuneMasksOptions, own: Mapping[str, Any], tried: Sequence[Tried]) -> Parameters:
    """The parameters of the next trial, by what those before it have found. The first has those of BAS that are its
    `own`, and what stations read where nothing is asked for, within the ranges."""
    ranges = _ranges(options.by)
    if not tried:
        known = {**own, **_named("seeds.", SeedOptions()), **_named("refine.", options), "refine.alpha": 0.0}
        return {name: min(max(known[name], each.low), each.high) for name, each in ranges.items()}
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS["tpe"](options.seed, len(tried), STARTUP))
    study.add_trials([_told(one, ranges) for one in tried])
    return study.ask(ranges).params


def _named(prefix: str, options: Any) -> Parameters:
    return {f"{prefix}{name}": value for name, value in asdict(options).items()}


def _ranges(by: Sequence[str]) -> dict[str, Any]:
    """What is searched: the loss weights of BAS, and what the refinements in `by` read."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    space(trial)
    return trial.distributions | {name: each for step in by for name, each in READ.get(step, {}).items()}


def _told(tried: Tried, ranges: dict[str, Any]) -> optuna.trial.FrozenTrial:
    state = optuna.trial.TrialState.FAIL if tried.miou is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(params=tried.parameters, distributions=ranges, value=tried.miou, state=state)
