"""The reader that stands beside a graph: NumPy alone, and the same boxes as ours under every protocol."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.objects import Frame, extent, largest, object_mask
from wsol_pipeline.evaluation.protocols import PROTOCOLS, protocol
from wsol_pipeline.training.inputs import prepare
from wsol_pipeline.use import graph_reader
from wsol_pipeline.use.graph import metadata

MAPS = 40


class Described:
    """What metadata asks of a model."""

    classes, multilabel = ("a", "b"), False

    def __init__(self, rules, threshold):
        self.protocol, self.threshold = rules, threshold


def facts_of(rules, threshold=0.5):
    return {name: json.loads(text) for name, text in metadata(Described(rules, threshold)).items()}


def test_it_needs_nothing_but_numpy():
    tree = ast.parse(Path(graph_reader.__file__).read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert found == {"numpy", "typing", "collections.abc"}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_boxes_are_ours_under_every_protocol(name):
    """All but one in forty: a value on a threshold may fall to either side by its last bit."""
    rules, rng, other = protocol(name, 48, 56), np.random.default_rng(0), 0
    for number in range(MAPS):
        size_wh = tuple(rng.integers(30, 90, 2).tolist())
        raw_HW = rng.normal(size=(7, 7)).astype(np.float32)
        facts = facts_of(rules, (0.2, 0.5, "otsu", 0.35)[number % 4])
        expected_HW = normalised_map(raw_HW, rules, size_wh)
        np.testing.assert_allclose(graph_reader.normalised(raw_HW, size_wh, facts), expected_HW, atol=1e-5)
        mask_HW, _ = object_mask(raw_HW, facts["threshold"], rules, size_wh)
        box = Frame.of(size_wh, rules).box(extent(largest(mask_HW, rules))) if mask_HW.any() else None
        other += graph_reader.box(raw_HW, size_wh, facts) != (box and pytest.approx(box))
    assert other <= 1


@pytest.mark.parametrize("name", ["wsol-v1", "bas-ext", "mldfr"])
def test_images_are_shown_as_ours_but_for_rounding(name):
    rules, rng = protocol(name, 48, 56), np.random.default_rng(0)
    for width, height in ((60, 44), (40, 90), (100, 30)):
        image_HWC = rng.integers(0, 256, (height, width, 3), np.uint8)
        expected_CHW = prepare(torch.from_numpy(image_HWC).permute(2, 0, 1), rules, False).image_CHW.numpy()
        found_CHW = graph_reader.shown(image_HWC, facts_of(rules))
        assert found_CHW.shape == expected_CHW.shape
        assert np.abs(found_CHW.astype(int) - expected_CHW).max() <= 2


def test_the_largest_part_is_that_of_most_area_inside_its_outline():
    """A ring of 5 x 5 encloses 16 with its hole; a full 4 x 4 has more pixels than the rule of components counts."""
    mask = np.zeros((12, 14), bool)
    mask[0:5, 0:5], mask[1:4, 1:4] = True, False  # 16 pixels, area 16
    mask[6:11, 6:10] = True  # 20 pixels, area 12
    assert graph_reader.enclosed(mask[0:5, 0:5]) == 16
    assert graph_reader.enclosed(mask[6:11, 6:10]) == 12
    assert graph_reader.largest(mask, "largest_contour")[0, 0]
    assert graph_reader.largest(mask, "largest_component")[6, 6]
    assert (graph_reader.largest(mask, "whole_mask") == mask).all()


def test_a_flat_map_and_an_empty_mask_have_no_box():
    facts = facts_of(protocol("wsol-v1", 48, 56), 0.999)
    assert graph_reader.box(np.ones((7, 7)), (60, 44), facts) is None
    assert graph_reader.box(np.full((7, 7), np.nan), (60, 44), facts) is None
    rng = np.random.default_rng(0)
    empty = facts_of(protocol("bas-ext", 48, 56), 0.999)
    assert graph_reader.box(rng.normal(size=(7, 7)).astype(np.float32), (60, 44), empty) is None
