"""Another readout for a finished model: solved on validation, nothing trained. The result is a study like any other."""

import dataclasses
import functools
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.errors import DataError, PartialError, ResourceError, UsageError, unknown
from wsol_pipeline.evaluation import evaluate, selection
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.training import registry, tracking
from wsol_pipeline.training.build import build_readout
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import TrainConfig, check_name, require, to_dict
from wsol_pipeline.training.lease import acquire
from wsol_pipeline.training.loop import model_files
from wsol_pipeline.training.model import Model, load_model
from wsol_pipeline.training.options import plain_values
from wsol_pipeline.training.provenance import provenance
from wsol_pipeline.training.study import WINNER
from wsol_pipeline.training.terminal import print_shrunk, progress
from wsol_pipeline.training.tuner import trial_folder
from wsol_pipeline.training.verdict import finished_study
from wsol_pipeline.training.views import connect_mlflow, flat_parameters

SHOWN = 10  # settings printed


@dataclass(frozen=True)
class SolveOptions:
    """Which model is read anew, and how."""

    study: str = "bas"
    """The finished study (or run) whose winner is read."""
    name: str = ""
    """Name of the result, a study of one trial. By default <study>-<readout>."""
    storage: str = "runs"
    """The --storage of both."""
    readout: str = "bagcams"
    """A file of wsol_models/readouts."""
    readout_options: dict[str, str] = field(default_factory=dict)
    """The readout's options by name, e.g. --readout-options stages '["layer3"]'."""
    objective: str | None = None
    """What validation maximises; by default what the study did."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    batch_size: int = 32
    """Images a pass."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""
    experiment: str = "wsol"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        check_name("study", self.study)
        check_name("name", self.result)
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        require(self.result != self.study, "name must differ from study", self.result)
        if self.objective is not None and self.objective not in selection.METRICS:
            raise unknown("objective", self.objective, selection.METRICS)

    @property
    def result(self) -> str:
        return self.name or f"{self.study}-{self.readout}"

    @property
    def store(self) -> Store:
        return Store.at(self.storage)


def solve_readout(options: SolveOptions) -> int:
    """Search all settings of the readout on validation, keep the best as a finished study. Returns the exit code."""
    source = finished_study(options.store, options.study)
    model = load_model(Store(source["model"]), _device(options))
    config = dataclasses.replace(
        model.config,
        readout=options.readout,
        readout_options=plain_values(options.readout_options),
        fixed_setting=None,
        objective=options.objective or model.config.objective,
    )
    if config.objective not in selection.objectives(model.protocol):
        raise unknown(f"objective under {config.protocol}", config.objective, selection.objectives(model.protocol))
    folder, connect = options.store / options.result, connect_mlflow(options.store, options.experiment)
    with acquire(folder / "lease") as lease:
        trial = CheckpointStore(trial_folder(folder, 0), lease.attempt)
        if trial.final() is None:
            choice, counts = _search(options, model, config)
            dataset = open_dataset(model.description["data"])
            trial.finish(model_files(model.method, config, dataset, choice, counts), [_record(choice, counts)])
        final = trial.final()
        assert final is not None
        kept = load_model(final)
        _require_same(kept.config, config, options)
        winner = {**source, "model": final.uri, "trial": 0, "trials": 1, "published": None}
        folder.write(WINNER, json.dumps(redact(winner)).encode())
        print(f"Next: python rayjobs/evaluate.py --study {options.result} {options.study} --storage {options.storage}")
        _publish(options, connect, kept, trial, final)
    return 0


def _device(options: SolveOptions) -> str:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda needs a GPU but this machine has none.")
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def _search(options: SolveOptions, model: Model, config: TrainConfig) -> tuple[Choice, Counts]:
    rules = model.protocol
    dataset = _validated_dataset(model)
    read = ReadConfig(rules.resize_size, rules.image_size, cache_dir=options.cache_dir)
    rows = eval_rows(dataset.val, read, rules.geometry, options.batch_size)
    try:
        readout = build_readout(config)
        settings = readout.settings(model.method)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(f"{options.readout}: {len(settings)} settings on {rows.num_rows} validation images", flush=True)
    with progress("solving", rows.num_rows) as add:
        choice, counts = evaluate.solve(
            model.method, readout, rows, rules, config.objective, device=_device(options), on_batch=add
        )
    if counts.shrunk:
        print_shrunk(int(counts.shrunk), rows.num_rows)
    _print_settings(counts, config.objective)
    return choice, counts


def _validated_dataset(model: Model) -> Dataset:
    dataset = open_dataset(model.description["data"])
    if dataset.fingerprint != model.description["dataset"]:
        raise DataError(f"{dataset.uri} is not the data any more that the model was trained on.")
    return dataset


def _require_same(kept: TrainConfig, asked: TrainConfig, options: SolveOptions) -> None:
    """A name belongs to one question."""
    mine, theirs = to_dict(asked), to_dict(kept)
    if mine != theirs:
        differing = ", ".join(sorted(name for name in mine if mine[name] != theirs[name]))
        raise UsageError(f"{options.result!r} holds the answer to another question ({differing} differ): use a --name.")


def _record(choice: Choice, counts: Counts) -> dict[str, Any]:
    values = selection.transferred(counts, choice)
    return {
        "epoch": 0, "time": time.time(), "train": {}, "val": values, "value": choice.value, "searched": True,
        "choice": choice.to_dict(), "final": True,
    }  # fmt: skip


def _print_settings(counts: Counts, objective: str) -> None:
    values_S = selection.best(counts)[objective]
    table = Table("setting", objective, title=f"validation, best {min(SHOWN, len(values_S))} of {len(values_S)}")
    for s in (-values_S).argsort(kind="stable")[:SHOWN]:
        table.add_row(str(counts.settings[s]), f"{values_S[s]:.1f}")
    Console(markup=False, emoji=False).print(table)


def _publish(
    options: SolveOptions, connect: tracking.Connect, model: Model, trial: CheckpointStore, final: Store
) -> None:
    """A parent run, a child run with the answer, a registered version."""
    tags = {
        "wsol.data": model.description["data"],
        "wsol.data_fingerprint": model.description["dataset"],
        "wsol.val_fingerprint": model.description["val_split"],
        "wsol.protocol": model.config.protocol,
        "wsol.objective": model.config.objective,
        "wsol.source": options.study,
        **provenance(),
    }
    view = tracking.TrialView(
        0, "COMPLETE", flat_parameters(model.config), {"wsol.readout": json.dumps(model.choice.to_dict())},
        trial.records(),
    )  # fmt: skip
    projection = tracking.Projection(connect, options.result, tags, lambda: [view])
    register = functools.partial(registry.register, projection, options.result, 0, final)
    missing = tracking.deliver(projection, {"the model": register, "the study's end": projection.close_parent})
    if missing:
        raise PartialError(f"{missing}: the same command writes it.")
