"""Charts of a report as SVG that takes the page's colours: ink, lines and series follow its light or dark theme."""

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import matplotlib
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgba, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.cases import HIT
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.report.facts import Line, Search, Several, Subject
from wsol_pipeline.report.summary import Share, best_of_settings, training_points
from wsol_pipeline.study.charts import log_axis
from wsol_pipeline.study.pareto import COST
from wsol_pipeline.study.standings import Standing, study_of
from wsol_pipeline.study.standings import front as pareto_front
from wsol_pipeline.text import curve_metric, metric_name, parameter_name

# Stand for colours of the page, which replace them in the finished SVG.
INK, FAINT, PAPER = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0404{number:02x}" for number in range(1, 6))
PAGE_COLOURS = {INK: "currentColor", FAINT: "var(--line)", PAPER: "var(--paper)"} | {
    shade: f"var(--c{number})" for number, shade in enumerate(SERIES, start=1)
}
# Of a chart that is a file: those of the page on white.
PRINTED = dict(zip((INK, FAINT, PAPER, *SERIES), ("#1d2024", "#dfe2e7", "#ffffff", "#0a66c2", "#d06a0c", "#1f8a55",
                                                  "#8d4bb0", "#c02f4b"), strict=True))  # fmt: skip
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8,
    "xtick.major.size": 0, "ytick.major.size": 0, "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a dollar in a name is a dollar
}  # fmt: skip
MAP = "viridis"
MOST_NAMED = 20  # settings that an axis names one by one
SURFACE_COLUMNS = 250  # thresholds of a surface's picture


class Chart:
    """One chart: `figure` and `axis` to draw on inside `with chart(...)`; `svg` for the page and `file` afterwards."""

    def __init__(self, figure: Figure) -> None:
        self.figure, self.axis, self.svg, self._salt = figure, figure.add_subplot(), "", ""

    def __html__(self) -> str:
        """As Jinja and Markup take it: part of a page."""
        return self.svg

    def file(self, kind: str) -> bytes:
        """It as a file by itself, "svg" or "pdf", in the colours of paper; the page's are gone from it then."""
        ticks = [tick for axes in self.figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.majorTicks]
        for artist in (self.figure, *ticks):  # a figure finds those ticks alone that it would show as it is now
            for part in artist.findobj():
                _recolour(part)
        file = io.BytesIO()
        with matplotlib.rc_context(cast(Any, STYLE | {"svg.hashsalt": self._salt})):
            made_at = {"Date": None} if kind == "svg" else {"CreationDate": None}
            self.figure.savefig(file, format=kind, metadata={"Creator": None, **made_at})
        return file.getvalue()


def _recolour(artist: Any) -> None:
    """Give what stands for a colour of the page that of paper."""
    for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
        if hasattr(artist, f"get_{part}") and hasattr(artist, f"set_{part}"):
            colours = to_rgba_array(getattr(artist, f"get_{part}")())
            changed = [PRINTED.get(to_hex(colour), tuple(colour)) for colour in colours]
            if any(isinstance(colour, str) for colour in changed):
                with_alpha = [to_rgba(new, old[3]) for new, old in zip(changed, colours, strict=True)]
                getattr(artist, f"set_{part}")(with_alpha if isinstance(artist, Collection) else with_alpha[0])


@contextmanager
def chart(width: float = 4.2, height: float = 2.7, salt: str = "") -> Iterator[Chart]:
    """A chart of so many inches; `salt` tells the ids of two charts of a page apart."""
    with matplotlib.rc_context(cast(Any, STYLE | {"svg.hashsalt": salt})):
        made = Chart(Figure(figsize=(width, height), dpi=72))  # as files are written: others would have other ticks
        yield made
        file = io.StringIO()
        made.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    made.svg, made._salt = themed(file.getvalue()), salt


