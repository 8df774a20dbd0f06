"""Masks and boxes for use: half-open, exact in pixels of the image, and the component that the protocol's box is of."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle

from wsol_pipeline.evaluation.objects import (
    Frame,
    components,
    extent,
    is_flat,
    largest,
    object_mask,
)
from wsol_pipeline.evaluation.protocols import PROTOCOLS, protocol

RESIZE, CROP, SHORT = (protocol(name) for name in ("wsol-v1", "bas-ext", "mldfr"))
LETTERBOX = Frame((640, 480), (224, 224), (224, 168), (0, -28))  # by .35 to 224 x 168, padded by 28 above and below


@pytest.mark.parametrize(
    ("frame", "cells", "in_image"),
    [
        (Frame.of((4000, 3000), RESIZE), (0, 0, 224, 224), (0, 0, 4000, 3000)),
        (Frame.of((4000, 3000), RESIZE), (10, 20, 11, 21), (178.571, 267.857, 196.429, 281.25)),
        (Frame.of((640, 480), CROP), (28, 56, 112, 168), (110, 135, 320, 345)),
        (Frame.of((640, 480), CROP), (0, 0, 224, 224), (40, 30, 600, 450)),
        (Frame.of((640, 480), SHORT), (100, 50, 300, 250), (100, 50, 300, 250)),
        (LETTERBOX, (0, 28, 112, 196), (0, 0, 320, 480)),
        (LETTERBOX, (0, 10, 112, 61), (0, 0, 320, 94.286)),
    ],
)
def test_a_box_of_the_grid_in_the_image(frame, cells, in_image):
    assert frame.box(cells) == pytest.approx(in_image, abs=5e-4)


def test_the_window_is_what_the_network_saw():
    assert Frame.of((640, 480), CROP).window == (40, 30, 600, 450)
    assert Frame.of((4000, 3000), RESIZE).window == (0, 0, 4000, 3000)


@pytest.mark.parametrize(
    ("columns", "rows", "box"), [((0, 223), (0, 223), (0, 0, 224, 224)), ((10, 10), (20, 20), (10, 20, 11, 21))]
)
def test_columns_and_rows_of_a_mask_as_a_half_open_box(columns, rows, box):
    mask = np.zeros((224, 224), bool)
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    assert extent(mask) == box


@pytest.mark.parametrize("rules", PROTOCOLS.values(), ids=lambda rules: rules.name)
def test_a_full_mask_is_all_that_was_seen(rules):
    frame = Frame.of((401, 300), rules)
    mask = largest(np.ones(frame.grid_wh[::-1], bool), rules)
    assert frame.box(extent(mask)) == frame.window
    pixels = frame.mask(mask)
    assert pixels.sum() == (pixels.size if not rules.margin else 351 * 262)  # centres in 25.06..375.94 x 18.75..281.25


@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 70), st.sampled_from(sorted(PROTOCOLS)), st.booleans())
def test_masks_rle_and_boxes_agree(seed, width, height, name, whole):
    """Each pixel of a mask has its centre in the box, and the RLE gives the mask back."""
    rules = protocol(name, 24, 28)
    frame = Frame.of((width, height), rules)
    cells = np.random.default_rng(seed).random(frame.grid_wh[::-1]) > 0.7
    part = cells if whole else largest(cells, rules)
    if not part.any():
        return
    x0, y0, x1, y1 = frame.box(extent(part))
    mask = frame.mask(part)
    assert mask.shape == (height, width)
    y, x = np.nonzero(mask)
    assert (x + 0.5 >= x0).all()
    assert (x + 0.5 <= x1).all()
    assert (y + 0.5 >= y0).all()
    assert (y + 0.5 <= y1).all()
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    np.testing.assert_array_equal(rle.decode(rle.encode(np.asfortranarray(mask.astype(np.uint8)))), mask)


def test_a_pixel_belongs_to_the_cell_that_holds_its_centre():
    """Of 3 cells over 6 pixels each has two; of 3 over 2 the middle one has none."""
    rules = protocol("wsol-v1", 3, 3)
    middle = np.zeros((3, 3), bool)
    middle[:, 1] = True
    np.testing.assert_array_equal(Frame.of((6, 1), rules).mask(middle), [[0, 0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(Frame.of((2, 1), rules).mask(middle), [[0, 0]])


def test_rle_counts_columns_first_and_begins_with_zeros():
    """3 rows x 2 columns: 0,1,0,1,1,0 down the columns are counts 1,1,1,2,1."""
    encoded = rle.encode(np.asfortranarray(np.array([[0, 1], [1, 1], [0, 0]], np.uint8)))
    assert encoded["counts"] == b"11110"
    assert rle.toBbox(encoded).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("name", ["wsol-v1", "wsol-v2", "bas-ext", "mldfr", "mldfr-multi"])
def test_the_part_is_the_one_whose_box_counts(oracle, name):
    """The evaluator's own box of the part alone is its box of the whole mask: ties, holes and islands included."""
    rules, rng = PROTOCOLS[name], np.random.default_rng(3)
    rule = {"all_contours": "largest_contour", "components": "whole_mask"}.get(rules.box_rule, rules.box_rule)
    for _ in range(300):
        mask = oracle.random_levels(rng) > 0
        if mask.any():
            assert oracle.boxes_of(largest(mask, rules), rule) == oracle.boxes_of(mask, rule)


def test_all_parts_come_largest_first_as_the_protocol_connects_them():
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 1] = True  # touch at a corner
    mask[3:5, 4:7] = True
    assert [extent(part) for part in components(mask, RESIZE)] == [(4, 3, 7, 5), (0, 0, 2, 2)]
    assert [extent(part) for part in components(mask, SHORT)] == [(4, 3, 7, 5), (0, 0, 1, 1), (1, 1, 2, 2)]


def test_otsus_mask_is_what_lies_over_its_level():
    rules = dataclasses.replace(protocol("wsol-v1", 3, 3), image_size=3)
    raw = np.array([[0.0, 0, 0], [1, 2, 3], [0, 1, 3]])
    mask, threshold = object_mask(raw, "otsu", rules, (3, 3))
    np.testing.assert_array_equal(mask, raw > 1)
    assert threshold == 0.337  # the last of the grid under 86 / 255


@pytest.mark.parametrize(
    ("raw", "flat"),
    [(np.full((3, 3), 2.0), True), (np.array([[0.0, np.nan]]), True), (np.array([[0.0, 1.0]]), False),
     (np.ones((3, 3), bool), False), (np.zeros((2, 3, 3)), False)],
)  # fmt: skip
def test_a_flat_map_is_known(raw, flat):
    assert is_flat(raw) is flat


def test_where_masks_are_scored_the_object_is_what_they_count():
    raw = np.array([[0.0, 0.5, 1.0]])
    seen = {name: object_mask(raw, 0.5, protocol(name, 3, 3), (3, 1))[0][0].tolist()
            for name in ("wsol-mask", "wsol-mask-background", "voc-miou")}  # fmt: skip
    assert seen["wsol-mask"] == [False, True, True]
    assert seen["wsol-mask-background"] == [True, False, False]
    assert seen["voc-miou"] == [False, False, True]
    cut = np.array([[True, False, False]])
    mask, threshold = object_mask(cut, 0.9, protocol("wsol-v1", 3, 3), (3, 3))
    assert mask[0].tolist() == [True, False, False]
    assert threshold is None
