"""Published beside measured, with three seeds whose means, deviations and intervals were worked out by hand."""

import re
from dataclasses import replace

import pytest

from search_spaces import preset
from wsol_pipeline.console.screens import print_reproduction, print_rows
from wsol_pipeline.data.published import Deviation
from wsol_pipeline.report.reproduction import (
    OTHER_DATA,
    Spread,
    compare,
    html,
    label,
    markdown,
    sections,
)
from wsol_pipeline.training.config import TrainConfig
from wsol_pipeline.verdict.reproduce import Reproduction, SeedRun

ROW = preset("bas-ext/table1/cub/resnet50")  # Top-1 76.75, Top-5 90.04, GT-known 95.41
READ = ("as published", "oracle", "transferred")


def run(seed, *gt_known):
    """A seed with GT-known by reading; Top-1 is 20 less, Top-5 not there."""
    metrics = {
        reading: {"gt_known_loc": value, "top1_loc": value - 20} for reading, value in zip(READ, gt_known, strict=True)
    }
    return SeedRun(seed, seed, "200 > 0.100", 80.5, metrics)


RUNS = (run(0, 94, 96, 93), run(1, 95, 97, 94), run(2, 96, 98, 95))


@pytest.fixture
def found():
    config = TrainConfig(method="bas", backbone="resnet50", protocol="bas-ext")
    images = {"train": 5994, "val": 1000, "test": 5794}
    return Reproduction(ROW, config, True, (), RUNS, images, {"data": "/data/<script>"})


def one(found, metric="gt_known_loc"):
    return next(compared for compared in compare(found) if compared.metric == metric)


def test_the_difference_is_that_of_the_papers_own_reading(found):
    gt_known = one(found)
    assert {name: str(spread) for name, spread in gt_known.readings.items()} == {
        "as published": "95.00 ± 1.00", "oracle": "97.00 ± 1.00", "transferred": "94.00 ± 1.00",
    }  # fmt: skip
    assert gt_known.difference == pytest.approx(95 - 95.41)


def test_without_a_published_threshold_it_is_that_of_the_oracle(found):
    runs = tuple(replace(r, metrics={k: v for k, v in r.metrics.items() if k != "as published"}) for r in RUNS)
    assert one(replace(found, runs=runs)).difference == pytest.approx(97 - 95.41)


def test_a_further_draw_of_two_seeds_lies_in_students_interval():
    """Of 10 and 12: mean 11, deviation √2; t of one degree of freedom is 12.706, so 12.706 * √2 * √1.5 = 22.008."""
    spread = Spread((10.0, 12.0))
    assert spread.holds(11 + 22.00)
    assert not spread.holds(11 + 22.02)
    assert str(Spread((10.0,))) == "10.00"


@pytest.mark.parametrize(
    ("published", "told"),
    [
        (95.9, "inside the seeds' range"),
        (96.1, "within what one more seed may give"),  # 4.303 * 1 * √(4/3) = 4.968
        (99.96, "within what one more seed may give"),
        (99.98, "lower than seeds explain"),
        (90.02, "higher than seeds explain"),
    ],
)
def test_a_verdict_is_what_the_seeds_support(found, published, told):
    row = replace(ROW, published={"gt_known_loc": published})
    assert one(replace(found, row=row)).note == told


def test_no_verdict_where_nothing_supports_one(found):
    assert one(replace(found, runs=RUNS[:1])).note == "one seed says nothing"
    assert one(replace(found, is_paper_data=False)).note == "other data"
    other = one(replace(found, config=replace(found.config, protocol="wsol-v1")))
    assert other.note == "another measure: wsol-v1, published under bas-ext"
    assert other.difference is None


def test_a_figure_of_images_that_trained_has_no_verdict_on_test(found):
    row = preset("mldfr/table14/voc07/vgg16_bn")
    metrics = {reading: {"corloc": 47.9} for reading in READ}
    runs = tuple(replace(of, metrics=metrics) for of in RUNS)
    config = replace(found.config, protocol=row.protocol)
    corloc = one(replace(found, row=row, config=config, runs=runs), "corloc")
    assert (corloc.note, corloc.difference) == ("other images: published of the trainval split", None)
    assert row.notes[0].startswith("CorLoc: the paper's is of the images that trained the network")


def test_what_is_not_measured_is_listed_with_its_reason(found):
    not_measured = next(s for s in sections(found) if s.title == "Published, not measured")
    assert not_measured.rows == [
        ("Top-5 Loc", "90.04", "not measured: protocol bas-ext does not measure it on these data")
    ]
    measured = next(s for s in sections(found) if s.title.startswith("Published beside measured, 3 seeds"))
    assert [row[0] for row in measured.rows] == ["Top-1 Loc", "GT-known Loc"]


def test_deviations_and_notes_stand_in_tables_of_their_own(found):
    of = {s.title: s for s in sections(replace(found, deviations=(Deviation("epochs", "120", "1"),)))}
    assert of["What differs from the paper"].rows == [("epochs", "120", "1")]
    assert ("Top-k", ROW.notes[2].removeprefix("Top-k: ")) in of["Where text and code of the paper differ"].rows
    none = next(s for s in sections(found) if s.title == "What differs from the paper")
    assert none.rows == [("nothing that is configured", "", "")]


def test_other_data_are_flagged_on_top_of_every_page_and_table(found, capsys):
    other = replace(found, is_paper_data=False, deviations=(Deviation("data", "cub", "synthetic (generated)"),))
    text, page = markdown(other, "python x"), html(other, "python x")
    assert text.count(f"**{OTHER_DATA}**") == 1 + text.count("\n## ")
    assert page.count(f">{OTHER_DATA}</p>".replace("'", "&#39;")) == 1 + page.count("<h2>")
    print_reproduction(other)
    told = capsys.readouterr().out
    assert told.count(f"{OTHER_DATA}: ") == 4  # three tables, and the last line
    assert "synthetic (generated)" in text
    assert label(found) == ""
    assert OTHER_DATA not in markdown(found, "python x")


def test_markdown_to_the_letter(found):
    row = replace(ROW, published={"gt_known_loc": 95.41})
    assert (
        "| metric | published | as published | oracle (upper bound) | transferred (honest) | difference | verdict |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |\n"
        "| GT-known Loc | 95.41 | 95.00 ± 1.00 | 97.00 ± 1.00 | 94.00 ± 1.00 | -0.41 | inside the seeds' range |\n"
    ) in markdown(replace(found, row=row), "python x")


def test_the_page_is_one_file_that_runs_nothing(found):
    page = html(found, "python x")
    assert "<svg" in page
    assert "/data/&lt;script&gt;" in page
    assert not re.search(r"<script|<link|src=|url\((?!#)", page)


def test_rows_fit_a_terminal_of_100_columns(capsys):
    print_rows({row: preset(row).published for row in ("b-cam/table10/cub/resnet50/bcam-p", ROW.id)})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("GT-known Loc 95.41" in line for line in lines)
