"""Exact evaluation of 1000 thresholds against the field's loop over them, on the same maps.

    python benchmarks/evaluation.py [--maps N] [--loops N]

Both turn raw 28x28 maps into hits at three IoUs; counts must be equal. The loop is wsolevaluation's: resize, then per
threshold a mask, a contour search, boxes and IoUs. For masks it is its two histograms of float64 values, against ours
in one pass, which gives the levels of Peak_IoU too. Maps are taken in turn by all, in one thread.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.masks import count_pixels
from wsol_pipeline.evaluation.metrics import found, ious_per_threshold
from wsol_pipeline.evaluation.protocols import Protocol, protocol

TRUTH_N4 = np.array([[52.0, 40.0, 171.0, 180.0]])
MASK_HW = np.zeros((224, 224), np.uint8)
MASK_HW[40:181, 52:172] = 1
MASK_HW[:, :20] = 255


@dataclass(frozen=True)
class Options:
    """What is measured."""

    maps: int = 100
    """maps that the exact evaluation takes"""
    loops: int = 20
    """of those, the ones that the loop takes too"""


def make_maps(count: int) -> list[np.ndarray]:
    """Smooth maps such as networks give: one or two broad peaks over low ripples, 28x28."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28]
    maps = []
    for _ in range(count):
        raw = 0.25 * cv2.GaussianBlur(rng.normal(size=(28, 28)), (0, 0), 1.5)
        for _ in range(rng.integers(1, 3)):
            centre, width = rng.uniform(8, 20, 2), rng.uniform(3, 7, 2)
            raw += rng.uniform(0.4, 1) * np.exp(
                -(((x - centre[0]) / width[0]) ** 2 + ((y - centre[1]) / width[1]) ** 2)
            )
        maps.append(raw.astype(np.float32))
    return maps


def loop_over_thresholds(raw_HW: np.ndarray, rule: Protocol) -> np.ndarray:
    """Hits [IoUs, thresholds] as wsolevaluation counts them."""
    map_HW = cv2.resize(raw_HW.astype(float), (224, 224), interpolation=cv2.INTER_CUBIC)
    map_HW -= map_HW.min()
    map_HW /= map_HW.max()
    grey_HW = (map_HW * 255).astype(np.uint8)
    ious = []
    for threshold in rule.thresholds:
        mask_HW = cv2.threshold(grey_HW, int(threshold * np.max(grey_HW)), 255, cv2.THRESH_BINARY)[1]
        contours = cv2.findContours(mask_HW, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        if rule.box_rule == "largest_contour":
            contours = [max(contours, key=cv2.contourArea)]
        x, y, w, h = np.array([cv2.boundingRect(c) for c in contours]).T
        boxes_N4 = np.stack([x, y, np.minimum(x + w, 223), np.minimum(y + h, 223)], axis=1)
        ious.append(iou(boxes_N4, TRUTH_N4[0]).max())
    return np.array(ious) >= np.array(rule.ious)[:, None]


def histograms(raw_HW: np.ndarray, rule: Protocol) -> np.ndarray:
    """Pixels outside and inside of the object per bin, as wsolevaluation counts them."""
    map_HW = cv2.resize(raw_HW.astype(float), (224, 224), interpolation=cv2.INTER_CUBIC)
    map_HW -= map_HW.min()
    map_HW /= map_HW.max()
    edges = np.append(rule.thresholds, [1.0, 2.0, 3.0])
    return np.stack([np.histogram(map_HW[inside == MASK_HW], bins=edges)[0][:-1] for inside in (0, 1)])


def exact_pixels(raw_HW: np.ndarray, rule: Protocol) -> np.ndarray:
    return count_pixels(normalised_map(raw_HW, rule), MASK_HW, rule.mask_cuts)[0]


def iou(boxes_N4: np.ndarray, truth_4: np.ndarray) -> np.ndarray:
    low, high = np.maximum(boxes_N4[:, :2], truth_4[:2]), np.minimum(boxes_N4[:, 2:], truth_4[2:])
    common = np.prod(np.maximum(high - low + 1, 0), axis=1)
    areas = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2] + 1, axis=1) + np.prod(truth_4[2:] - truth_4[:2] + 1)
    return common / (areas - common)


def exact(raw_HW: np.ndarray, rule: Protocol) -> np.ndarray:
    return found(ious_per_threshold(raw_HW, TRUTH_N4, rule), rule)


def timed(function: Callable[[np.ndarray, Protocol], np.ndarray], raw_HW: np.ndarray, rule: Protocol) -> tuple:
    start = time.perf_counter()
    hits = function(raw_HW, rule)
    return (time.perf_counter() - start) * 1e3, hits


def first_call(rule: Protocol, raw_HW: np.ndarray) -> float:
    """Seconds of the first evaluation in a process: compilation, or reading it from numba's cache."""
    return timed(exact if rule.ious else exact_pixels, raw_HW, rule)[0] / 1e3


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    cv2.setNumThreads(1)
    rules = {name: protocol(name) for name in ("wsol-v1", "wsol-v2", "bas-ext", "wsol-mask")}
    maps = make_maps(options.maps)
    compiled = {name: first_call(rule, maps[0]) for name, rule in rules.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for index, raw_HW in enumerate(maps):
        for name, rule in rules.items():
            milliseconds, hits = timed(exact if rule.ious else exact_pixels, raw_HW, rule)
            times.setdefault((name, "exact"), []).append(milliseconds)
            if index < options.loops and name != "bas-ext":
                milliseconds, expected = timed(loop_over_thresholds if rule.ious else histograms, raw_HW, rule)
                times.setdefault((name, "loop"), []).append(milliseconds)
                np.testing.assert_array_equal(hits, expected)
    report(times, compiled)


def report(times: dict[tuple[str, str], list[float]], compiled: dict[str, float]) -> None:
    table = Table("protocol", "way", "ms a map (median)", "10 % .. 90 %", "times the loop", "first call s")
    medians = {key: statistics.median(values) for key, values in times.items()}
    speedups = {}
    for (name, way), values in times.items():
        low, high = np.percentile(values, [10, 90])
        ratio = ""
        if way == "exact" and (name, "loop") in medians:
            speedups[name] = medians[name, "loop"] / medians[name, way]
            ratio = f"{speedups[name]:.1f}"
        first = f"{compiled[name]:.2f}" if way == "exact" else ""
        table.add_row(name, way, f"{medians[name, way]:.3f}", f"{low:.3f} .. {high:.3f}", ratio, first)
    Console().print(table)
    print(
        json.dumps(
            {
                "benchmark": "evaluation",
                "median_ms": {f"{name}/{way}": round(value, 3) for (name, way), value in medians.items()},
                "speedup": {name: round(value, 1) for name, value in speedups.items()},
                "first_call_s": {name: round(value, 2) for name, value in compiled.items()},
                "maps": len(times["wsol-v1", "exact"]),
                "counts_equal": True,
            }
        )
    )


if __name__ == "__main__":
    main()
