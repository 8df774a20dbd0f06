"""Training crops: what lies beside the image, and what a draw depends on."""

import numpy as np
import pytest
import torch

from wsol_pipeline.segmentation.crops import Cropping, crop

IMAGE = np.tile(np.arange(12, dtype=np.uint8)[:, None, None] * 20, (1, 10, 3))
LABELS = np.tile(np.arange(12, dtype=np.uint8)[:, None], (1, 10))
SAME = (1.0, 1.0)


def test_a_small_image_lies_at_the_top_left_or_anywhere():
    corner = Cropping(20, SAME, fill=(1, 2, 3))
    image, labels = crop(IMAGE, LABELS, corner, np.random.default_rng(0))
    assert torch.equal(labels[:12, :10], torch.from_numpy(LABELS))
    assert (labels[12:] == 255).all()
    assert (labels[:, 10:] == 255).all()
    assert image[:, 19, 19].tolist() == [1, 2, 3]
    places = set()
    for seed in range(20):
        _, labels = crop(IMAGE, LABELS, Cropping(20, SAME, anywhere=True), np.random.default_rng(seed))
        rows, columns = torch.nonzero(labels != 255, as_tuple=True)
        assert (int(rows.max() - rows.min()), int(columns.max() - columns.min())) == (11, 9)
        places.add((int(rows.min()), int(columns.min())))
    assert len(places) > 5


def test_a_large_image_is_cut_with_its_labels():
    for seed in range(5):
        image, labels = crop(IMAGE, LABELS, Cropping(8, SAME), np.random.default_rng(seed))
        assert torch.equal(image[0], labels.float() * 20)


def test_scales_are_drawn_of_a_range_or_of_values():
    sizes = set()
    for seed in range(30):
        _, labels = crop(IMAGE, LABELS, Cropping(40, (0.5, 1.5), steps=True), np.random.default_rng(seed))
        sizes.add(int((labels != 255).any(1).sum()))
    assert sizes == {6, 18}
    drawn = (crop(IMAGE, LABELS, Cropping(40, (0.5, 1.5)), np.random.default_rng(seed))[1] for seed in range(30))
    assert len({int((labels != 255).any(1).sum()) for labels in drawn}) > 5


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (15, 400)])
def test_odd_sizes_fill_a_crop(size):
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    out, marks = crop(image, labels, Cropping(32), np.random.default_rng(0))
    assert out.shape == (3, 32, 32)
    assert 0 < int((marks == 0).sum()) <= 32 * 32
