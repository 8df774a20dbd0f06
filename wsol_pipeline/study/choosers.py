"""What `--select-by` and `--threshold-by` name, looked at before anything starts: files of boxes, another study."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.targets import described, read_targets
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.measures import TRUE_BOXES, Truth
from wsol_pipeline.selectors import TARGETS, Selector, parse
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.config import TrainConfig
from wsol_pipeline.training.model import DESCRIPTION
from wsol_pipeline.training.options import SelectionOptions


@dataclass(frozen=True)
class Choosers:
    """The selectors of a run with what they bring: `sources` by recorded name, `truth` their SHA-256 in one."""

    rank: Selector
    threshold: Selector | None = None
    sources: Mapping[str, Any] = field(default_factory=dict)
    truth: str = ""
    notes: tuple[str, ...] = ()  # what files of boxes are like, a line each

    def of_val(self, val: Truth) -> Truth:
        """What validation can be scored against by what ranks: its own boxes, those of a file, or nothing."""
        if self.rank.name == "boxes":
            return val
        images = len(self.sources[self.rank.name]["boxes"]) if self.rank.name in TARGETS else 0
        return Truth(images or val.images, images, 0, val.multilabel)


TRUE = Choosers(TRUE_BOXES)


def choosers(options: SelectionOptions, dataset: Dataset, store: Store) -> Choosers:
    """Read what the options name. Raises `UsageError` and `DataError` as `read_targets` does, and for a study that is
    missing or not finished; `check_consensus` compares it with a run."""
    rank = parse(options.select_by or "boxes")
    threshold = parse(options.threshold_by) if options.threshold_by else None
    sources: dict[str, Any] = {}
    digests, notes = [], []
    for by in (*rank.members, *(threshold.members if threshold else ())):
        if by.name in TARGETS:
            targets = read_targets(by.argument, dataset, by.name, options.convention, options.allow_partial)
            sources[by.name] = targets.to_dict()
            digests.append(targets.sha256)
            notes.append(described(targets, dataset))
        elif by.name == "consensus":
            sources[str(by)] = finished(store, by.argument)
            digests.append(sources[str(by)]["seal"])
    truth = hashlib.sha256(" ".join(digests).encode()).hexdigest() if digests else ""
    return Choosers(rank, threshold, sources, truth, tuple(notes))


def finished(store: Store, study: str) -> dict[str, str]:
    """Where a finished study's model is, and its seal. Raises `UsageError` if there is none."""
    folder = store / study
    if not folder.exists(WINNER):
        raise UsageError(f"consensus:{study} needs a finished study of that name in {store.uri} but there is none.")
    winner = json.loads(folder.read(WINNER))
    return {"model": store.resolve(winner["model"]).uri, "seal": winner["seal"]}


def check_consensus(found: Choosers, config: TrainConfig, dataset: Dataset) -> None:
    """Raise `UsageError` for a study to agree with of the same method, other data, or another evaluation."""
    for name, source in found.sources.items():
        if not name.startswith("consensus:"):
            continue
        other = json.loads(read_sealed(Store(source["model"]), DESCRIPTION)[DESCRIPTION])
        train = other["train"]
        if train["method"] == config.method:
            raise UsageError(
                f"{name} is a study of {config.method} too: models of one method agree in what is wrong with both. "
                "Name a study of another method."
            )
        if other["dataset"] != dataset.fingerprint or tuple(other["classes"]) != dataset.classes:
            raise UsageError(f"{name} was trained on other data or classes than {dataset.uri}.")
        mine, theirs = ({key: of[key] for key in _EVALUATION} for of in (vars(config), train))
        if mine != theirs:
            raise UsageError(f"{name} is of another evaluation: {theirs}, not {mine}.")


_EVALUATION = ("protocol", "image_size", "resize_size")
