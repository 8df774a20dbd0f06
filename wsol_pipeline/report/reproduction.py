"""What a paper reports beside what was measured, by metric, and what was done otherwise: as a page and as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup
from scipy.stats import t as student

from wsol_pipeline.report import charts
from wsol_pipeline.report.page import shown
from wsol_pipeline.report.tables import piped
from wsol_pipeline.study.pareto import deviation
from wsol_pipeline.text import metric_name
from wsol_pipeline.verdict.reproduce import AS_PUBLISHED, ORACLE, READINGS, TRANSFERRED, Reproduction
from wsol_pipeline.verdict.rows import OTHER_DATA

COLUMNS = {AS_PUBLISHED: "as published", ORACLE: "oracle (upper bound)", TRANSFERRED: "transferred (honest)"}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A metric over seeds, percent."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Over seeds (n - 1); 0 of a single one."""
        return deviation(self.values)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if len(self.values) > 1 else "")

    def holds(self, value: float) -> bool:
        """Whether `value` is such as one more seed may give: in Student's 95 % interval of a further draw."""
        n = len(self.values)
        half = student.ppf((1 + CONFIDENCE) / 2, n - 1) * self.std * (1 + 1 / n) ** 0.5
        return bool(abs(value - self.mean) <= half)


@dataclass(frozen=True)
class Compared:
    """One published figure. `readings` are what was measured for it; `note` a verdict, or why there is none."""

    metric: str
    published: float
    readings: Mapping[str, Spread]
    note: str
    is_alike: bool = True  # whether the metric is the paper's, of the same images

    @property
    def alike(self) -> Spread | None:
        """The reading that is as the paper's: its own threshold, else the best on test."""
        return next((self.readings[name] for name in READINGS if name in self.readings), None)

    @property
    def difference(self) -> float | None:
        """Measured less published, percentage points; none between two measures of one name."""
        return self.alike.mean - self.published if self.alike and self.is_alike else None


@dataclass(frozen=True)
class Section:
    """A table under a title; the columns `right` hold numbers."""

    title: str
    text: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: tuple[int, ...] = ()


def means(found: Reproduction) -> dict[str, float]:
    """The mean over seeds of every figure that the row has, by reading/metric."""
    return {
        f"{reading}/{one.metric}": spread.mean for one in compare(found) for reading, spread in one.readings.items()
    }


def compare(found: Reproduction) -> list[Compared]:
    """Every published figure of the row beside what was measured."""
    compared = []
    for metric, published in found.row.published.items():
        readings = {
            reading: Spread(tuple(run.metrics[reading][metric] for run in found.runs))
            for reading in READINGS
            if all(metric in run.metrics.get(reading, {}) for run in found.runs)
        }
        one = Compared(metric, published, readings, "", found.is_alike)
        note = verdict(found, one.alike, published) if one.alike else why_not(metric, found)
        compared.append(Compared(metric, published, readings, note, found.is_alike))
    return compared


def verdict(found: Reproduction, measured: Spread, published: float) -> str:
    """What the seeds say of a difference, if anything: other data, other measures and single seeds say nothing."""
    if not found.is_paper_data:
        return "other data"
    if found.row.elsewhere:
        return f"other images: published of the {found.row.elsewhere} split"
    if not found.is_alike:
        return f"another measure: {found.config.protocol}, published under {found.row.protocol}"
    if len(measured.values) < 2:
        return "one seed says nothing"
    if min(measured.values) <= published <= max(measured.values):
        return "inside the seeds' range"
    if measured.holds(published):
        return "within what one more seed may give"
    return f"{'lower' if measured.mean < published else 'higher'} than seeds explain"


def why_not(metric: str, found: Reproduction) -> str:
    """Why a published metric is not measured."""
    if metric.startswith("ois_top1"):
        return "the best threshold of every single image is looked for without regard to its class"
    if metric in ("pxap", "piou"):
        return "the test split has no object masks, or its protocol reads none"
    return f"protocol {found.config.protocol} does not measure it on these data"


def sections(found: Reproduction) -> list[Section]:
    """The report: figures first, then what differs, then where all comes from."""
    compared = compare(found)
    return [section for section in (
        _figures(compared, len(found.runs)), _not_measured(compared), _deviations(found), _notes(found),
        _seeds(found), _provenance(found),
    ) if section.rows]  # fmt: skip


def _figures(compared: Sequence[Compared], seeds: int) -> Section:
    measured = [one for one in compared if one.readings]
    kinds = [reading for reading in READINGS if any(reading in one.readings for one in measured)]
    rows = [
        (
            metric_name(one.metric),
            f"{one.published:.2f}",
            *(str(one.readings.get(kind, "")) for kind in kinds),
            "" if one.difference is None else f"{one.difference:+.2f}",
            one.note,
        )
        for one in measured
    ]
    text = (
        "Mean ± standard deviation over seeds, %. The difference is that of the reading as published (the paper's own "
        "setting and threshold; without a threshold the best on test) where there is one, else of the oracle, which "
        "picks thresholds on test as the field's code does, an upper bound. Transferred has those of validation."
    )
    head = ("metric", "published", *(COLUMNS[kind] for kind in kinds), "difference", "verdict")
    title = f"Published beside measured, {seeds} seed{'s' if seeds > 1 else ''}"
    return Section(title, text, head, rows, tuple(range(1, len(kinds) + 3)))