def themed(svg: str) -> str:
    """A matplotlib SVG as part of a page: in its colours, without prologue, size and numbered ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    for shade, colour in PAGE_COLOURS.items():
        svg = svg.replace(shade, colour)
    return svg


def comparison(lines: Sequence[Line], metric: str) -> Chart:
    """A row per model: the transferred figure with its interval, the oracle as a ring, validation as a tick."""
    lines = [line for line in lines if metric in line.row.val or metric in line.row.transferred]
    with chart(4.8, 0.9 + 0.42 * len(lines), "comparison") as made:
        for y, row in enumerate(line.row for line in reversed(lines)):
            colour = INK if y else SERIES[0]
            if metric in row.val:
                made.axis.plot(row.val[metric], y, "|", color=colour, markersize=9)
            if metric in row.transferred:
                low, high = row.intervals.get("transferred", {}).get(metric, (row.transferred[metric],) * 2)
                made.axis.plot((low, high), (y, y), color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
                made.axis.plot(row.transferred[metric], y, "o", color=colour)
                made.axis.plot(row.oracle[metric], y, "o", mec=colour, mfc="none")
        for marker, fill, name in (("|", INK, "validation"), ("o", INK, "test"), ("o", "none", "oracle (upper bound)")):
            made.axis.plot([], [], marker, mec=INK, mfc=fill, linestyle="none", label=name)
        made.axis.set_yticks(range(len(lines)), [wrapped(line.row.label) for line in reversed(lines)])
        made.axis.set_ylim(-0.6, len(lines) - 0.4)
        made.axis.grid(axis="y", visible=False)
        made.axis.set_xlabel(f"{metric_name(metric)} (%)")
        made.figure.legend(loc="outside upper center", ncols=3, handletextpad=0.2, columnspacing=1)
    return made


def wrapped(label: str) -> str:
    """A label on lines that leave room for the chart beside them."""
    return "\n".join(textwrap.wrap(label, 26, break_on_hyphens=False))


def steps(values: Sequence[tuple[str, float]], objective: str) -> Chart:
    """The objective after each step of `summary.gain`, as bars."""
    with chart(4.8, 0.7 + 0.42 * len(values), "steps") as made:
        heights = [value for _, value in values]
        bars = made.axis.barh(range(len(values)), heights[::-1], height=0.62, color=SERIES[0])
        made.axis.bar_label(bars, [f"{value:.1f}" for value in heights[::-1]], padding=4)
        made.axis.set_yticks(range(len(values)), [wrapped(name) for name, _ in reversed(values)])
        made.axis.set_xlim(0, max(heights) * 1.1 + 1)
        made.axis.grid(axis="y", visible=False)
        made.axis.set_xlabel(f"{metric_name(objective)} (%)")
    return made


def sensitivity(search: Search, name: str, objective: str) -> Chart:
    """What a searched hyper-parameter did to the objective on validation; pruned trials hollow, at their last rung."""
    styles: dict[str, dict[str, Any]] = {
        "complete": {"marker": "o", "color": SERIES[0]},
        "published": {"marker": "*", "color": SERIES[1], "markersize": 11},
        "pruned": {"marker": "o", "mec": SERIES[0], "mfc": "none"},
    }
    with chart(salt=f"{search.name}/{name}") as made:
        for group, points in training_points(search, name).items():
            if points:
                x, y = zip(*[(v if isinstance(v, int | float) else str(v), o) for v, o in points], strict=True)
                made.axis.plot(x, y, linestyle="none", label=group, **styles[group])
        best = next(trial for trial in search.trials if trial.number == search.winner)
        if name in best.params:
            made.axis.plot(
                best.params[name],
                best.value or 0.0,
                "o",
                mec=INK,
                mfc="none",
                markersize=13,
                label="winner",
                linestyle="none",
            )
        made.axis.margins(0.12)
        if any(getattr(trial.distributions.get(name), "log", False) for trial in search.trials):
            log_axis(made.axis)
        made.axis.set_xlabel(parameter_name(name))
        made.axis.set_ylabel(f"{metric_name(objective)}, val (%)")
        made.figure.legend(loc="outside upper center", ncols=4, handletextpad=0.2, columnspacing=1)
    return made


def front(search: Search, several: Several, k: int) -> Chart:
    """The first objective over objective `k`: every setting, those on the Pareto front filled and numbered."""
    rule, best = several.rule, pareto_front(several.ranking, several.rule)
    groups: dict[str, tuple[Sequence[Standing], dict[str, Any]]] = {
        "others": ([s for s in several.ranking if s not in best], {"mec": SERIES[0], "mfc": "none"}),
        "Pareto front": (best, {"color": SERIES[0]}),
        "winner": (several.ranking[:1], {"mec": INK, "mfc": "none", "markersize": 13}),
    }
    with chart(salt=f"{search.name}/front/{k}") as made:
        for name, (settings, style) in groups.items():
            x, y = [s.means[k] for s in settings], [s.means[0] for s in settings]
            made.axis.plot(x, y, "o", linestyle="none", label=name, **style)
        for s in best:
            made.axis.annotate(str(s.number), (s.means[k], s.means[0]), xytext=(6, 5), textcoords="offset points")
        made.axis.margins(0.12)
        made.axis.locator_params(axis="x", nbins=5)
        made.axis.set_xlabel(objective_name(rule.objectives[k]))
        made.axis.set_ylabel(objective_name(rule.objectives[0]))
        made.figure.legend(loc="outside upper center", ncols=3, handletextpad=0.2, columnspacing=1)
    return made


def objective_name(objective: str) -> str:
    """An objective with where it was measured, and its unit."""
    return metric_name(objective) if objective == COST else f"{metric_name(objective)}, val (%)"


def importance(search: Search) -> Chart:
    """Share of the objective's variance that each hyper-parameter explains (fANOVA), largest on top."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    study = study_of(search.trials)
    shares = list(optuna.importance.get_param_importances(study, evaluator=evaluator).items())[::-1]
    with chart(4.2, max(1.4, 0.8 + 0.34 * len(shares)), f"{search.name}/importance") as made:
        bars = made.axis.barh([parameter_name(name) for name, _ in shares], [s for _, s in shares], color=SERIES[0])
        made.axis.bar_label(bars, [f"{share:.2f}" for _, share in shares], padding=4)
        made.axis.set_xlim(0, 1.1)
        made.axis.grid(axis="y", visible=False)
        made.axis.set_xlabel("share of the objective's variance (fANOVA)")
    return made


