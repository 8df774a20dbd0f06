"""The comparison as Markdown, to the letter."""

from dataclasses import replace

from wsol_pipeline.report import latex
from wsol_pipeline.report.facts import Line
from wsol_pipeline.report.significance import Paired
from wsol_pipeline.report.tables import comparison_table, figure, markdown
from wsol_pipeline.verdict.rows import over_seeds


def test_markdown_to_the_letter(make_row):
    lines = [Line(replace(make_row("centred | <box>", 40), intervals={})), Line(make_row("a: winner", 71.75))]
    assert markdown(comparison_table(lines, "max_box_acc_v2")) == (
        "| model | readout > threshold | MaxBoxAccV2 val | MaxBoxAccV2 test | MaxBoxAccV2 oracle | GT-known Loc test "
        "| GT-known Loc oracle |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| centred \\| &lt;box> | 1 > 0.500 | 41.0 | 40.0 | 42.0 | 50.0 | 52.0 |\n"
        "| a: winner | 1 > 0.500 | 72.8 | **71.8** [68.8, 75.0] | 73.8 | **81.8** | 83.8 |\n"
    )


def test_models_beside_each_other_on_the_same_images_stand_below(make_row):
    pairs = [
        Paired("b", "gt_known_loc", 67, 12.34, 3.01, 21.5, 9, 1, 22 / 1024),
        Paired("c", "max_box_acc_v2", 67, -1, -3, 1),
    ]
    told = markdown(comparison_table([Line(make_row("a", 40))], "gt_known_loc"), pairs).splitlines()
    assert told[-2:] == [
        "| b | GT-known Loc | +12.3 [+3.0, +21.5] | 9 | 1 | 0.021 | 67 |",
        "| c | MaxBoxAccV2 | -1.0 [-3.0, +1.0] |  |  |  | 67 |",
    ]
    assert "McNemar's exact two-sided p" in told[-6]


def test_before_an_evaluation_there_is_validation_alone(make_row):
    table = comparison_table(
        [Line(make_row("b", 30, judged=False)), Line(make_row("a", 20, judged=False))], "gt_known_loc"
    )
    assert table.groups == [("GT-known Loc", ["val"])]
    assert [(cells[0].text, cells[0].best) for _, _, cells in table.rows] == [("41.0", True), ("31.0", False)]


def test_a_model_that_was_not_evaluated_is_never_the_best_of_test(make_row):
    lines = [Line(make_row("b", 90, judged=False)), Line(make_row("a", 20))]
    rows = comparison_table(lines, "max_box_acc_v2").rows
    assert [cell.best for cell in rows[0][2]] == [False] * 5
    assert [cell.best for cell in rows[1][2]] == [False, True, False, True, False]


def test_what_a_paper_reports_has_a_column_of_its_own(make_row):
    row = replace(make_row("a", 20), preset="x", published={"gt_known_loc": 95.41})
    assert comparison_table([Line(row)], "gt_known_loc").groups == [
        ("GT-known Loc", ["val", "test", "oracle", "paper"])
    ]


def test_papers_figures_on_other_data_stand_under_a_warning(make_row):
    beside = {"preset": "row", "published": {"gt_known_loc": 95.4}}
    row, other = (replace(make_row("a", 71.75), **beside, other_data=flag) for flag in (False, True))
    table = comparison_table([Line(other)], "gt_known_loc")
    assert table.warning.startswith("NOT THE PAPER'S DATA: ")
    assert markdown(table).startswith(f"**{table.warning}**\n\n| model |")
    assert rf"\caption{{{latex.escaped(table.warning)} Of rows.}}" in latex.comparison(table, "Of rows.", "tab:a")
    assert comparison_table([Line(row)], "gt_known_loc").warning == ""
    assert comparison_table([Line(replace(other, published={}))], "gt_known_loc").warning == ""  # no paper's figure


def test_seeds_stand_as_mean_and_deviation(make_row):
    """Test values of 50 and 54 and 55: mean 53, deviation √7."""
    row = over_seeds([make_row("a", value) for value in (50, 54, 55)])
    (label, _, cells), *_ = comparison_table([Line(row)], "max_box_acc_v2").rows
    assert label == "a, 3 seeds"
    assert [(cell.text, cell.interval) for cell in cells[:3]] == [
        ("54.0 ± 2.6", ""), ("53.0 ± 2.6", ""), ("55.0 ± 2.6", ""),
    ]  # fmt: skip
    assert figure(row, "test", "gt_known_loc") == "63.0 ± 2.6"


def test_a_model_that_boxes_chose_for_masks_is_compared_by_pxap(make_row):
    row = replace(make_row("a", 50), transferred={"pxap": 80.0, "cls_top1": 90.0}, oracle={"pxap": 80.0, "piou": 60.0})
    table = comparison_table([Line(row)], "max_box_acc_v2")
    assert table.groups == [("MaxBoxAccV2", ["val"]), ("PxAP", ["test", "oracle"]), ("pIoU", ["oracle"])]
    assert [cell.text for cell in table.rows[0][2]] == ["51.0", "80.0", "80.0", "60.0"]
