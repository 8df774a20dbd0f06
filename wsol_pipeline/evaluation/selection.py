"""Every choice an evaluation makes, as pure functions of counts.

A metric is the mean of one or more curves over the threshold τ: V2 has one per IoU, each read at its own τ; the rest
have one. `choose` picks on validation counts, `transferred` reads other counts at what was picked (the honest number),
`oracle` picks the thresholds again on the counts it reports (the field's habit: an upper bound).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.evaluation.counts import Counts, ImageHits

GT_KNOWN = 0.5  # the IoU of "GT-known" and of Top-1 and Top-5 localization

# name: (which hits, at which IoUs)
METRICS = {
    "max_box_acc_iou30": ("hits", (0.3,)),
    "max_box_acc_iou50": ("hits", (0.5,)),
    "max_box_acc_iou70": ("hits", (0.7,)),
    "max_box_acc_v2": ("hits", (0.3, 0.5, 0.7)),
    "gt_known_loc": ("hits", (GT_KNOWN,)),
    "top1_loc": ("top1_hits", (GT_KNOWN,)),
    "top5_loc": ("top5_hits", (GT_KNOWN,)),
}


@dataclass(frozen=True)
class Choice:
    """What validation decided: a readout setting, and a threshold per curve of every metric."""

    metric: str  # the objective
    value: float  # its value on the validation counts, percent
    setting: int  # index of the setting in those counts
    readout: Any  # the setting itself
    thresholds: Mapping[str, tuple[float, ...]]  # metric -> τ per curve

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Choice":
        thresholds = {name: tuple(values) for name, values in data["thresholds"].items()}
        readout = tuple(data["readout"]) if isinstance(data["readout"], list) else data["readout"]  # JSON has no tuples
        return Choice(data["metric"], data["value"], data["setting"], readout, thresholds)


def curves(counts: Counts, metric: str) -> NDArray[np.float64]:
    """The curves of a metric in percent of the images, float64 [settings, curves, thresholds]."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if not counts.images.all():
        raise DataError(f"{metric} needs at least one image per setting but the counts hold {counts.images.tolist()}.")
    field, ious = METRICS[metric]
    return getattr(counts, field)[:, _rows(counts, ious)] * 100.0 / counts.images[:, None, None]


