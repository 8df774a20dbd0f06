"""Metrics and hyper-parameters by the names that papers print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def metric_name(metric: str) -> str:
    """A metric as papers print it."""
    known = {
        "max_box_acc_v2": "MaxBoxAccV2", "gt_known_loc": "GT-known Loc", "top1_loc": "Top-1 Loc",
        "top5_loc": "Top-5 Loc", "pxap": "PxAP", "piou": "pIoU", "peak_iou": "Peak IoU", "miou": "mIoU",
        "map_50": "mAP50", "corloc": "CorLoc", "corloc_v2": "CorLocV2", "cls_top1": "Top-1 Cls",
        "cls_top5": "Top-5 Cls", "mean_iou": "mean IoU",
        "top1_loc_30": "Top-1 Loc, IoU 0.30", "top1_loc_70": "Top-1 Loc, IoU 0.70", "top1_loc_mean": "Top-1 Loc, mean",
        "cls1_err": "Top-1 Cls error", "cls5_err": "Top-5 Cls error", "clsloc1_err": "Top-1 Loc error",
        "clsloc5_err": "Top-5 Loc error",
    }  # fmt: skip
    if metric.startswith("ois_"):
        return f"OIS {metric_name(metric.removeprefix('ois_'))}"
    return known.get(metric, metric.replace("max_box_acc_iou", "MaxBoxAcc, IoU 0.").replace("_", " "))


def parameter_name(name: str) -> str:
    """A hyper-parameter as papers print it: `lambda1` is λ1."""
    for word, letter in {"lambda": "λ", "alpha": "α", "beta": "β", "gamma": "γ"}.items():
        if name.rstrip("_0123456789") == word:
            return letter + name.removeprefix(word).rstrip("_")
    return name.rstrip("_").replace("_", " ")


def format_rate(rate: float) -> str:
    """Images a second, with two significant digits of what is slow: `0.93`, `2.4`, `1,210`."""
    return f"{rate:,.{0 if rate >= 10 else 1 if rate >= 1 else 2}f}"


def first_line(error: BaseException) -> str:
    """Of an error's words; its name if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def curve_metric(objective: str) -> str:
    """The metric whose curve over thresholds is shown: PxAP has none, pIoU is read from the same masks."""
    return "piou" if objective == "pxap" else objective


def format_parameters(parameters: Mapping[str, Any]) -> str:
    """`lambda 0.91, alpha 0.5`: floats with three significant digits."""
    return ", ".join(f"{name.rstrip('_')} {format_value(value)}" for name, value in parameters.items())


def format_value(value: Any) -> str:
    """A parameter's value: floats with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_threshold(threshold: float | str) -> str:
    """`0.240`, or the name of the rule that gives each map its own."""
    return threshold if isinstance(threshold, str) else f"{threshold:.3f}"


def format_bytes(size: float) -> str:
    """`0`, `14 kB`, `558 MB` or `1.2 GB`."""
    for unit in ("", " kB", " MB"):
        if round(size) < 1000:
            return f"{size:.0f}{unit}"
        size /= 1000
    return f"{size:.1f} GB"


def format_hours(hours: float) -> str:
    """`41 s`, `12.5 min` or `3.2 h`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h"
