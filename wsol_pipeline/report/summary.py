"""Figures that a report works out of its facts: plain numbers for charts, tables and sentences."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.cases import KINDS, Case, kind
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.report.facts import Facts, Search
from wsol_pipeline.study.ledger import PUBLISHED
from wsol_pipeline.study.plan import OWN
from wsol_pipeline.text import metric_name

FEW_TRIALS = 4  # an importance needs at least as many that are complete


@dataclass(frozen=True)
class Share:
    """Hits among the images of one range of sizes: percent, with Wilson's 95 % interval."""

    label: str
    images: int
    percent: float
    low: float
    high: float


def gain(facts: Facts) -> list[tuple[str, float]]:
    """What the objective at each step: as published, readout solved, training searched; empty without a paper's.

    A model whose row names no readout of ours starts at the second step.
    """
    study = facts.main.contender.study
    published = next((s for s in facts.subjects if s.contender.study == study and s.contender.preset), None)
    judged = {s.evaluation is not None for s in facts.subjects if s.contender.study == study}
    if published is None or len(judged) > 1:  # figures of two splits make no difference
        return []
    names = ["published setting, published readout", "published setting, readout solved"][-len(published.lines) :]
    steps = list(zip(names, published.lines, strict=True))
    if published is not facts.main:
        steps.append(("searched setting, readout solved", facts.main.lines[-1]))
    return [(name, (line.row.transferred or line.row.val)[facts.measure]) for name, line in steps]


def gain_sentence(facts: Facts) -> str:
    """How much of the gain came from the readout and how much from training, in words."""
    steps = gain(facts)
    if not steps:
        return "No published setting was measured beside the winner: there is nothing to measure a gain from."
    values = [round(value, 1) for _, value in steps]  # so that differences are those of the figures shown
    split = "test" if facts.main.evaluation else "validation"
    told = f"{metric_name(facts.measure)} on {split} was {values[0]:.1f} with the {steps[0][0].split(',')[0]}"
    solved = values[1:] if steps[0][0].endswith("published readout") else values
    if solved is not values:
        told += f" as the paper reads it; solving readout and threshold alone brought it to {solved[0]:.1f} "
        told += f"({solved[0] - values[0]:+.1f} from readout)"
    else:
        told += " and its readout solved (the paper's own is not one of ours)"
    if len(solved) > 1:
        return f"{told}, searching the training to {solved[1]:.1f} ({solved[1] - solved[0]:+.1f} from training)."
    return f"{told}. The published setting won the search: training gained nothing over it."


def kinds(cases: Sequence[Case]) -> dict[str, int]:
    """How many images ended in each of `KINDS`, in their order."""
    found = Counter(kind(case) for case in cases)
    return {name: found[name] for name in KINDS}


def size_edges(cases: Sequence[Case], groups: int = 5) -> NDArray[np.float64]:
    """Edges of `groups` ranges of object sizes with about equally many images each; fewer if many sizes are equal."""
    return np.unique(np.quantile([case.size for case in cases], np.linspace(0, 1, groups + 1)))


def by_size(cases: Sequence[Case], edges: NDArray[np.float64]) -> list[Share]:
    """Hits per range of object sizes; a range holds its lower edge, the last one both."""
    if len(edges) < 2:
        edges = np.repeat(edges, 2)
    last = len(edges) - 2
    at = np.clip(np.searchsorted(edges, [case.size for case in cases], side="right") - 1, 0, last)
    hits = np.array([case.hit for case in cases])
    shares = []
    for group, (low, high) in enumerate(pairwise(edges)):
        some = hits[at == group]
        if len(some):
            label = f"{100 * low:.0f}–{100 * high:.0f} %"
            shares.append(Share(label, len(some), 100 * some.mean(), *wilson(int(some.sum()), len(some))))
    return shares


def wilson(hits: int, images: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent."""
    share, weight = hits / images, z * z / images
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * np.sqrt(share * (1 - share) / images + weight / (4 * images))
    return 100 * float(middle - half), 100 * float(middle + half)


def best_of_settings(counts: Counts, objective: str) -> NDArray[np.float64]:
    """The objective of each readout setting at its best thresholds, [S], percent."""
    return selection.best(counts)[objective]


def training_points(search: Search, name: str) -> dict[str, list[tuple[object, float]]]:
    """Values of a parameter and of the objective by what a trial is: complete, published, pruned (its last rung)."""
    points: dict[str, list[tuple[object, float]]] = {"complete": [], "published": [], "pruned": []}
    for trial in search.trials:
        if name not in trial.params:
            continue
        complete = "complete" if trial.user_attrs.get(PUBLISHED, OWN) == OWN else "published"
        group = {TrialState.COMPLETE: complete, TrialState.PRUNED: "pruned"}.get(trial.state)
        if group and trial.value is not None:  # Optuna gives a pruned trial the last value that it reported
            points[group].append((trial.params[name], trial.value))
    return points
