"""Another readout for a finished model: solved on validation, nothing trained. The result is a study like any other."""

import dataclasses
import functools
import json
import time
from dataclasses import dataclass
from typing import Any

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.reader import ReadConfig
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.redaction import redact
from wsol_pipeline.selectors import TARGETS
from wsol_pipeline.storage import Store
from wsol_pipeline.study.choosers import Choosers, choosers
from wsol_pipeline.study.identity import WINNER, Home, home
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.study.mlflow_view import flat_parameters
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.study.plan import chosen_by, promised
from wsol_pipeline.study.standing import beside_box
from wsol_pipeline.study.tuner import trial_folder
from wsol_pipeline.tracking import registry
from wsol_pipeline.tracking.connect import Connect, connect_mlflow
from wsol_pipeline.tracking.projection import Projection, TrialView
from wsol_pipeline.tracking.provenance import provenance
from wsol_pipeline.tracking.runs import STORAGE_TAG, StudyRuns, deliver
from wsol_pipeline.training import selecting
from wsol_pipeline.training.build import build_readout
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import TrainConfig, to_dict
from wsol_pipeline.training.loop import model_files
from wsol_pipeline.training.model import TOLD, Model, load_model
from wsol_pipeline.training.resolve import plain_values
from wsol_pipeline.training.selecting import make_choosing
from wsol_pipeline.verdict.options import SolveOptions
from wsol_pipeline.verdict.placing import somewhere
from wsol_pipeline.verdict.rows import dataset_at, finished_study
from wsol_pipeline.verdict.score import Progress, local_device, silent

OF_MODEL = ("schema", "method", "paper_data")  # of a study's record, what holds of its model however that is read


@dataclass(frozen=True)
class Solved:
    """Another readout's answer. `counts`: those of all settings on validation, None of an answer that was kept.

    `missing`: what MLflow lacks, in words; `notes`: what files of boxes are like that have chosen; `standing`:
    the answer beside the centred box, in a sentence or none.
    """

    objective: str
    counts: Counts | None
    missing: str
    notes: tuple[str, ...] = ()
    standing: str = ""


def solve_readout(options: SolveOptions, progress: Progress = silent) -> Solved:
    """Search all settings of the readout on validation, keep the best as a finished study."""
    source = finished_study(options.store, options.study)
    model = load_model(Store(source["model"]))
    config = dataclasses.replace(
        model.config,
        readout=options.readout,
        readout_options=plain_values(options.readout_options),
        fixed_setting=None,
        objective=options.objective or model.config.objective,
    )
    dataset = _validated_dataset(options.data or source["data"], model)
    found = choosers(_as_the_study(options, model), dataset, options.store)
    config = chosen_by(config, options.objective, dataset, found)
    promised(config, dataset, found)
    folder, connect, counts = options.store / options.result, connect_mlflow(options.store, options.experiment), None
    with acquire(folder / "lease") as lease:
        trial, own = CheckpointStore(trial_folder(folder, 0), lease.attempt), home(folder)
        if trial.final() is None:
            asked = source["model"], config, dataset, found
            choice, counts = somewhere(_search, options, *asked, progress=progress)
            told = {name: model.description.get(name, "not known") for name in TOLD}  # of an older model
            files = model_files(model.method, config, dataset, choice, counts, own.id, told)
            trial.finish(files, [_record(choice, counts)])
        final = trial.final()
        assert final is not None
        kept = load_model(final)
        _require_same(kept.config, config, options)
        winner = {name: source[name] for name in OF_MODEL if name in source}
        winner |= {**model_named(final, options.store), "data": options.store.relative(dataset.uri)}
        winner |= {"study": own.id, "trial": 0, "trials": 1, "published": None}
        winner["selected_on"] = registry.selected_on(to_dict(config))
        winner["standing"] = beside_box(final, config, dataset, options.cache_dir)
        folder.write(WINNER, json.dumps(redact(winner)).encode(), lease.confirm)
        missing = _publish(options, connect, dataset, kept, trial, final, own)
        return Solved(config.objective, counts, missing, found.notes, winner["standing"])


def _as_the_study(options: SolveOptions, model: Model) -> SolveOptions:
    """The options, with the selectors of the model's own study where none is named. Raises `UsageError` for those that
    had a file."""
    mine = model.config
    if options.select_by:
        return options
    if {mine.select_by, mine.threshold_by} & set(TARGETS):
        raise UsageError(
            f"{options.study!r} was chosen by a file of boxes ({mine.select_by}): name it again, --select-by "
            f"{mine.select_by}:FILE, or choose otherwise."
        )
    return dataclasses.replace(options, select_by=mine.select_by, threshold_by=mine.threshold_by)


def _search(
    options: SolveOptions, place: str, config: TrainConfig, dataset: Dataset, found: Choosers, progress: Progress
) -> tuple[Choice, Counts]:
    device = local_device(options.device)
    model = load_model(Store(place), device)
    rules = model.protocol
    read = ReadConfig(rules.resize_size, rules.image_size, cache_dir=options.cache_dir)
    by = make_choosing(config, rules, dataset, read, options.batch_size, found.sources, device=device)
    try:
        readout = build_readout(config)
        settings = readout.settings(model.method)
    except ValueError as error:
        raise UsageError(str(error)) from error
    passing = functools.partial(progress, f"{options.readout}: {len(settings)} settings on validation")
    return selecting.solve(by, model.method, readout, device=device, passing=passing)


def _validated_dataset(place: str, model: Model) -> Dataset:
    dataset = dataset_at(place)
    if dataset.fingerprint != model.description["dataset"]:
        raise DataError(f"{dataset.uri} is not the data that the model was trained on (any more).")
    return dataset


def _require_same(kept: TrainConfig, asked: TrainConfig, options: SolveOptions) -> None:
    """A name belongs to one question."""
    mine, theirs = to_dict(asked), to_dict(kept)
    if mine != theirs:
        differing = ", ".join(sorted(name for name in mine if mine[name] != theirs[name]))
        raise UsageError(f"{options.result!r} holds the answer to another question ({differing} differ): use a --name.")


def _record(choice: Choice, counts: Counts) -> dict[str, Any]:
    values = {**selection.transferred(counts, choice), choice.metric: choice.value}
    return {
        "epoch": 0, "time": time.time(), "train": {}, "val": values, "value": choice.value, "searched": True,
        "choice": choice.to_dict(), "final": True,
    }  # fmt: skip


def _publish(
    options: SolveOptions,
    connect: Connect,
    dataset: Dataset,
    model: Model,
    trial: CheckpointStore,
    final: Store,
    own: Home,
) -> str:
    """A parent run, a child run with the answer, a registered version. Returns what MLflow lacks of them."""
    tags = {
        "wsol.data": options.store.relative(dataset.uri),
        "wsol.data_fingerprint": model.description["dataset"],
        "wsol.val_fingerprint": model.description["val_split"],
        "wsol.protocol": model.config.protocol,
        "wsol.objective": model.config.objective,
        registry.SELECTED_TAG: registry.selected_on(to_dict(model.config)),
        "wsol.source": options.study,
        STORAGE_TAG: own.storage,
        **provenance(),
    }
    view = TrialView(
        0, "COMPLETE", flat_parameters(model.config), {"wsol.readout": json.dumps(model.choice.to_dict())},
        trial.records(),
    )  # fmt: skip
    runs = StudyRuns(connect, options.result, tags, own.id, own.before)
    return deliver({
        "the answer's run": Projection(runs, lambda: [view]).write,
        "the model": lambda: registry.register(runs, options.result, 0, final),
        "the study's end": runs.close_parent,
    })  # fmt: skip
