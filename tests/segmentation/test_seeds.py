"""The worked examples of seeds, by hand."""

import numpy as np
import pytest
import torch

from wsol_pipeline.evaluation.segmentation import count_classes
from wsol_pipeline.segmentation import seeds

A = torch.tensor([[[0.2, 0.8, 0.4]]], dtype=torch.float64)
B = torch.tensor([[[0.6, 0.3, 0.0]]], dtype=torch.float64)
CLASS = torch.tensor([2])


def close(found, expected, atol=1e-12):
    return torch.allclose(found.flatten(), torch.tensor(expected, dtype=torch.float64), atol=atol)


def test_sizes_of_a_voc_image():
    assert [seeds.scaled((375, 500), s) for s in (1, 0.5, 1.5, 2)] == [(375, 500), (188, 250), (562, 750), (750, 1000)]
    assert seeds.strided((375, 500)) == (94, 125)
    assert seeds.canvas((375, 500)) == (384, 512)
    assert (seeds.strided((5, 7)), seeds.canvas((5, 7))) == ((2, 2), (16, 16))


def test_normalise_and_fuse():
    assert close(seeds.normalised(A, 0), [0.25, 1, 0.5])
    assert close(seeds.normalised(B, 0), [1, 0.5, 0])
    assert close(seeds.fused([A, B], epsilon=0), [1.25 / 1.5, 1, 0.5 / 1.5])
    assert close(seeds.fused([A, B], [1, 0], epsilon=0), [0.25, 1, 0.5])
    assert close(seeds.normalised(A), [0.2 / 0.80001, 0.8 / 0.80001, 0.4 / 0.80001])
    with pytest.raises(ValueError, match="2 methods need as many weights but got 1"):
        seeds.fused([A, B], [1.0])


def test_maps_of_nothing_and_of_everything():
    maps = torch.tensor([[[0.0, 0.0]], [[torch.nan, 1.0]], [[0.3, 0.3]]], dtype=torch.float64)
    assert close(seeds.normalised(maps, 0), [0, 0, 0, 0, 1, 1])


def test_a_constant_background_wins_ties():
    fused = seeds.fused([A, B], epsilon=0)
    assert seeds.labels_of(fused, CLASS, 0.4).tolist() == [[3, 3, 0]]
    assert seeds.labels_of(torch.tensor([[[0.4]]]), CLASS, 0.4).tolist() == [[0]]


def test_of_equal_maps_the_first_wins():
    maps = torch.full((2, 1, 1), 0.5)
    assert seeds.labels_of(maps, torch.tensor([4, 1]), 0.1).tolist() == [[5]]
    assert seeds.labels_of(torch.zeros(0, 2, 2), torch.zeros(0), 0.1).tolist() == [[0, 0], [0, 0]]


def test_a_class_takes_part_above_its_own_threshold():
    maps = torch.tensor([[[0.5, 0.5]], [[0.4, 0.1]]])
    own = torch.tensor([0.6, 0.3]).view(2, 1, 1)
    assert seeds.labels_of(maps, torch.tensor([0, 1]), own).tolist() == [[2, 0]]


def test_the_histogram_cuts_as_the_labels_do():
    rng = np.random.default_rng(0)
    maps, truth = rng.random((2, 6, 7)), rng.integers(0, 4, (6, 7)).astype(np.uint8)
    thresholds = np.linspace(0, 1, 20, endpoint=False)
    counts = count_classes(maps, np.array([0, 2]), truth, thresholds, 3)
    for number, threshold in enumerate(thresholds):
        labels = seeds.labels_of(torch.from_numpy(maps), torch.tensor([0, 2]), float(threshold)).numpy()
        for label in (1, 2, 3):
            assert counts[1, label, number + 1 :].sum() == (labels == label).sum()


def test_the_power_form_is_a_constant():
    cuts = [(1, 0.5), (2, 0.3820), (4, 0.2755), (8, 0.1883), (16, 0.1228), (24, 0.0939), (32, 0.0770)]
    assert [round(seeds.power_cut(alpha), 4) for alpha, _ in cuts] == [cut for _, cut in cuts]
    assert seeds.power_cut(2) == pytest.approx(0.381966, abs=5e-7)
    scores = seeds.power_background(torch.tensor([[[0.38, 0.39]]], dtype=torch.float64), 2)
    assert close(scores, [0.3844, 0.3721])


def test_maps_held_to_a_foreground_map():
    maps, whole = (torch.tensor(v, dtype=torch.float64).view(1, 1, 3) for v in ((0.9, 0.4, 0.2), (0.6, 0.5, 0.2)))
    expected = {"replace": [0.6, 0.4, 0.2], "average": [0.75, 0.4, 0.2], "average_all": [0.75, 0.45, 0.2]}
    for how, values in expected.items():
        assert close(seeds.with_foreground(maps, whole[0], how), values)
    with pytest.raises(ValueError, match="Unknown use of a foreground map 'mean'"):
        seeds.with_foreground(maps, whole[0], "mean")


def test_confident_labels_without_a_field():
    maps = torch.tensor([[[0.5, 0.25, 0.1]]])
    assert seeds.confident(maps, CLASS, 0.30, 0.17).tolist() == [[3, 255, 0]]


def test_a_field_may_change_labels_and_is_asked_at_both_thresholds():
    asked = []

    def flip(labels_HW, count):
        asked.append((labels_HW.tolist(), count))
        return 1 - labels_HW

    maps = torch.tensor([[[0.5, 0.25, 0.1]]])
    assert seeds.confident(maps, CLASS, 0.30, 0.17, field=flip).tolist() == [[0, 3, 3]]
    assert asked == [([[1, 0, 0]], 2), ([[1, 1, 0]], 2)]


def test_scales_are_laid_out_on_one_canvas():
    """Two views of a 20x24 image, whose canvas has 32x32: what lies beyond the image is cut, not squeezed."""
    view = torch.arange(4.0).view(1, 2, 2)
    full = seeds.full_size([view, view], (20, 24))
    assert full.shape == (1, 20, 24)
    wide = torch.nn.functional.interpolate(view[None], (32, 32), mode="bilinear")[0, :, :20, :24]
    assert torch.equal(full, 2 * wide)
    assert seeds.strided_sum([view], (20, 24)).shape == (1, 5, 6)
