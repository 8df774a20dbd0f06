"""A trial's readout search as people look at it: the objective on validation over all settings and thresholds.

    surface.parquet   a row per setting and threshold: the objective, and where it is a mean over IoUs each of them
    surface.png       the same as a picture, with the point that validation chose and the one that a paper published

Made of what a trial has kept (a finished model's validation counts; those of its last rung if it was pruned), by the
driver: no data is opened, and nothing of this runs while a trial trains.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import search_spaces
from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.storage import Store
from wsol_pipeline.text import curve_metric, metric_name
from wsol_pipeline.training.build import fixed_setting
from wsol_pipeline.training.checkpoint import RUNG, read_sealed
from wsol_pipeline.training.config import TrainConfig
from wsol_pipeline.training.model import VAL_COUNTS

logger = logging.getLogger(__name__)

TABLE, PICTURE = "surface.parquet", "surface.png"
COLUMNS = 250  # thresholds of the picture
MOST_ROWS = 100_000  # of the table: settings beyond a hundred leave out every second threshold, and so on
MOST_NAMED = 20  # settings that the picture's axis names


def kept_counts(trial: Store) -> Counts | None:
    """Validation counts of all readout settings: the finished model's, else the last rung's.

    None if none were kept, or they are altered.
    """
    files = [name for name in trial.list() if name.endswith((f"/final/{VAL_COUNTS}", f"/{RUNG}/{VAL_COUNTS}"))]
    if not files:
        return None
    is_final, newest = max((name.endswith(f"/final/{VAL_COUNTS}"), name) for name in files)
    if not is_final:
        return Counts.from_dict(json.loads(trial.read(newest)))
    try:
        sealed = read_sealed(trial / newest.removesuffix(f"/{VAL_COUNTS}"), VAL_COUNTS)
    except DataError as error:
        logger.warning("no readout of a trial is shown: %s", error)
        return None
    return Counts.from_dict(json.loads(sealed[VAL_COUNTS]))


def published_reading(config: TrainConfig, preset: str | None) -> tuple[Any, float | None] | None:
    """(setting, threshold) by which a paper reads its row `preset`, if the row names one of them for this readout.

    The threshold is None where a paper takes the one that is best for what it evaluates on.
    """
    row = search_spaces.presets(config.method).get(preset or "")
    if row is None or row.readout["name"] != config.readout or not {"setting", "threshold"} & row.readout.keys():
        return None
    return row.readout.get("setting"), row.readout.get("threshold")


def published_choice(counts_val: Counts, objective: str, reading: tuple[Any, float | None]) -> Choice:
    """A paper's setting, at its threshold if it has one, else at those that are best on validation."""
    setting, threshold = reading
    at = counts_val.settings.index(fixed_setting(setting, counts_val.settings))
    choice = selection.choose_at(counts_val, at, objective)
    if threshold is None:
        return choice
    thresholds = {name: (threshold,) * len(values) for name, values in choice.thresholds.items()}
    fixed = dataclasses.replace(choice, thresholds=thresholds)
    return dataclasses.replace(fixed, value=selection.transferred(counts_val, fixed)[objective])


def write_surface(counts: Counts, config: TrainConfig, preset: str | None, folder: Path) -> dict[str, float]:
    """Write table and picture into `folder`; return what solving the readout was worth, the objective in percent:

    solved: at the setting and the thresholds that validation chose
    fixed_setting: at the setting that is scored each epoch, its thresholds solved
    published: at the paper's setting and threshold, where `preset` has them; without a threshold, at the best
    gain: solved less published, or less fixed_setting where nothing is published
    """
    choice = selection.choose(counts, config.objective)
    reading = published_reading(config, preset)
    published = published_choice(counts, config.objective, reading) if reading else None
    pq.write_table(surface_table(counts, config.objective), folder / TABLE, compression="zstd")
    _picture(counts, choice, published).savefig(folder / PICTURE, dpi=110)
    fixed = counts.settings.index(fixed_setting(config.fixed_setting, counts.settings))
    values = {"solved": choice.value}
    values["fixed_setting"] = float(selection.curves(counts, config.objective)[fixed].max(-1).mean())
    if published:
        values["published"] = selection.transferred(counts, published)[config.objective]
    return values | {"gain": choice.value - values.get("published", values["fixed_setting"])}


