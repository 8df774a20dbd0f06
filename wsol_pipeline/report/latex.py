"""A report's tables for a paper: floats of LaTeX that fit a column, or say that they take both."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from wsol_pipeline.report.facts import Facts
from wsol_pipeline.report.significance import Paired
from wsol_pipeline.report.tables import PAIRED, PAIRED_HEAD, Cell, Table, comparison_table, paired_cells

COLUMN_PT, PAGE_PT = 237, 496  # of one column and of both in the field's papers (CVPR, ICCV, IJCV's are wider)
LETTER_PT, SMALL_PT, GAP_PT = 4.4, 3.9, 6  # a letter of \footnotesize and of \scriptsize, the gap between columns
LABEL_PT = 105  # names of models that are wider are broken
LETTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "≥": r"$\geq$", "λ": r"$\lambda$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$",
}  # fmt: skip


def document(facts: Facts, pairs: Sequence[Paired]) -> str:
    """The tables of a report: the comparison, and the models beside each other on the same images."""
    table, name = comparison_table(facts.lines, facts.objective), facts.main.contender.study
    floats = [comparison(table, caption(facts), f"tab:{name}")]
    if pairs:
        floats.append(significance(pairs, f"{facts.lines[-1].row.label}. {PAIRED}", f"tab:{name}-paired"))
    return "\n".join(floats)


def caption(facts: Facts) -> str:
    """What the figures of the comparison are and how they came about, in sentences."""
    main, rules = facts.main, facts.main.protocol
    data = PurePosixPath(main.description["data"]).name
    how = f"protocol {rules.name} at {rules.image_size} px, {main.config.backbone}"
    if main.evaluation is None:
        return f"Localization on the validation images of {data} (%, {how}), at the thresholds that are best there."
    seeds = max(line.row.seeds for line in facts.lines)
    spread = f" Figures over seeds are means ± deviations of single seeds (at most {seeds})." if seeds > 1 else ""
    return (
        f"Localization on {main.evaluation['images']} test images of {data} (%, {how}). Readout and thresholds were "
        "chosen on validation (val); test reads them there, with 95 % bootstrap intervals over images; oracle picks "
        f"thresholds on test itself, an upper bound. The best of test is bold.{spread}"
    )


def comparison(table: Table, caption: str, label: str) -> str:
    """The comparison as a float; the best in bold, intervals small below their figures."""
    counts = [len(kinds) for _, kinds in table.groups]
    above = " & ".join(rf"\multicolumn{{{len(kinds)}}}{{c}}{{{escaped(metric)}}}" for metric, kinds in table.groups)
    starts = [3 + sum(counts[:n]) for n in range(len(counts))]
    rules = " ".join(rf"\cmidrule(lr){{{s}-{s + c - 1}}}" for s, c in zip(starts, counts, strict=True))
    names = ["model", "readout > threshold", *(kind for _, kinds in table.groups for kind in kinds)]
    head = [rf" & & {above} \\", rules, rf"{' & '.join(map(escaped, names))} \\"]
    body = [line for row in table.rows for line in _lines(*row)]
    plain = [names, *([label, readout, *(cell.text for cell in cells)] for label, readout, cells in table.rows)]
    small = [["", "", *(cell.interval for cell in cells)] for _, _, cells in table.rows]
    warned = f"{table.warning} {caption}".strip()
    return _float(head, body, _widths(plain, small), "r" * sum(counts), warned, label)


def significance(pairs: Sequence[Paired], caption: str, label: str) -> str:
    """Models beside each other on the same images as a float."""
    rows = [paired_cells(of) for of in pairs]
    body = [rf"{' & '.join(map(escaped, row))} \\" for row in rows]
    head = [rf"{' & '.join(map(escaped, PAIRED_HEAD))} \\"]
    return _float(head, body, _widths([PAIRED_HEAD, *rows]), "rrrrr", caption, label)


def _lines(label: str, readout: str, cells: Sequence[Cell]) -> list[str]:
    """A model's figures, and below them their intervals if there are any."""
    figures = [rf"\textbf{{{escaped(cell.text)}}}" if cell.best else escaped(cell.text) for cell in cells]
    lines = [rf"{' & '.join([escaped(label), escaped(readout), *figures])} \\"]
    if any(cell.interval for cell in cells):
        below = [rf"{{\scriptsize {cell.interval}}}" if cell.interval else "" for cell in cells]
        lines.append(rf" & & {' & '.join(below)} \\")
    return lines


def _widths(rows: Sequence[Sequence[str]], small: Sequence[Sequence[str]] = ()) -> list[float]:
    """About how wide the columns are, in points; a broken first one is `LABEL_PT`."""
    found = [LETTER_PT * max(map(len, column)) for column in zip(*rows, strict=True)]
    below = [SMALL_PT * max(map(len, column)) for column in zip(*small, strict=True)] or [0.0] * len(found)
    first, *others = map(max, zip(found, below, strict=True))
    return [min(first, LABEL_PT), *others]


def _float(
    head: Sequence[str], body: Sequence[str], widths: Sequence[float], figures: str, caption: str, label: str
) -> str:
    """A table or, where a column of a paper is too narrow for it, a table*; shrunk if a page is."""
    width = sum(widths) + GAP_PT * (len(widths) - 1)
    kind = "table" if width <= COLUMN_PT else "table*"
    first = f"p{{{LABEL_PT}pt}}" if widths[0] == LABEL_PT else "l"
    begin, end, needs = rf"\begin{{tabular}}{{{first}l{figures}}}", r"\end{tabular}", "booktabs"
    if width > PAGE_PT:
        begin, end, needs = f"\\resizebox{{\\textwidth}}{{!}}{{%\n{begin}", f"{end}}}", "booktabs,graphicx"
    return "\n".join([
        f"% \\usepackage{{{needs}}}" + (" in a paper of two columns: over both" if kind == "table*" else ""),
        rf"\begin{{{kind}}}[t]", r"\centering", rf"\caption{{{escaped(caption)}}}", rf"\label{{{label}}}",
        rf"\footnotesize\setlength{{\tabcolsep}}{{{GAP_PT / 2:g}pt}}", begin,
        r"\toprule", *head, r"\midrule", *body, r"\bottomrule", end, rf"\end{{{kind}}}", "",
    ])  # fmt: skip


def escaped(text: str) -> str:
    """`text` as LaTeX prints it."""
    return "".join(LETTERS.get(letter, letter) for letter in text)
