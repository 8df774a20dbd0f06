"""By what a run chooses on validation: from the selectors that its configuration names to rows, counts and a choice."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wsol_pipeline import selectors
from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.reader import EvalRows, LabelledRows, ReadConfig, eval_rows, labelled_rows
from wsol_pipeline.data.targets import TargetRows, Targets, target_rows
from wsol_pipeline.errors import MismatchError
from wsol_pipeline.evaluation import labelfree, selection
from wsol_pipeline.evaluation.counts import BOXES, MEAN_IOU, Counts
from wsol_pipeline.evaluation.evaluate import count, settings_of
from wsol_pipeline.evaluation.labelfree import Observed, Other
from wsol_pipeline.evaluation.measures import MANY_BOXES, choosing
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.evaluation.selection import Choice, default_objective
from wsol_pipeline.protocol import require_searchable
from wsol_pipeline.storage import Store
from wsol_pipeline.training.build import fixed_setting
from wsol_pipeline.training.checkpoint import seal_of
from wsol_pipeline.training.config import TrainConfig
from wsol_pipeline.training.model import load_model

Sources = Mapping[str, Any]  # what selectors bring, by their names: boxes, another model
# how many images a look has -> a context whose value, if any, is called with how many more are done
Passing = Callable[[int], AbstractContextManager[Callable[[int], None] | None]]


@dataclass(frozen=True)
class Selection:
    """A selector with what it sees. `free` is None where boxes are counted: those of `rows`, by what `truth` says."""

    name: str
    objective: str
    rows: EvalRows | TargetRows | LabelledRows
    protocol: Protocol
    free: labelfree.Selector | None = None
    truth: str = BOXES

    @property
    def ranks(self) -> bool:
        """Whether readout settings are its to choose."""
        return selectors.parse_name(self.name).ranks

    def few(self, images: int) -> "Selection":
        """The same, of the first images alone."""
        return dataclasses.replace(self, rows=self.rows.few(images))

    def look(
        self,
        method: nn.Module,
        readout: Any,
        settings: Sequence[Any] | None = None,
        *,
        fine: bool = False,
        device: torch.device | str = "cpu",
        on_batch: Callable[[int], None] | None = None,
    ) -> Counts | Observed:
        """See this rank's rows at the given settings, by default all. `fine`: at one, with single images."""
        require_searchable(self.rows, "Choosing readout and threshold")
        if self.free is None:
            return count(
                method, readout, self.rows, self.protocol, settings=settings, device=device, keep_images=fine,
                keep_scores=self.objective == MEAN_IOU, on_batch=on_batch, truth=self.truth,
            )  # fmt: skip
        return labelfree.observe(
            self.free, method, readout, self.rows, self.protocol, settings=settings_of(method, readout, settings),
            device=device, fine=fine, on_batch=on_batch,
        )  # fmt: skip

    def counts(self, parts: Sequence[Any], settings: Sequence[Any], fine: bool = False) -> Counts:
        """What all ranks saw."""
        if self.free is None:
            return sum(parts[1:], start=parts[0])
        return labelfree.concluded(self.free, self.name, parts, self.protocol, settings, fine)

    def choose(self, counts: Counts) -> Choice:
        """The best setting and thresholds; with a reason where the selector abstains."""
        chosen = selection.choose(counts, self.objective)
        rule, reason = (self.free.rule, self.free.reason(chosen.value)) if self.free else ("", "")
        return dataclasses.replace(chosen, rule=rule, selector=self.name, reason=reason)


@dataclass(frozen=True)
class Choosing:
    """What ranks trials and settings, and what finds the thresholds at the setting that was chosen, if another does."""

    rank: Selection
    threshold: Selection | None = None

    @property
    def name(self) -> str:
        """As it is recorded: `evidence`, or `evidence+otsu` where thresholds are another's."""
        return f"{self.rank.name}+{self.threshold.name}" if self.threshold else self.rank.name

    def with_thresholds(self, chosen: Choice, counts: Counts) -> Choice:
        """A choice with the thresholds that `counts` of the second selector at its setting give; a score that only the
        first one has keeps its own."""
        assert self.threshold
        found = self.threshold.choose(counts)
        thresholds = {**chosen.thresholds, **found.thresholds}
        reason = chosen.reason or found.reason
        return dataclasses.replace(chosen, thresholds=thresholds, rule=found.rule, selector=self.name, reason=reason)


