"""Single images for whoever works them up: columns that explain themselves, boxes in pixels of the stored image."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wsol_pipeline.evaluation.cases import Case
from wsol_pipeline.evaluation.metrics import predicted_box_and_iou
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.report import images
from wsol_pipeline.report.images import COLUMNS, parquet, table


def of_size(facts, width, height):
    """`facts` with test images of so many pixels; the winner's line alone."""
    (line,) = facts.main.lines
    cases = tuple(replace(case, width=width, height=height, gt_known_loc=float(case.hit)) for case in line.cases)
    main = replace(facts.main, lines=(replace(line, cases=cases),))
    return replace(facts, subjects=(main,), centred_box=None)


def test_boxes_are_in_pixels_of_the_stored_image_with_the_first_outside(facts):
    """Of 32 evaluation pixels 4 to 19 are half of the width: 40 to 200 of 320.

    A contour says of columns 4 to 18 that they are 4 to 19."""
    rows = table(of_size(facts, 320, 64)).to_pylist()
    assert len(rows) == 6
    assert rows[0]["box"] == [40.0, 8.0, 190.0, 38.0]
    assert rows[0]["true_boxes"] == [[40.0, 8.0, 200.0, 40.0]]
    assert (rows[0]["model"], rows[0]["class"], rows[0]["width"]) == ("a: winner", "cat", 320)
    assert [row["gt_known_loc"] for row in rows] == [1, 1, 1, 0, 0, 0]
    assert [row["outcome"] for row in rows] == ["right"] * 3 + ["too small"] * 3


def case_of(box, width, height):
    return Case(0, "a", 0, 0, True, 1.0, 1.0, 1.0, 1, 0.1, box, (), width, height)


@pytest.mark.parametrize("name", ["wsol-v1", "wsol-v2", "bas-ext", "bas-conf", "mldfr", "mldfr-multi"])
def test_what_a_map_shows_is_in_the_file_whatever_the_evaluators_convention(name):
    """Columns 8 to 15 and rows 0 to 15 of a grid of 32, whose image is ten times as large."""
    rules = protocol(name, image_size=32, resize_size=32)
    raw_HW = np.zeros(rules.map_size((320, 320))[::-1])
    scale = len(raw_HW) // 32
    raw_HW[: 16 * scale, 8 * scale : 16 * scale] = 1
    box, _ = predicted_box_and_iou(raw_HW, np.array([[0.0, 0, 5, 5]]), 0.5, rules, (320, 320))
    case = case_of(tuple(box.tolist()), 320, 320)
    assert images._in_image(images._half_open(case, rules), case, rules) == [80.0, 0.0, 160.0, 160.0]


def test_a_box_that_was_cut_at_the_border_reaches_it():
    rules = protocol("wsol-v1", image_size=32, resize_size=32)
    case = case_of((0, 0, 31, 31), 320, 160)
    assert images._in_image(images._half_open(case, rules), case, rules) == [0.0, 0.0, 320.0, 160.0]


def test_a_model_that_an_older_version_judged_has_no_boxes_in_pixels(facts):
    rows = table(facts).to_pylist()
    assert {row["model"] for row in rows} == {line.row.label for line in facts.lines if line.cases}
    assert all(row["box"] is None and row["true_boxes"] == [] for row in rows)


def test_the_file_explains_its_columns_and_the_docs_have_the_same(facts):
    schema = pq.read_schema(io.BytesIO(parquet(of_size(facts, 32, 32))))
    told = {field.name: field.metadata[b"description"].decode() for field in schema}
    assert told == {name: text for name, (_, text) in COLUMNS.items()}
    page = (Path(images.__file__).parents[2] / "docs/studies.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert {name: documented.get(name) for name in COLUMNS} == told


@pytest.mark.parametrize("secret", ["postgresql://me:hunter2@db/x"])
def test_no_secret_is_in_it(facts, secret):
    (line,) = facts.main.lines
    cases = tuple(replace(case, id=secret) for case in line.cases)
    main = replace(facts.main, lines=(replace(line, cases=cases),))
    assert b"hunter2" not in parquet(replace(facts, subjects=(main,)))