def surface_table(counts: Counts, objective: str) -> pa.Table:
    """A row per setting and threshold: the objective in percent, float32, all its IoUs at this one threshold."""
    metric = curve_metric(objective)
    curves_SCT = selection.curves(counts, metric).astype(np.float32)
    thresholds_T = selection.grid(counts, metric).astype(np.float32)
    step = -(-len(counts.settings) * len(thresholds_T) // MOST_ROWS)
    curves_SCT, thresholds_T = curves_SCT[..., ::step], thresholds_T[::step]
    num_settings, num_curves, num_thresholds = curves_SCT.shape
    columns: dict[str, Any] = {
        "setting": np.repeat([str(setting) for setting in counts.settings], num_thresholds),
        "threshold": np.tile(thresholds_T, num_settings),
        metric: curves_SCT.mean(1).ravel(),
    }
    if num_curves > 1:
        names = [f"iou{100 * iou:.0f}" for iou in selection.BOX_METRICS[metric][1]]
        columns |= {name: curves_SCT[:, c].ravel() for c, name in enumerate(names)}
    if all(isinstance(setting, int) for setting in counts.settings):
        columns["setting"] = np.repeat(np.array(counts.settings), num_thresholds)
    return pa.table(columns)


def _picture(counts: Counts, choice: Choice, published: Choice | None) -> Figure:
    metric = curve_metric(choice.metric)
    curves_SCT, grid_T = selection.curves(counts, metric), selection.grid(counts, metric)
    num_settings = len(counts.settings)
    height = 2.6 if num_settings == 1 else min(2.2 + 0.16 * min(num_settings, 2 * MOST_NAMED), 6.0)
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axis = figure.add_subplot()
    if num_settings == 1:
        _draw_curves(axis, curves_SCT[0], grid_T, metric)
    else:
        step = max(1, len(grid_T) // COLUMNS)
        values_ST = curves_SCT.mean(1)[:, ::step]
        extent = (float(grid_T[0]), float(grid_T[-1]), num_settings - 0.5, -0.5)
        image = axis.imshow(values_ST, aspect="auto", extent=extent, interpolation="nearest")
        figure.colorbar(image, ax=axis, pad=0.02, label=f"{metric_name(metric)}, val (%)")
        _name_settings(axis, counts.settings)
    _mark(axis, choice, "x", "tab:red", "chosen on validation", num_settings)
    if published:
        _mark(axis, published, "o", "tab:orange", "published", num_settings)
    several = " (of an IoU each)" if curves_SCT.shape[1] > 1 else ""
    axis.set_xlabel(f"threshold τ{several}" if num_settings == 1 else "threshold τ")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def _draw_curves(axis: Axes, curves_CT: NDArray[np.float64], grid_T: NDArray[np.float64], metric: str) -> None:
    ious = selection.BOX_METRICS[metric][1] if metric in selection.BOX_METRICS else ()
    for c, curve_T in enumerate(curves_CT):
        axis.plot(grid_T, curve_T, label=f"IoU {ious[c]}" if len(ious) > 1 else None)
    axis.set_ylabel(f"{metric_name(metric)}, val (%)")
    axis.grid(alpha=0.3)


def _mark(axis: Axes, choice: Choice, marker: str, colour: str, who: str, num_settings: int) -> None:
    """The thresholds of a choice, one per IoU: on its setting's line, or as vertical lines of a single setting."""
    thresholds = choice.thresholds[curve_metric(choice.metric)]
    told = ", ".join(f"{value:.3g}" for value in dict.fromkeys(thresholds))
    if num_settings == 1:
        for number, value in enumerate(dict.fromkeys(thresholds)):
            style = ":" if marker == "x" else "--"
            axis.axvline(value, color=colour, linestyle=style, label=None if number else f"{who}: τ = {told}")
        return
    setting = f"k = {choice.readout}" if isinstance(choice.readout, int) else choice.readout
    axis.plot(
        thresholds, [choice.setting] * len(thresholds), marker, color=colour, mfc="none", mew=2, markersize=8,
        linestyle="none", clip_on=False, label=f"{who}: {setting}, τ = {told}",
    )  # fmt: skip


def _name_settings(axis: Axes, settings: tuple[Any, ...]) -> None:
    every = -(-len(settings) // MOST_NAMED)
    axis.set_yticks(range(0, len(settings), every), [str(setting) for setting in settings[::every]])
    axis.set_ylabel("readout setting (k)" if all(isinstance(s, int) for s in settings) else "readout setting")
