"""Every choice an evaluation makes, as pure functions of counts.

A metric is the mean of one or more curves over a threshold: V2 has one per IoU, each read at its own τ; the rest have
one. `choose` picks on validation counts, `transferred` reads other counts at what was picked (the honest number),
`oracle` picks the thresholds again on the counts it reports (the field's habit: an upper bound).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.evaluation.counts import MEAN_IOU, SCORE_UNIT, Counts, ImageHits
from wsol_pipeline.evaluation.masks import NUM_LEVELS, iou_curve, pixel_average_precision
from wsol_pipeline.evaluation.otsu import Threshold
from wsol_pipeline.evaluation.protocols import Protocol, cuts
from wsol_pipeline.evaluation.segmentation import class_metrics

GT_KNOWN = 0.5  # the IoU of "GT-known" and of Top-1 and Top-5 localization

# name: (which hits, at which IoUs)
BOX_METRICS = {
    "max_box_acc_iou30": ("hits", (0.3,)),
    "max_box_acc_iou50": ("hits", (0.5,)),
    "max_box_acc_iou70": ("hits", (0.7,)),
    "max_box_acc_v2": ("hits", (0.3, 0.5, 0.7)),
    "gt_known_loc": ("hits", (GT_KNOWN,)),
    "top1_loc": ("top1_hits", (GT_KNOWN,)),
    "top5_loc": ("top5_hits", (GT_KNOWN,)),
    "top1_loc_30": ("top1_hits", (0.3,)),  # B-CAM's tables have these three too
    "top1_loc_70": ("top1_hits", (0.7,)),
    "top1_loc_mean": ("top1_hits", (0.3, 0.5, 0.7)),
}
# name: the same as a mean over classes, at the thresholds of the mean over images
CLASS_METRICS = {"corloc": "gt_known_loc", "corloc_v2": "max_box_acc_v2"}
MASK_METRICS = ("pxap", "piou", "peak_iou")
# of class masks; all are read at the background threshold that is best for the first
SEGMENTATION_METRICS = ("miou", "mean_recall", "mean_precision", "mean_specificity")
DETECTION = {"map_10": 0.1, "map_30": 0.3, "map_50": 0.5}  # mAP at the IoUs that mLDFR reports
METRICS = (*BOX_METRICS, MEAN_IOU, *MASK_METRICS, "miou")  # those that can be an objective
CLASSIFICATION = ("cls_top1", "cls_top5")
_THRESHOLD_OF = CLASS_METRICS | dict.fromkeys(SEGMENTATION_METRICS[1:], "miou")


@dataclass(frozen=True)
class Choice:
    """What validation decided: a readout setting, and a threshold per curve of every metric."""

    metric: str  # the objective
    value: float  # its value on the validation counts, percent
    setting: int  # index of the setting in those counts
    readout: Any  # the setting itself
    thresholds: Mapping[str, tuple[float, ...]]  # metric -> τ per curve; none for PxAP, 0..255 for Peak_IoU
    rule: str = ""  # `OTSU`: each map has its own threshold, of which `thresholds` have the median on validation
    selector: str = "boxes"  # by what trial, setting and thresholds were chosen: see `wsol_pipeline.selectors`
    reason: str = ""  # why the selector abstains, in words; the value then ranks nothing

    @property
    def threshold(self) -> Threshold:
        """At what one box or mask is read: the best τ for GT-known, or for the objects' pixels; or a rule's name."""
        names = ("gt_known_loc", "piou", "miou")
        return self.rule or next(self.thresholds[name][0] for name in names if name in self.thresholds)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Choice":
        thresholds = {name: tuple(values) for name, values in data["thresholds"].items()}
        readout = tuple(data["readout"]) if isinstance(data["readout"], list) else data["readout"]  # JSON has no tuples
        return Choice(**{**data, "readout": readout, "thresholds": thresholds})


def objectives(protocol: Protocol) -> tuple[str, ...]:
    """The metrics that a study can maximise under `protocol`; those of masks need a split that has masks."""
    masks = {"": (), "classes": ("miou",)}.get(protocol.masks, MASK_METRICS)
    return (*((*BOX_METRICS, MEAN_IOU) if protocol.ious else ()), *masks)


def default_objective(protocol: Protocol) -> str:
    """The metric that a study maximises under `protocol` unless it is told another."""
    return "max_box_acc_v2" if protocol.ious else objectives(protocol)[0]


def measured(protocol: Protocol, masks: bool) -> tuple[str, ...]:
    """The metrics that validation under `protocol` yields beside the objective, classification's included.

    `masks`: whether the split has any.
    """
    known = [name for name in objectives(protocol) if name in (*BOX_METRICS, MEAN_IOU) or masks]
    segmentation = SEGMENTATION_METRICS[1:] if "miou" in known else ()
    return (*known, *segmentation, *CLASSIFICATION)


def metrics_of(counts: Counts) -> tuple[str, ...]:
    """The metrics that these counts have a curve for."""
    boxes = tuple(BOX_METRICS) if counts.ious else ()
    boxes += () if counts.scores is None else (counts.score,)
    classes = tuple(CLASS_METRICS) if counts.ious and counts.image_hits else ()
    masks = () if counts.mask_pixels is None else MASK_METRICS
    return boxes + classes + masks + (() if counts.class_pixels is None else SEGMENTATION_METRICS)


def curves(counts: Counts, metric: str) -> NDArray[np.float64]:
    """The curves of a metric in percent, float64 [settings, curves, thresholds]; PxAP is a single point."""
    if metric not in metrics_of(counts):
        raise unknown("metric of these counts", metric, metrics_of(counts))
    if not counts.images.all():
        raise DataError(f"{metric} needs at least one image per setting but the counts hold {counts.images.tolist()}.")
    if metric in CLASS_METRICS:
        return curves(balanced(counts), CLASS_METRICS[metric])
    if metric == counts.score:
        return np.asarray(counts.scores)[:, None] * (100 * SCORE_UNIT) / counts.images[:, None, None]
    if metric in MASK_METRICS:
        return _mask_curves(counts, metric)
    if metric in SEGMENTATION_METRICS:
        return 100 * class_metrics(np.asarray(counts.class_pixels))[metric][:, None]
    field, ious = BOX_METRICS[metric]
    rows = [counts.ious.index(iou) for iou in ious]
    return getattr(counts, field)[:, rows] * 100.0 / counts.images[:, None, None]


def grid(counts: Counts, metric: str) -> NDArray[np.float64]:
    """The thresholds of a metric's curves."""
    if metric == "pxap":
        return np.empty(0)
    if metric == "piou":
        return cuts(_pixels(counts, metric).shape[-1] - 1)
    if metric == "peak_iou":
        return np.arange(NUM_LEVELS, dtype=np.float64)
    if metric in SEGMENTATION_METRICS:
        return cuts(np.asarray(counts.class_pixels).shape[-1] - 1)[:-1]
    return counts.thresholds