def _not_measured(compared: Sequence[Compared]) -> Section:
    rows = [
        (metric_name(one.metric), f"{one.published:.2f}", f"not measured: {one.note}")
        for one in compared
        if not one.readings
    ]
    return Section("Published, not measured", "", ("metric", "published", "why"), rows, (1,))


def _deviations(found: Reproduction) -> Section:
    rows: list[tuple[str, ...]] = [*found.deviations]
    text = "Data, recipe, network and evaluation, as far as they are configured."
    if not rows:
        rows, text = [("nothing that is configured", "", "")], ""
    return Section("What differs from the paper", text, ("what", "published", "here"), rows)


def _notes(found: Reproduction) -> Section:
    rows = [(what, told) for what, _, told in (note.partition(": ") for note in found.row.notes)]
    text = "Known of this row whatever is run; 'here' is what its preset has."
    return Section("Where text and code of the paper differ", text, ("what", "how"), rows)


def _seeds(found: Reproduction) -> Section:
    metric = next((one for one in compare(found) if one.readings), None)
    kinds = list(metric.readings) if metric else []
    name = metric.metric if metric else ""
    rows = [
        (
            str(run.seed), str(run.trial), run.readout, f"{run.validation:.2f}",
            *(f"{run.metrics[kind][name]:.2f}" for kind in kinds),
        )
        for run in found.runs
    ]  # fmt: skip
    head = (
        "seed", "trial", "readout > threshold", f"{metric_name(found.config.objective)}, val",
        *(f"{metric_name(name)}, {kind}" for kind in kinds),
    )  # fmt: skip
    return Section("Seeds", "", head, rows, (0, 1, *range(3, 4 + len(kinds))))


def _provenance(found: Reproduction) -> Section:
    images = ", ".join(f"{role} {number:,}" for role, number in found.images.items())
    told = {"row": f"{found.row.id}, {found.row.source}", "images": images, **found.provenance}
    return Section("Where the numbers come from", "", ("what", ""), list(told.items()))


def label(found: Reproduction) -> str:
    """What stands on top of every table."""
    return "" if found.is_paper_data else OTHER_DATA


def headline(found: Reproduction) -> str:
    """What was published, what was run, and on which data if they are not the row's."""
    row, seeds = found.row, ", ".join(str(run.seed) for run in found.runs)
    told = f"Published: {row.method}, {row.backbone}, {row.dataset}. Run here: seed {seeds}, "
    told += f"{len(found.deviations)} things otherwise than published." if found.deviations else "as published."
    data = {deviation.what: deviation.here for deviation in found.deviations}.get("data")
    return told if found.is_paper_data else f"{told} The data are {data}: no difference is one to the paper."


def markdown(found: Reproduction, command: str) -> str:
    """The report as Markdown."""
    lines = [f"# {found.row.id}, reproduced", "", *_flagged(found), headline(found), "", "```bash", command, "```"]
    for section in sections(found):
        marks = ["---:" if number in section.right else "---" for number in range(len(section.head))]
        lines += ["", f"## {section.title}", "", *_flagged(found), *([section.text, ""] if section.text else [])]
        lines += [piped(section.head), piped(marks), *map(piped, section.rows)]
    return "\n".join(lines) + "\n"


def _flagged(found: Reproduction) -> list[str]:
    return [f"**{label(found)}**", ""] if label(found) else []


def html(found: Reproduction, command: str) -> str:
    """The report as one page that needs nothing beside it. Jinja escapes whatever users have named."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=shown, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    compared = [one for one in compare(found) if one.readings]
    return templates.get_template("reproduction.html").render(
        title=found.row.id,
        label=label(found),
        headline=headline(found),
        sections=sections(found),
        picture=Markup(picture(compared)) if compared else "",
        command=command,
    )


def picture(compared: Sequence[Compared]) -> str:
    """A row per metric: a star for the published figure, a dot for each seed and reading."""
    kinds = [reading for reading in READINGS if any(reading in one.readings for one in compared)]
    with charts.chart(5.6, 1.1 + 0.5 * len(compared), "reproduction") as made:
        for y, one in enumerate(reversed(compared)):
            made.axis.plot(one.published, y, "*", color=charts.INK, markersize=9, label="" if y else "published")
            for number, kind in enumerate(kind for kind in kinds if kind in one.readings):
                values = one.readings[kind].values
                height, colour = y - 0.15 * (number + 1), charts.SERIES[kinds.index(kind)]
                made.axis.plot(
                    values, [height] * len(values), "o", color=colour, markersize=4, label="" if y else COLUMNS[kind]
                )
        made.axis.set_yticks(range(len(compared)), [metric_name(one.metric) for one in reversed(compared)])
        made.axis.set_ylim(-0.75, len(compared) - 0.5)
        made.axis.set_xlabel("%")
        made.figure.legend(loc="outside lower center", ncols=2)
    return made.svg