def make_choosing(
    config: TrainConfig,
    rules: Protocol,
    dataset: Dataset,
    read: ReadConfig,
    batch_size: int,
    sources: Sources,
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Choosing:
    """The selectors that `config` names, on this rank's rows of validation. Boxes of `val` are for "boxes" alone."""

    def make(name: str, objective: str | None) -> Selection:
        by = selectors.parse_name(name)
        if by.name == "boxes":
            chosen_by = choosing(rules, dataset.val)
            rows = eval_rows(dataset.val, read, rules.geometry, batch_size, rank=rank, world=world)
            return Selection(name, objective or default_objective(chosen_by), rows, chosen_by)
        if by.name in selectors.TARGETS:
            targets = Targets.from_dict(sources[name])
            theirs = target_rows(dataset, targets, read, rules.geometry, batch_size, rank, world)
            chosen_by = by_boxes(rules)
            wanted = objective or target_objective(by.name, len(targets.boxes), chosen_by)
            return Selection(name, wanted, theirs, chosen_by, truth=targets.truth)
        labelled = labelled_rows(dataset.val_labels, read, rules.geometry, batch_size, rank=rank, world=world)
        free = make_free(by, sources, device)
        return Selection(name, free.score, labelled, rules, free)

    first = make(config.select_by, config.objective)
    return Choosing(first, make(config.threshold_by, None) if config.threshold_by else None)


def by_boxes(rules: Protocol) -> Protocol:
    """The evaluation that chooses by boxes where `rules` score masks."""
    return rules if rules.ious else dataclasses.replace(rules, ious=Protocol.ious)


def target_objective(name: str, images: int, rules: Protocol) -> str:
    """The mean IoU, at one threshold; the protocol's own hits where people have drawn boxes on many images."""
    return default_objective(rules) if name == "annotated" and images >= MANY_BOXES else MEAN_IOU


def make_free(by: selectors.Selector, sources: Sources, device: torch.device | str) -> labelfree.Selector:
    """A selector without boxes by its name."""
    match by.name:
        case "evidence":
            return labelfree.Evidence()
        case "otsu":
            return labelfree.Otsu()
        case "area":
            return labelfree.Area(float(by.argument))
        case "own-mask":
            return labelfree.OwnMask()
        case "vote":
            return labelfree.Vote(tuple(make_free(voter, sources, device) for voter in by.voters))
    return labelfree.Consensus(_other(sources[str(by)], device))


def _other(source: Mapping[str, str], device: torch.device | str) -> Other:
    """The other model of a consensus. Raises `MismatchError` if another one lies there by now."""
    final = Store(source["model"])
    if seal_of(final) != source["seal"]:
        raise MismatchError(f"{final.uri} holds another model than the one that was to be agreed with.")
    model = load_model(final, device)
    return Other(model.method, model.readout, model.choice.readout)


def solve(
    choosing: Choosing,
    method: nn.Module,
    readout: Any,
    published: Any = None,
    *,
    device: torch.device | str = "cpu",
    passing: Passing = lambda images: nullcontext(None),
    seen: dict[Any, Counts] | None = None,
) -> tuple[Choice, Counts]:
    """The choice for a finished model in this process, and the counts of all settings that it was made from.

    A selector that ranks no settings is shown the `published` one, or the first. `passing` is asked for each look that
    is taken. `seen`: what selectors without boxes have seen of this model and validation, taken from there and added to
    it.
    """
    known, rank = settings_of(method, readout, None), choosing.rank
    settings = known if rank.ranks else (fixed_setting(published, known),)
    seen = {} if seen is None else seen

    def look(of: Selection, at: Sequence[Any], fine: bool = False) -> Counts:
        key = of.name, tuple(at), fine
        if of.free is None or key not in seen:
            with passing(of.rows.num_rows) as on_batch:
                found = of.look(method, readout, at, fine=fine, device=device, on_batch=on_batch)
            seen[key] = of.counts([found], at, fine)
        return seen[key]

    alone = rank.free is not None and len(settings) == 1  # nothing to compare it with: one close look
    counts = look(rank, settings, fine=alone)
    chosen = rank.choose(counts)
    if rank.free and not alone:
        chosen = finer(chosen, rank.choose(look(rank, [chosen.readout], fine=True)))
    if choosing.threshold:
        chosen = choosing.with_thresholds(chosen, look(choosing.threshold, [chosen.readout], fine=True))
    return chosen, counts


def finer(coarse: Choice, fine: Choice) -> Choice:
    """A choice that was made at one setting, with that setting's number among all."""
    return dataclasses.replace(fine, setting=coarse.setting)
