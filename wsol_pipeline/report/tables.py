"""The comparison as one grid, models beside each other on the same images as another; both as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsol_pipeline.evaluation.measures import judged_by
from wsol_pipeline.redaction import printable, redact
from wsol_pipeline.report.facts import Line
from wsol_pipeline.report.significance import Paired
from wsol_pipeline.text import metric_name
from wsol_pipeline.verdict.rows import OTHER_DATA, Row

MASKS = ("pxap", "piou")
WARNING = f"{OTHER_DATA}: what papers report was measured on other data than these; no difference is one to a paper."
PAIRED_HEAD = ["beside", "metric", "difference", "only here", "only there", "p", "images"]
PAIRED = (
    "The last model beside the others on the same test images: the difference in percentage points with the 95 % "
    "interval of a paired bootstrap over images, images that one of both alone finds, and McNemar's exact two-sided p."
)


@dataclass(frozen=True)
class Cell:
    """A figure in percent, with its interval if it has one; empty text where there is no figure."""

    text: str = ""
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """`groups` are metrics with the names of their columns; `rows` a label, a readout and a cell per column.

    `warning` stands above it, if there is one.
    """

    groups: list[tuple[str, list[str]]]
    rows: list[tuple[str, str, list[Cell]]]
    warning: str = ""


def comparison_table(lines: Sequence[Line], objective: str) -> Table:
    """The objective, GT-known and Top-1 localization, of masks PxAP and pIoU, of each line.

    Test is at the thresholds of validation, the best of it marked; oracle is the upper bound beside it. Without an
    evaluation there is validation alone, the best of it marked. Figures over seeds are means ± deviations.
    """
    judged = any(line.row.transferred for line in lines)
    measure = judged_by(objective, lines[-1].row.transferred or lines[-1].row.val)
    shown = (objective, measure, "gt_known_loc", "top1_loc", *(MASKS if measure in MASKS else ()))
    metrics = [m for m in dict.fromkeys(shown) if m == objective or any(m in _all(line) for line in lines)]
    groups: list[tuple[str, list[str]]] = []
    columns: list[list[Cell]] = []
    for metric in metrics:
        kinds = ["val"] if not judged else ["val", "test", "oracle"] if metric == objective else ["test", "oracle"]
        kinds = [kind for kind in kinds if any(metric in _values(line.row, kind) for line in lines)]
        kinds += ["paper"] if any(metric in line.row.published for line in lines) else []
        groups.append((metric_name(metric), kinds))
        rivals = [row.transferred if judged else row.val for row in (line.row for line in lines)]
        marked = max((values[metric] for values in rivals if metric in values), default=None)
        columns += [
            [_cell(line, metric, kind, "test" if judged else "val", marked) for line in lines] for kind in kinds
        ]
    names = [redact(tuple(" ".join(name.split()) for name in (line.row.label, line.row.readout))) for line in lines]
    rows = [(label, readout, [column[n] for column in columns]) for n, (label, readout) in enumerate(names)]
    beside = any(kind == "paper" for _, kinds in groups for kind in kinds)
    return Table(groups, rows, WARNING if beside and any(line.row.other_data for line in lines) else "")


def _all(line: Line) -> set[str]:
    return {*line.row.transferred, *line.row.oracle} or {*line.row.val}


def _values(row: Row, kind: str) -> Mapping[str, float]:
    return {"val": row.val, "test": row.transferred, "oracle": row.oracle, "paper": row.published}[kind]


def figure(row: Row, kind: str, metric: str) -> str:
    """A figure of a row as tables and sentences have it: with its deviation, if it is a mean over seeds."""
    over = row.deviations.get({"test": "transferred"}.get(kind, kind), {})
    return f"{_values(row, kind)[metric]:.1f}" + (f" ± {over[metric]:.1f}" if metric in over else "")


def _cell(line: Line, metric: str, kind: str, marked_kind: str, marked: float | None) -> Cell:
    row = line.row
    values = _values(row, kind)
    if metric not in values:
        return Cell()
    interval = row.intervals.get("transferred", {}).get(metric) if kind == "test" else None
    told = f"[{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
    return Cell(figure(row, kind, metric), told, kind == marked_kind and values[metric] == marked)


def markdown(table: Table, pairs: Sequence[Paired] = ()) -> str:
    """The table as Markdown, the best in bold; `pairs` below it."""
    names = [f"{metric} {kind}" for metric, kinds in table.groups for kind in kinds]
    lines = [f"**{table.warning}**", ""] if table.warning else []
    lines += [piped(["model", "readout > threshold", *names]), piped(["---", "---", *["---:"] * len(names)])]
    lines += [piped([label, readout, *map(_in_markdown, cells)]) for label, readout, cells in table.rows]
    if pairs:
        lines += ["", PAIRED, "", piped(PAIRED_HEAD), piped(["---", "---", *["---:"] * 5])]
        lines += [piped(paired_cells(of)) for of in pairs]
    return "\n".join(lines) + "\n"


def paired_cells(of: Paired) -> list[str]:
    """One comparison on the same images as a table shows it, by `PAIRED_HEAD`."""
    interval = f"[{of.low:+.1f}, {of.high:+.1f}]"
    exact = ["", "", ""] if of.p is None else [str(of.only_here), str(of.only_there), _chance(of.p)]
    return [of.other, metric_name(of.metric), f"{of.difference:+.1f} {interval}", *exact, str(of.images)]


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def piped(cells: Sequence[str]) -> str:
    """Cells as a row of a Markdown table."""
    shown = (printable(cell).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(") for cell in cells)
    return f"| {' | '.join(shown)} |"


def _in_markdown(cell: Cell) -> str:
    figure = f"**{cell.text}**" if cell.best else cell.text
    return f"{figure} {cell.interval}".strip()