def best(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Every metric at its best thresholds on these very counts, per setting [S], percent.

    With two that nobody could choose beforehand: `ois_*`, the share of images that are hit at the best threshold of
    each single image, and `peak_t`, the level 0..255 of Peak_IoU.
    """
    found = {metric: _at_best(counts, metric) for metric in metrics_of(counts)}
    if counts.any_hits is not None:
        percent_SI = counts.any_hits * 100.0 / counts.images[:, None]
        found |= {f"ois_iou{100 * iou:.0f}": percent_SI[:, i] for i, iou in enumerate(counts.ious)}
    if counts.mask_levels is not None:
        found["peak_t"] = curves(counts, "peak_iou")[:, 0].argmax(-1).astype(float)
    return found | _classification(counts)


def choose(counts_val: Counts, objective: str = "max_box_acc_v2") -> Choice:
    """The setting with the best objective, and for it the best thresholds of every metric.

    Of equal settings the first is taken, of equal thresholds the lowest.
    """
    values_S = curves(counts_val, objective).max(-1).mean(-1)
    if np.isnan(values_S).all():
        raise UsageError(f"{objective} is not defined for binary maps; known: max_box_acc_v2, piou, peak_iou.")
    return choose_at(counts_val, int(np.nanargmax(values_S)), objective)


def choose_at(counts_val: Counts, setting: int, objective: str = "max_box_acc_v2") -> Choice:
    """The best thresholds of every metric for a setting (its index) that somebody else chose."""
    value = float(curves(counts_val, objective)[setting].max(-1).mean())
    metrics = [metric for metric in metrics_of(counts_val) if metric not in _THRESHOLD_OF]
    thresholds: Mapping[str, tuple[float, ...]]
    if objective == counts_val.score:
        thresholds = everywhere(_best_thresholds(counts_val, objective, setting)[0], objective)
    else:
        thresholds = {metric: _best_thresholds(counts_val, metric, setting) for metric in metrics}
    return Choice(objective, value, setting, counts_val.settings[setting], thresholds)


def everywhere(threshold: float, score: str = MEAN_IOU) -> dict[str, tuple[float, ...]]:
    """One threshold for every metric that has one, `score` included: what was chosen once for all."""
    boxes = {name: (threshold,) * len(ious) for name, (_, ious) in BOX_METRICS.items()}
    levels = float(np.floor(threshold * (NUM_LEVELS - 1)))
    return boxes | {MEAN_IOU: (threshold,), score: (threshold,), "piou": (threshold,), "peak_iou": (levels,)}


def transferred(counts_test: Counts, choice: Choice) -> dict[str, float]:
    """Every metric, percent, at the setting and the thresholds that validation chose.

    A metric that validation had no truth to choose a threshold on is left out: it has an oracle alone.
    """
    s = _setting(counts_test, choice)
    values = {
        metric: float(_read(curves(counts_test, metric)[s : s + 1], _at(counts_test, choice, metric))[0])
        for metric in _readable(counts_test, choice)
    }
    if "peak_iou" in choice.thresholds and "peak_iou" in values:
        values["peak_t"] = choice.thresholds["peak_iou"][0]
    return values | {name: float(values_S[s]) for name, values_S in _classification(counts_test).items()}


def oracle(counts_test: Counts, choice: Choice) -> dict[str, float]:
    """Every metric, percent, at the setting that validation chose and the thresholds that flatter these counts most.

    An upper bound: nobody knows these thresholds without the true boxes.
    """
    s = _setting(counts_test, choice)
    return {name: float(values_S[s]) for name, values_S in best(counts_test).items()}


def at_threshold(counts: Counts, metric: str, threshold: float) -> NDArray[np.float64]:
    """A metric, percent, with all its curves read at one fixed threshold, the grid's nearest, per setting [S].

    PxAP is over all thresholds and knows none.
    """
    return _read(curves(counts, metric), [_nearest(counts, metric, threshold)])


def errors(metrics: Mapping[str, float]) -> dict[str, float]:
    """Accuracies of `transferred` or `oracle` as the errors that mLDFR and ILSVRC's challenge report, percent."""
    names = {"cls1_err": "cls_top1", "cls5_err": "cls_top5", "clsloc1_err": "top1_loc", "clsloc5_err": "top5_loc"}
    return {error: 100 - metrics[name] for error, name in names.items() if name in metrics}


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
    `weights_N` of the images, of mean 1: those of `class_weights` for means over classes. Metrics of class masks have
    no interval: their counts are kept for the whole split alone.
    """
    kept = require_images(counts_test, "A bootstrap")
    weights_RN = resample(kept, samples, seed)
    over_images = weighted(counts_test, weights_RN if weights_N is None else weights_RN * weights_N)
    over_classes = weighted(counts_test, weights_RN * class_weights(kept.labels))
    values: dict[str, dict[str, NDArray[np.float64]]] = {"transferred": {}, "oracle": {}}
    readable = _readable(counts_test, choice)
    for metric in (*metrics_of(over_images), *(CLASS_METRICS if counts_test.ious else ())):
        sampled = over_classes if metric in CLASS_METRICS else over_images
        curves_RCT = curves(sampled, CLASS_METRICS.get(metric, metric))
        if metric in readable:
            values["transferred"][metric] = _read(curves_RCT, _at(counts_test, choice, metric))
        values["oracle"][metric] = curves_RCT.max(-1).mean(-1)
    tail = (1 - confidence) / 2
    return {
        name: {metric: tuple(np.quantile(v, [tail, 1 - tail]).tolist()) for metric, v in of_metric.items()}
        for name, of_metric in values.items()
    }


def resampled(counts: Counts, metrics: Sequence[str], samples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Metrics at their best thresholds in each of `samples` redraws of the images, percent, float64 [metrics, samples].

    The counts must hold `image_hits`. Equal images and seeds give equal redraws, so models can be compared in each.
    """
    redrawn = weighted(counts, resample(require_images(counts, "A redraw of images"), samples, seed))
    known = _classification(redrawn)
    return np.stack([known[m] if m in known else curves(redrawn, m).max(-1).mean(-1) for m in metrics])


def redrawn(counts: Counts, choice: Choice, metric: str, samples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """A metric at what `choice` says in each of `samples` redraws of the images, percent, float64 [samples].

    The counts must hold `image_hits`. Equal images and seeds give equal redraws, so choices can be compared in each.
    """
    drawn = weighted(counts, resample(require_images(counts, "A redraw of images"), samples, seed))
    return _read(curves(drawn, metric), _at(counts, choice, metric))


def of_images(counts_test: Counts, choice: Choice, metrics: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """What each image adds to metrics of boxes in `transferred`: the share of its IoUs that are reached, float64 [n].

    A hundred times their mean over images is the metric. The counts must hold `image_hits` of one setting; metrics that
    validation chose no thresholds of are left out.
    """
    kept, found = require_images(counts_test, "A score for each image"), {}
    for metric in (name for name in metrics if name in BOX_METRICS and name in _readable(counts_test, choice)):
        field, ious = BOX_METRICS[metric]
        at = zip(map(counts_test.ious.index, ious), _at(counts_test, choice, metric), strict=True)
        hits_CN = np.stack([kept.bits[:, i, t // 8] >> (7 - t % 8) & 1 for i, t in at])
        ranked_N = kept.ranks < {"hits": np.inf, "top1_hits": 1, "top5_hits": 5}[field]
        found[metric] = hits_CN.mean(0) * ranked_N
    return found


def balanced(counts: Counts) -> Counts:
    """The same counts with every class weighing alike: what is read of them are means over classes ("bas-conf").

    The counts must hold `image_hits`; their sum of weights stays the number of images.
    """
    kept = require_images(counts, "A mean over classes")
    return replace(weighted(counts, class_weights(kept.labels)[None]), settings=counts.settings, image_hits=kept)


def class_weights(labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """A weight per image, so that each class weighs the same and the mean weight is 1, float64 [N]."""
    _, class_of, sizes = np.unique(labels_N, return_inverse=True, return_counts=True)
    weights_N: NDArray[np.float64] = len(labels_N) / (len(sizes) * sizes[class_of])
    return weights_N


def _pixels(counts: Counts, metric: str) -> Any:
    """The histograms that a mask metric is read from, [S, 2, bins]."""
    return counts.mask_levels if metric == "peak_iou" else counts.mask_pixels


def _mask_curves(counts: Counts, metric: str) -> NDArray[np.float64]:
    pixels_S2T = _pixels(counts, metric)
    if metric == "pxap":
        return 100 * pixel_average_precision(pixels_S2T)[:, None, None]
    return 100 * iou_curve(pixels_S2T)[:, None]


def require_images(counts: Counts, what: str) -> ImageHits:
    """What single images showed. Raises `UsageError` where that was not kept."""
    if counts.image_hits is None:
        raise UsageError(f"{what} needs the hits of single images: count with keep_images=True.")
    return counts.image_hits


def _setting(counts: Counts, choice: Choice) -> int:
    if choice.readout not in counts.settings:
        raise unknown("readout setting", choice.readout, counts.settings)
    return counts.settings.index(choice.readout)


def _at_best(counts: Counts, metric: str) -> NDArray[np.float64]:
    """A metric at the thresholds that are best for it, or for the metric whose thresholds it takes, [S]."""
    curves_SCT = curves(counts, metric)
    if metric in SEGMENTATION_METRICS:
        return curves_SCT[np.arange(len(curves_SCT)), 0, curves(counts, "miou")[:, 0].argmax(-1)]
    return curves_SCT.max(-1).mean(-1)


def _best_thresholds(counts: Counts, metric: str, setting: int) -> tuple[float, ...]:
    values_T = grid(counts, metric)
    return tuple(values_T[curves(counts, metric)[setting].argmax(-1)].tolist()) if len(values_T) else ()


def _readable(counts: Counts, choice: Choice) -> list[str]:
    """The metrics of these counts that validation chose thresholds of, or that have none: PxAP, and those of masks
    that were cut already, which have no PxAP."""
    metrics = metrics_of(counts)
    is_cut = "pxap" in metrics and np.isnan(curves(counts, "pxap")[_setting(counts, choice)]).all()
    free = MASK_METRICS if is_cut else ("pxap",)
    return [name for name in metrics if name in free or _THRESHOLD_OF.get(name, name) in choice.thresholds]


def _at(counts: Counts, choice: Choice, metric: str) -> list[int]:
    """Indices of the chosen thresholds in the grid of these counts; its middle for a metric that has none."""
    thresholds = choice.thresholds.get(_THRESHOLD_OF.get(metric, metric), ())
    return [_nearest(counts, metric, threshold) for threshold in thresholds] or [len(grid(counts, metric)) // 2]


def _nearest(counts: Counts, metric: str, threshold: float) -> int:
    values_T = grid(counts, metric)
    return int(np.abs(values_T - threshold).argmin()) if len(values_T) else 0


def _read(curves_SCT: NDArray[np.float64], at_C: list[int]) -> NDArray[np.float64]:
    """The mean over curves, each at its own threshold or all at the same, [S]."""
    values_S: NDArray[np.float64] = curves_SCT[:, np.arange(curves_SCT.shape[1]), at_C].mean(-1)
    return values_S


def _classification(counts: Counts) -> dict[str, NDArray[np.float64]]:
    return {n: v * 100.0 / counts.images for n, v in zip(CLASSIFICATION, (counts.top1, counts.top5), strict=True)}


def resample(kept: ImageHits, samples: int, seed: int) -> NDArray[Any]:
    """How often each image is drawn in each of `samples` draws with replacement, uint16 [samples, n].

    The pairs of one image and its classes are drawn together.
    """
    numbers: dict[str, int] = {}
    image_of = [numbers.setdefault(id, len(numbers)) for id in kept.ids]
    rng, num_images = np.random.default_rng(seed), len(numbers)
    drawn = (rng.integers(num_images, size=num_images) for _ in range(samples))
    return np.stack([np.bincount(d, minlength=num_images).astype(np.uint16)[image_of] for d in drawn])


def weighted(counts: Counts, weights_RN: NDArray[Any]) -> Counts:
    """Counts with each image weighed; R rows of weights stand in the place of settings. Without `image_hits`."""
    kept = require_images(counts, "Weighing images")
    arrays: dict[str, Any] = dict.fromkeys(("any_hits", "mask_pixels", "mask_levels", "class_pixels", "scores"))
    if kept.scores is not None:
        arrays["scores"] = _weighted_sum(weights_RN, kept.scores) / SCORE_UNIT
    for name, limit in (("hits", None), ("top1_hits", 1), ("top5_hits", 5)):
        arrays[name] = _weighted_hits(weights_RN, kept, limit, counts)
    arrays |= {f"top{limit}": weights_RN @ (kept.ranks < limit) for limit in (1, 5)}
    if kept.mask_pixels is not None and kept.mask_levels is not None:
        arrays |= {n: _weighted_sum(weights_RN, getattr(kept, n)) for n in ("mask_pixels", "mask_levels")}
    if counts.any_hits is not None:
        arrays["any_hits"] = _weighted_sum(weights_RN, np.asarray(kept.bits.any(-1)))
    images_R = weights_RN.sum(1, dtype=np.float64)
    return replace(counts, settings=tuple(range(len(weights_RN))), images=images_R, image_hits=None, **arrays)


def _weighted_hits(
    weights_RN: NDArray[Any], kept: ImageHits, limit: int | None, counts: Counts, chunk: int = 1024
) -> NDArray[np.float64]:
    """Weighted hits of images whose class rank is below `limit`, float64 [R, I, T]; bits are unpacked by `chunk`."""
    sums_RIT = np.zeros((len(weights_RN), len(counts.ious), len(counts.thresholds)))
    for start in range(0, len(kept.ranks), chunk):
        part = slice(start, start + chunk)
        hits_NIT = np.unpackbits(kept.bits[part], axis=-1, count=len(counts.thresholds))
        if limit is not None:
            hits_NIT *= (kept.ranks[part] < limit)[:, None, None]
        sums_RIT += _weighted_sum(weights_RN[:, part], hits_NIT)
    return sums_RIT


def _weighted_sum(weights_RN: NDArray[Any], values_NX: NDArray[Any]) -> NDArray[np.float64]:
    """The sum over images, float64 [R, ...]."""
    sums: NDArray[np.float64] = weights_RN.astype(np.float64) @ values_NX.reshape(len(values_NX), -1).astype(np.float64)
    return sums.reshape(len(weights_RN), *values_NX.shape[1:])
