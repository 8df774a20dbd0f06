"""What a study will measure: known from its protocol and from what its splits come with, before anything starts.

Validation chooses and test is judged, and the two need not come with the same truth: CUB has masks on test alone. Where
masks are scored that validation lacks, its boxes choose: PxAP needs no threshold, pIoU then has an upper bound alone.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from wsol_pipeline.errors import UsageError, unknown
from wsol_pipeline.evaluation.counts import MEAN_IOU
from wsol_pipeline.evaluation.protocols import PROTOCOLS, Protocol
from wsol_pipeline.evaluation.selection import (
    BOX_METRICS,
    CLASS_METRICS,
    CLASSIFICATION,
    DETECTION,
    MASK_METRICS,
    METRICS,
    default_objective,
    measured,
    objectives,
)
from wsol_pipeline.selectors import ADVICE, Selector, said

MANY_BOXES = 30  # drawn by hand, from which on the protocol's own hits choose better than the mean IoU
TRUE_BOXES = Selector("boxes")
# metrics that sentences name; the others are these at further IoUs or ranks
TOLD = ("max_box_acc_v2", "gt_known_loc", "top1_loc", "map_50", "pxap", "piou", "miou", "cls_top1")


@dataclass(frozen=True)
class Truth:
    """What the images of a split can be scored against: how many there are, and how many have boxes or masks.

    Masks are class masks if images are of several classes; boxes then count if each of these has one.
    """

    images: int
    boxes: int
    masks: int
    multilabel: bool

    @property
    def has_boxes(self) -> bool:
        return self.boxes == self.images

    @property
    def has_masks(self) -> bool:
        return self.masks > 0

    @property
    def kinds(self) -> str:
        """In words: "boxes and masks", "labels alone"."""
        masks = "class masks" if self.multilabel else "masks"
        found = [name for name, there in (("boxes", self.boxes), (masks, self.masks)) if there]
        return " and ".join(found) if len(found) > 1 else f"{found[0] if found else 'labels'} alone"


@dataclass(frozen=True)
class Promise:
    """What a study will measure, by names of metrics.

    val: what validation yields, the objective among them. transferred: on test, at what validation chose. oracle: on
    test, at the thresholds that are best there. Maps that are cut already (B-CAM's masks) have no threshold: pIoU is
    transferred then, and PxAP not defined. sentences: the same as users are told it, one of each split.
    """

    objective: str
    val: tuple[str, ...]
    transferred: tuple[str, ...]
    oracle: tuple[str, ...]
    sentences: tuple[str, str]


def choosing(rules: Protocol, val: Any) -> Protocol:
    """The evaluation that validation chooses by: `rules`, with boxes where they score masks that `val` has none of.

    `val` is a split or its `Truth`. Class masks have no substitute.
    """
    by_boxes = not rules.ious and rules.masks != "classes" and val.has_boxes and not val.has_masks
    return replace(rules, ious=Protocol.ious) if by_boxes else rules


def promise(
    rules: Protocol, val: Truth, test: Truth, objective: str | None = None, by: Selector = TRUE_BOXES
) -> Promise:
    """What will be measured; without `objective` validation maximises the protocol's own, or what the selector `by`
    scores. `val` is what that compares with: see `study.choosers`.

    Raises `UsageError` if nothing could be chosen on `val` or judged on `test`, with what is possible instead. Without
    true boxes on validation test may have none either: then classes alone are judged there.
    """
    if by != TRUE_BOXES:
        return _otherwise(rules, val, test, objective, by)
    if reason := fault(rules, val, test):
        raise UsageError(f"{rules.name} {reason}. {_instead(val, test)}")
    chosen_by = choosing(rules, val)
    objective = objective or default_objective(chosen_by)
    _check_objective(objective, rules, val, test)
    on_test = _on_test(rules, test)
    unread = () if val.has_masks else ("piou", "peak_iou")
    transferred = tuple(name for name in on_test if name not in unread)
    oracle = tuple(name for name in on_test if name not in DETECTION)
    told = _sentences(rules, val, test, objective, transferred, oracle)
    return Promise(objective, measured(chosen_by, val.has_masks), transferred, oracle, told)


def _otherwise(rules: Protocol, val: Truth, test: Truth, objective: str | None, by: Selector) -> Promise:
    """What a run measures that is not chosen by the boxes of validation."""
    if rules.masks == "classes":
        raise UsageError(
            f"{rules.name} scores the class masks of an image together, which {by} does not: choose by boxes."
        )
    known = (by.kind.score,) if by.kind.score else (MEAN_IOU, *BOX_METRICS)
    objective = objective or known[0]
    if objective not in known:
        raise unknown(f"objective of --select-by {by.name}", objective, known)
    is_judged = not _lack(rules, "test", test)
    on_test = _on_test(rules, test) if is_judged else CLASSIFICATION
    oracle = tuple(name for name in on_test if name not in DETECTION)
    boxes = (*BOX_METRICS, MEAN_IOU) if not by.kind.score else known
    honest = ", ".join(name for name in TOLD if name in on_test)
    what = "trial, readout and thresholds" if by.ranks else "thresholds alone"
    unseen = "" if is_judged else f"; localization is not measured, for {rules.name} {_lack(rules, 'test', test)}"
    told = (
        f"validation: {val.images:,} images by {said(by.recorded)}; chooses {what} by {objective}",
        f"test: {test.images:,} images, {test.kinds}; measures {honest}{unseen}",
    )
    return Promise(objective, (*boxes, *CLASSIFICATION), on_test, oracle, told)


def _check_objective(objective: str, rules: Protocol, val: Truth, test: Truth) -> None:
    """Raise `UsageError` for what validation does not yield, or what could not be judged."""
    chosen_by = choosing(rules, val)
    known = [name for name in objectives(chosen_by) if name in (*BOX_METRICS, MEAN_IOU) or val.has_masks]
    if objective in objectives(rules) and objective not in known:
        raise UsageError(
            f"{objective} under {rules.name} needs masks but the 'val' split has {val.kinds}; --objective "
            f"{default_objective(chosen_by)} can choose there."
        )
    if objective not in known:
        raise unknown(f"objective under {rules.name}", objective, known)
    if objective in MASK_METRICS and not test.has_masks:
        raise UsageError(
            f"{objective} needs masks but the 'test' split has {test.kinds}: what validation maximised could not be "
            f"judged; --objective {default_objective(rules)} can."
        )


def fault(rules: Protocol, val: Truth, test: Truth) -> str:
    """Why a protocol cannot choose on `val` or judge `test`, in words; nothing if it can."""
    if rules.masks == "classes" and not val.multilabel:
        return "scores class masks, which only multi-label data has"
    return _lack(choosing(rules, val), "val", val) or _lack(rules, "test", test)


def judged_by(objective: str, figures: Mapping[str, float]) -> str:
    """The metric that models are compared by: the objective; PxAP where boxes chose for masks, pIoU of cut ones; where
    no boxes chose, what they would have; and Top-1 where there are none to judge by."""
    names = (
        (objective, *MASK_METRICS) if objective in METRICS else (default_objective(PROTOCOLS["wsol-v1"]), *MASK_METRICS)
    )
    there = (name for name in (*names, CLASSIFICATION[0]) if not math.isnan(figures.get(name, math.nan)))
    return next(there, objective)


def is_judged(rules: Protocol, test: Any) -> bool:
    """Whether `test`, a split or its `Truth`, has what `rules` score."""
    return bool(test.has_boxes if rules.ious else test.has_masks)


def _lack(rules: Protocol, split: str, truth: Truth) -> str:
    what = "boxes" if rules.ious else "class masks" if rules.masks == "classes" else "masks"
    if truth.has_boxes if rules.ious else truth.has_masks:
        return ""
    if rules.ious and truth.boxes:
        return f"scores boxes but {truth.images - truth.boxes:,} of {truth.images:,} images of {split!r} lack one"
    return f"scores {what} but the {split!r} split has {truth.kinds}"


def _instead(val: Truth, test: Truth) -> str:
    possible = [name for name, rules in PROTOCOLS.items() if not fault(rules, val, test)]
    if possible:
        return f"What these data allow: --protocol {', '.join(possible)}."
    if not (val.boxes or val.masks):
        return ADVICE
    return (
        f"No protocol can: 'val' has {val.kinds}, 'test' {test.kinds}. Both need boxes, or test masks and val either; "
        "30 to 50 images of val with boxes drawn by hand are enough to choose by. Import again with them."
    )


def _on_test(rules: Protocol, test: Truth) -> tuple[str, ...]:
    """All metrics of a final evaluation."""
    boxes = (*BOX_METRICS, *CLASS_METRICS, MEAN_IOU) if rules.ious else ()
    found = tuple(name for name in measured(rules, test.has_masks) if name not in boxes)
    return (*boxes, *(DETECTION if test.multilabel and rules.box_rule == "components" else ()), *found)


def _sentences(
    rules: Protocol, val: Truth, test: Truth, objective: str, transferred: Collection[str], oracle: Collection[str]
) -> tuple[str, str]:
    chosen = "trial and readout" if objective not in transferred else "trial, readout and thresholds"
    why = "" if objective in transferred else f", for {rules.name} scores masks and there are none"
    honest = ", ".join(name for name in TOLD if name in transferred)
    bounds = ", ".join(name for name in TOLD if name in oracle and name not in transferred)
    only = f"; {bounds} as an upper bound alone: validation has no masks to choose its threshold on" if bounds else ""
    return (
        f"validation: {val.images:,} images, {val.kinds}; chooses {chosen} by {objective}{why}",
        f"test: {test.images:,} images, {test.kinds}; measures {honest} at what validation chose{only}",
    )