def surface(counts: Counts, choice: Choice | None, objective: str, salt: str, title: str = "") -> Chart:
    """The objective on validation over readout settings and thresholds; a cross where `choice` stands.

    V2 reads each IoU at a threshold of its own: here all three share one.
    """
    metric = curve_metric(objective)
    values_ST, grid = selection.curves(counts, metric).mean(1), selection.grid(counts, metric)
    step = max(1, len(grid) // SURFACE_COLUMNS)
    num = len(counts.settings)
    with chart(4.2, min(1.3 + 0.17 * num, 4.4), salt) as made:
        extent = (float(grid[0]), float(grid[-1]), num - 0.5, -0.5)
        image = made.axis.imshow(values_ST[:, ::step], aspect="auto", cmap=MAP, extent=extent, interpolation="nearest")
        if choice:
            at = choice.thresholds[metric][len(choice.thresholds[metric]) // 2]
            made.axis.plot(at, counts.settings.index(choice.readout), "x", color="white", markersize=8, mew=2)
        _name_settings(made.axis, counts.settings)
        made.axis.grid(visible=False)
        made.axis.set_xlabel("threshold")
        made.axis.set_title(title, fontsize=9)
        made.figure.colorbar(image, ax=made.axis, pad=0.02).outline.set_visible(False)
    return made


def _name_settings(axis: Axes, settings: Sequence[Any]) -> None:
    """Name each setting on the y axis, or every so many where they are many."""
    every = -(-len(settings) // MOST_NAMED)
    axis.set_yticks(range(0, len(settings), every), [str(setting) for setting in settings[::every]])


def settings_curve(counts: Counts, choice: Choice, objective: str) -> Chart:
    """The objective on validation per readout setting (k, for BAS), each at its best thresholds; the chosen one filled.

    Settings that are no numbers are ranked, the best `MOST_NAMED` of them.
    """
    values_S = best_of_settings(counts, objective)
    if all(isinstance(setting, int | float) for setting in counts.settings):
        with chart(salt="settings") as made:
            made.axis.plot(counts.settings, values_S, "o-", color=SERIES[0], mfc="none", linewidth=1.2)
            made.axis.plot(choice.readout, values_S[counts.settings.index(choice.readout)], "o", color=SERIES[0])
            made.axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            made.axis.set_xlabel("readout setting (k)")
            made.axis.set_ylabel(f"{metric_name(objective)}, val (%)")
        return made
    best = (-values_S).argsort(kind="stable")[:MOST_NAMED][::-1]
    with chart(4.2, 0.8 + 0.19 * len(best), "settings") as made:
        colours = [SERIES[0] if counts.settings[s] == choice.readout else FAINT for s in best]
        made.axis.barh([str(counts.settings[s]) for s in best], values_S[best], color=colours)
        made.axis.grid(axis="y", visible=False)
        made.axis.set_xlabel(f"{metric_name(objective)}, val (%)")
    return made


def grid_of_parts(counts: Counts, objective: str) -> Chart | None:
    """Settings like "layer/weighting" as a grid of the two at their best thresholds; nothing where they are no grid."""
    parts = [str(setting).partition("/") for setting in counts.settings]
    rows, columns = (list(dict.fromkeys(names)) for names in ([p[0] for p in parts], [p[2] for p in parts]))
    if not 1 < len(columns) <= 12 or len(rows) < 2:
        return None
    values = np.full((len(rows), len(columns)), np.nan)
    for (first, _, rest), value in zip(parts, best_of_settings(counts, objective), strict=True):
        values[rows.index(first), columns.index(rest)] = value
    with chart(4.2, min(1.3 + 0.17 * len(rows), 4.4), "grid") as made:
        image = made.axis.imshow(values, aspect="auto", cmap=MAP, interpolation="nearest")
        made.axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        _name_settings(made.axis, rows)
        made.axis.grid(visible=False)
        made.figure.colorbar(image, ax=made.axis, pad=0.02).outline.set_visible(False)
    return made


def threshold_curves(subject: Subject) -> Chart:
    """The objective's curves at the chosen setting: validation whole, test dashed, the chosen thresholds dotted."""
    metric = curve_metric(subject.config.objective)
    test = subject.lines[-1].test
    names = (
        [f"IoU {100 * iou:.0f}" for iou in selection.BOX_METRICS[metric][1]]
        if metric in selection.BOX_METRICS
        else [""]
    )
    with chart(salt="thresholds") as made:
        for number, (name, at) in enumerate(zip(names, subject.choice.thresholds[metric], strict=True)):
            colour = SERIES[number]
            made.axis.axvline(at, color=colour, linestyle=":", linewidth=1.2)
            for counts, style, label in (
                (subject.val, "-", f"{name} val".strip()),
                (test, "--", f"{name} test".strip()),
            ):
                if counts is not None and metric in selection.metrics_of(counts):
                    setting = counts.settings.index(subject.choice.readout)
                    curve = selection.curves(counts, metric)[setting, number]
                    made.axis.plot(
                        selection.grid(counts, metric), curve, style, color=colour, linewidth=1.3, label=label
                    )
        made.axis.set_ylim(bottom=0)
        made.axis.set_xlabel("threshold")
        made.axis.set_ylabel(f"{metric_name(metric)} (%)")
        made.figure.legend(loc="outside upper center", ncols=3, columnspacing=1)
    return made


def iou_distribution(lines: Sequence[Line]) -> Chart:
    """How many images have which IoU: the winner as bars, the others as steps."""
    edges = np.linspace(0, 1, 21).tolist()
    with chart(salt="ious") as made:
        for number, line in enumerate(reversed(lines)):
            ious = [case.iou for case in line.cases]
            share = np.full(len(ious), 100 / len(ious))
            style: dict[str, Any] = {"histtype": "step", "linewidth": 1.3} if number else {"alpha": 0.45}
            made.axis.hist(ious, edges, weights=share, color=_series(number), label=line.row.label, **style)
        made.axis.axvline(HIT, color=INK, linestyle=":", linewidth=1)
        made.axis.set_xlabel("IoU with the true box or mask (dotted: a hit)")
        made.axis.set_ylabel("images (%)")
        _legend_below(made.figure)
    return made


def accuracy_by_size(shares: Mapping[str, Sequence[Share]]) -> Chart:
    """Hits per range of object sizes, by model, the winner last; bars are 95 % intervals."""
    with chart(salt="sizes") as made:
        for number, (label, groups) in enumerate(reversed(list(shares.items()))):
            x = np.arange(len(groups)) + 0.08 * (number - (len(shares) - 1) / 2)
            y = np.array([group.percent for group in groups])
            low, high = y - [group.low for group in groups], [group.high for group in groups] - y
            made.axis.errorbar(
                x,
                y,
                (low, high),
                fmt="o-",
                color=_series(number),
                label=label,
                markersize=4,
                linewidth=1.3,
                elinewidth=1,
            )
            made.axis.set_xticks(range(len(groups)), [group.label for group in groups])
        made.axis.set_ylim(-3, 103)
        made.axis.set_xlabel("share of the image that the object takes")
        made.axis.set_ylabel("IoU ≥ 0.5 (%)")
        _legend_below(made.figure)
    return made


def _series(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _legend_below(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=1, reverse=True)


def overlay(map_HW: NDArray[np.uint8], image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A map, 0..255, in colours over its image at half strength; uint8 [H, W, 3]."""
    colours = matplotlib.colormaps["jet"](map_HW)[..., :3] * 255
    return np.asarray((0.5 * image_HW3 + 0.5 * colours).round(), np.uint8)
