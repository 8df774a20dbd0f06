"""Whether two models differ on the same test images: a paired bootstrap, and McNemar's exact test."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation.cases import SCORES, Case
from wsol_pipeline.report.facts import Line

REDRAWS = 10_000


@dataclass(frozen=True)
class Paired:
    """The subject of a report beside another model, in one metric, on the images that both were judged on.

    difference, low, high: percentage points, with the 95 % interval of the paired bootstrap. only_here, only_there:
    images that one of the two alone finds, and `p` McNemar's exact two-sided test of them; None where an image is more
    than found or not, or counts with several classes.
    """

    other: str
    metric: str
    images: int
    difference: float
    low: float
    high: float
    only_here: int | None = None
    only_there: int | None = None
    p: float | None = None


def compare(lines: Sequence[Line]) -> list[Paired]:
    """The last of `lines`, the subject, beside each of the others, in every metric that single images are kept of."""
    ours = lines[-1]
    return [
        paired(ours.cases, theirs.cases, metric, theirs.row.label)
        for metric in SCORES
        for theirs in lines[:-1]
        if _scores(ours.cases, metric) and _scores(ours.cases, metric).keys() == _scores(theirs.cases, metric).keys()
    ]


def paired(ours: Sequence[Case], theirs: Sequence[Case], metric: str, other: str = "") -> Paired:
    """Two models' cases of the same images compared in one of `SCORES`."""
    here, there = _scores(ours, metric), _scores(theirs, metric)
    ids, at_N = np.unique([id for id, _ in here], return_inverse=True)
    score_N, other_N = (np.array([scores[pair] for pair in here]) for scores in (here, there))
    low, high = bootstrap(score_N - other_N, at_N)
    difference = 100 * float((score_N - other_N).mean())
    if len(ids) < len(here) or not {0.0, 1.0} >= {*here.values(), *there.values()}:
        return Paired(other, metric, len(ids), difference, low, high)
    only_here, only_there = int((score_N > other_N).sum()), int((score_N < other_N).sum())
    p = mcnemar(only_here, only_there)
    return Paired(other, metric, len(ids), difference, low, high, only_here, only_there, p)


def bootstrap(difference_N: NDArray[np.float64], image_N: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean difference, points, over redraws of images (`image_N`, from 0).

    Images that are alike, in the sum of their differences and in how many there are, are drawn together: how many of
    each kind a redraw holds is multinomial, whatever the number of images.
    """
    of_image = np.stack([np.bincount(image_N, difference_N), np.bincount(image_N)], axis=1)
    kinds_K2, images_K = np.unique(of_image, axis=0, return_counts=True)
    drawn_RK = np.random.default_rng(0).multinomial(images_K.sum(), images_K / images_K.sum(), REDRAWS)
    sums_R2 = drawn_RK @ kinds_K2
    low, high = np.quantile(100 * sums_R2[:, 0] / sums_R2[:, 1], [0.025, 0.975]).tolist()
    return low, high


def mcnemar(only_here: int, only_there: int) -> float:
    """McNemar's exact test: how likely so uneven a split of the images on which two models differ is by chance."""
    differ = only_here + only_there
    tail = sum(comb(differ, k) for k in range(min(only_here, only_there) + 1))
    return min(1.0, 2 * tail / 2**differ)


def _scores(cases: Sequence[Case], metric: str) -> dict[tuple[str, int], float]:
    """What each image (and class) adds to `metric`; nothing if not all are kept."""
    found = {(case.id, case.label): getattr(case, metric) for case in cases}
    return {} if None in found.values() else found
