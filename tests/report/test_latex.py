"""Tables for a paper: to the letter, as wide as they say, and through pdflatex where there is one."""

import re
import shutil
import subprocess
from dataclasses import replace

from wsol_pipeline.report import latex
from wsol_pipeline.report.facts import Line
from wsol_pipeline.report.significance import Paired
from wsol_pipeline.report.tables import comparison_table
from wsol_pipeline.verdict.rows import over_seeds

NEEDED = ("booktabs.sty", "graphicx.sty")
PAPER = r"""\documentclass[10pt,twocolumn]{article}
\usepackage{booktabs,graphicx}
\textwidth 496pt \columnsep 22pt
\begin{document}
See Tables %s.
%s
\end{document}
"""


def test_a_narrow_table_to_the_letter(make_row):
    rows = [Line(make_row("b_1: winner", 40, judged=False)), Line(make_row("a: winner", 71.75, judged=False))]
    assert latex.comparison(comparison_table(rows, "max_box_acc_v2"), "100 % of a & b.", "tab:a") == (
        "% \\usepackage{booktabs}\n"
        "\\begin{table}[t]\n"
        "\\centering\n"
        "\\caption{100 \\% of a \\& b.}\n"
        "\\label{tab:a}\n"
        "\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        "\\begin{tabular}{llrr}\n"
        "\\toprule\n"
        " & & \\multicolumn{1}{c}{MaxBoxAccV2} & \\multicolumn{1}{c}{GT-known Loc} \\\\\n"
        "\\cmidrule(lr){3-3} \\cmidrule(lr){4-4}\n"
        "model & readout \\textgreater{} threshold & val & val \\\\\n"
        "\\midrule\n"
        "b\\_1: winner & 1 \\textgreater{} 0.500 & 41.0 & 51.0 \\\\\n"
        "a: winner & 1 \\textgreater{} 0.500 & \\textbf{72.8} & \\textbf{82.8} \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )


def test_intervals_stand_small_below_their_figures_and_seeds_as_deviations(make_row):
    told = latex.comparison(comparison_table([Line(make_row("a", 71.75))], "max_box_acc_v2"), "", "tab:a").splitlines()
    at = next(n for n, line in enumerate(told) if line.startswith("a & "))
    assert told[at] == r"a & 1 \textgreater{} 0.500 & 72.8 & \textbf{71.8} & 73.8 & \textbf{81.8} & 83.8 \\"
    assert told[at + 1] == r" & &  & {\scriptsize [68.8, 75.0]} &  &  &  \\"
    seeds = Line(over_seeds([make_row("a", value) for value in (50, 54, 55)]))
    assert r"54.0 $\pm$ 2.6" in latex.comparison(comparison_table([seeds], "max_box_acc_v2"), "", "tab:a")


def test_what_a_column_does_not_hold_goes_over_both_and_what_no_page_holds_is_shrunk(make_row):
    long = "a study with a name of many words: published, readout solved, one seed of 3"
    row = replace(make_row(long, 50), readout="layer4/ours1 > 0.361")
    wide = latex.comparison(comparison_table([Line(row)], "max_box_acc_v2"), "", "tab:a")
    assert r"\begin{table*}[t]" in wide
    assert r"\begin{tabular}{p{105pt}lrrrrr}" in wide
    named = replace(row, readout="x" * 90)
    assert r"\resizebox{\textwidth}" in latex.comparison(comparison_table([Line(named)], "max_box_acc_v2"), "", "tab:a")


def test_the_caption_says_what_the_figures_are(facts, make_row):
    told = latex.caption(facts)
    assert told.startswith("Localization on 6 test images of ")
    assert "(%, protocol wsol-v1 at 32 px, tiny)" in told
    assert "Figures over seeds" not in told
    over = over_seeds([make_row("a: winner", value) for value in (50, 54, 55)])
    main = replace(facts.main, lines=(replace(facts.main.lines[0], row=over),))
    seeds = replace(facts, subjects=(*facts.subjects[:-1], main))
    assert latex.caption(seeds).endswith("Figures over seeds are means ± deviations of single seeds (at most 3).")


def test_letters_that_latex_reads_as_commands():
    assert latex.escaped(r"100 % of a_b & c\d") == r"100 \% of a\_b \& c\textbackslash{}d"


def document(facts):
    """Of a report with every kind of table."""
    pairs = [
        Paired("b: winner", "gt_known_loc", 6, 12.3, 3.0, 21.5, 9, 1, 0.0215),
        Paired("c", "top1_loc", 6, -1, -3, 1),
    ]
    return latex.document(facts, pairs)


def test_a_paper_with_all_tables_is_set_without_an_overfull_line(facts, make_row, tmp_path):
    """By pdflatex where it and the packages are; brackets and environments close in any case."""
    rows = [make_row("cam: winner", 30, judged=False), make_row("b", 40, judged=False)]
    narrow = latex.comparison(comparison_table([Line(row) for row in rows], "gt_known_loc"), "λ ≥ 1.", "tab:n")
    paper = PAPER % (r"\ref{tab:a}, \ref{tab:a-paired}, \ref{tab:n}", narrow + document(facts))
    require_closed(paper)
    bare = re.sub(r"\\[{}]", "", paper)
    assert bare.count("{") == bare.count("}")
    if shutil.which("pdflatex") and all(subprocess.call(["kpsewhich", file]) == 0 for file in NEEDED):
        set_twice(paper, tmp_path)


def require_closed(paper):
    """Every environment ends, in the order that nests."""
    opened = []
    for what, name in re.findall(r"\\(begin|end){([a-z*]+)}", paper):
        if what == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened


def set_twice(paper, folder):
    """References are known the second time."""
    (folder / "paper.tex").write_text(paper)
    line = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for _ in range(2):
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "undefined" not in done.stdout