def best(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Every metric at its best thresholds on these very counts, per setting [S], percent."""
    return {metric: curves(counts, metric).max(-1).mean(-1) for metric in METRICS} | _classification(counts)


def choose(counts_val: Counts, objective: str = "max_box_acc_v2") -> Choice:
    """The setting with the best objective, and for it the best thresholds of every metric.

    Of equal settings the first is taken, of equal thresholds the lowest.
    """
    values_S = curves(counts_val, objective).max(-1).mean(-1)
    setting = int(values_S.argmax())
    picked = {metric: curves(counts_val, metric)[setting].argmax(-1) for metric in METRICS}
    thresholds = {metric: tuple(counts_val.thresholds[at].tolist()) for metric, at in picked.items()}
    return Choice(objective, float(values_S[setting]), setting, counts_val.settings[setting], thresholds)


def transferred(counts_test: Counts, choice: Choice) -> dict[str, float]:
    """Every metric, percent, at the setting and the thresholds that validation chose."""
    s = _setting(counts_test, choice)
    values = {metric: _read(curves(counts_test, metric)[s], _at(counts_test, choice, metric)) for metric in METRICS}
    return values | {name: float(values_S[s]) for name, values_S in _classification(counts_test).items()}


def oracle(counts_test: Counts, choice: Choice) -> dict[str, float]:
    """Every metric, percent, at the setting that validation chose and the thresholds that flatter these counts most.

    An upper bound: nobody knows these thresholds without the true boxes.
    """
    s = _setting(counts_test, choice)
    return {name: float(values_S[s]) for name, values_S in best(counts_test).items()}


def bootstrap(
    counts_test: Counts,
    choice: Choice,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    weights_N: NDArray[np.float64] | None = None,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Percentile intervals over images of `transferred` and `oracle`: name -> metric -> (low, high), percent.

    The counts must hold `image_hits`. Thresholds that validation chose stay; the oracle picks anew in each sample.
    `weights_N` of the images, of mean 1: those of `class_weights` for means over classes.
    """
    kept = _require_images(counts_test, "A bootstrap")
    weights_RN = _resample(len(kept.ranks), samples, seed)
    if weights_N is not None:
        weights_RN = weights_RN * weights_N
    percent_R11 = (100.0 / weights_RN.sum(1))[:, None, None]
    accuracy = {field: _resampled_hits(weights_RN, kept, field, counts_test) * percent_R11 for field in _FIELD_RANK}
    values: dict[str, dict[str, NDArray[np.float64]]] = {"transferred": {}, "oracle": {}}
    for metric, (field, ious) in METRICS.items():
        curves_RCT = accuracy[field][:, _rows(counts_test, ious)]
        at = _at(counts_test, choice, metric)
        values["transferred"][metric] = curves_RCT[:, np.arange(len(at)), at].mean(-1)
        values["oracle"][metric] = curves_RCT.max(-1).mean(-1)
    tail = (1 - confidence) / 2
    return {
        name: {metric: tuple(np.quantile(v, [tail, 1 - tail]).tolist()) for metric, v in of_metric.items()}
        for name, of_metric in values.items()
    }


def balanced(counts: Counts) -> Counts:
    """The same counts with every class weighing alike: what is read of them are means over classes ("bas-conf").

    The counts must hold `image_hits`; their sum of weights stays the number of images.
    """
    kept = _require_images(counts, "A mean over classes")
    weights_1N = class_weights(kept.labels)[None]
    fields: dict[str, Any] = {field: _resampled_hits(weights_1N, kept, field, counts) for field in _FIELD_RANK}
    ranked: dict[str, Any] = {f"top{limit}": weights_1N @ (kept.ranks < limit) for limit in (1, 5)}
    return replace(counts, **fields, **ranked)


def class_weights(labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """A weight per image, so that each class weighs the same and the mean weight is 1, float64 [N]."""
    _, class_of, sizes = np.unique(labels_N, return_inverse=True, return_counts=True)
    weights_N: NDArray[np.float64] = len(labels_N) / (len(sizes) * sizes[class_of])
    return weights_N


def _require_images(counts: Counts, what: str) -> ImageHits:
    if counts.image_hits is None:
        raise UsageError(f"{what} needs the hits of single images: count with keep_images=True.")
    return counts.image_hits


_FIELD_RANK = {"hits": None, "top1_hits": 1, "top5_hits": 5}


def _rows(counts: Counts, ious: tuple[float, ...]) -> list[int]:
    return [counts.ious.index(iou) for iou in ious]


def _setting(counts: Counts, choice: Choice) -> int:
    if choice.readout not in counts.settings:
        raise unknown("readout setting", choice.readout, counts.settings)
    return counts.settings.index(choice.readout)


def _at(counts: Counts, choice: Choice, metric: str) -> NDArray[np.int64]:
    """Indices of the chosen thresholds in the grid of these counts."""
    return np.array([int(np.abs(counts.thresholds - t).argmin()) for t in choice.thresholds[metric]])


def _read(curves_CT: NDArray[np.float64], at_C: NDArray[np.int64]) -> float:
    return float(curves_CT[np.arange(len(at_C)), at_C].mean())


def _classification(counts: Counts) -> dict[str, NDArray[np.float64]]:
    return {"cls_top1": counts.top1 * 100.0 / counts.images, "cls_top5": counts.top5 * 100.0 / counts.images}


def _resample(num_images: int, samples: int, seed: int) -> NDArray[Any]:
    """How often each image is drawn in each of `samples` draws with replacement, uint16 [samples, images]."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(num_images, size=num_images) for _ in range(samples))
    return np.stack([np.bincount(d, minlength=num_images).astype(np.uint16) for d in drawn])


def _resampled_hits(
    weights_RN: NDArray[Any], kept: ImageHits, field: str, counts: Counts, chunk: int = 1024
) -> NDArray[np.float64]:
    """Hits with weighted images, float64 [R, I, T]; bits are unpacked `chunk` images at a time."""
    num_thresholds, limit = len(counts.thresholds), _FIELD_RANK[field]
    sums_RX = np.zeros((len(weights_RN), len(counts.ious) * num_thresholds))
    for start in range(0, len(kept.ranks), chunk):
        part = slice(start, start + chunk)
        hits_NIT = np.unpackbits(kept.bits[part], axis=-1, count=num_thresholds)
        if limit is not None:
            hits_NIT *= (kept.ranks[part] < limit)[:, None, None]
        sums_RX += weights_RN[:, part].astype(np.float64) @ hits_NIT.reshape(len(hits_NIT), -1).astype(np.float64)
    return sums_RX.reshape(len(weights_RN), len(counts.ious), num_thresholds)
