"""The dense field's worked numbers; the library, where it is installed, beside the exact one."""

import numpy as np
import pytest
import torch

from wsol_models.segmentation import crf

GAUSSIAN = crf.Kernels(3, 3, 1, 1, 0)  # no appearance


def test_unaries_of_labels():
    three = crf.unary_of_labels(torch.tensor([[1]]), 3)
    assert torch.allclose(three[:, 0, 0], torch.tensor([1.89712, 0.35667, 1.89712], dtype=torch.float64), atol=5e-6)
    two = crf.unary_of_labels(torch.tensor([[0]]), 2)
    assert torch.allclose(two[:, 0, 0], torch.tensor([0.35667, 1.20397], dtype=torch.float64), atol=5e-6)


def test_one_step_of_mean_field():
    unary = crf.unary_of_labels(torch.tensor([[1, 0]]), 2)
    image = torch.zeros(3, 1, 2)
    kernel = crf._mixed_kernel(image, GAUSSIAN, 1) / 3
    assert torch.allclose(kernel[0], torch.tensor([0.513885, 0.486115], dtype=torch.float64), atol=5e-7)
    start = crf.mean_field(unary, image, crf.Kernels(3, 3, 1, 1, 0, iterations=0))
    assert torch.allclose(start[:, 0, 0], torch.tensor([0.3, 0.7], dtype=torch.float64))
    once = crf.mean_field(unary, image, crf.Kernels(3, 3, 1, 1, 0, iterations=1))
    assert torch.allclose(once[:, 0, 0], torch.tensor([0.29305, 0.70695], dtype=torch.float64), atol=5e-6)


def test_scores_are_shares_of_their_sum():
    unary = crf.unary_of_scores(torch.tensor([[[0.2]], [[0.6]], [[0.0]]]))
    assert torch.allclose((-unary[:, 0, 0]).exp(), torch.tensor([0.25, 0.75, 1e-5], dtype=torch.float64))


def test_one_label_needs_no_field():
    assert (crf.refined(torch.zeros(1, 2, 3), torch.zeros(3, 2, 3), crf.CONFIDENT) == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (15, 400)])
def test_odd_sizes_are_finite(size):
    unary = crf.unary_of_labels(torch.randint(0, 2, size), 2)
    q = crf.refined(unary, torch.rand(3, *size) * 255, crf.CONFIDENT)
    assert q.shape == (2, *size)
    assert torch.isfinite(q).all()


def test_a_large_image_takes_every_sth_pixel_and_keeps_its_labels():
    labels = torch.zeros(150, 200, dtype=torch.long)
    labels[40:110, 50:150] = 1
    image = torch.where(labels == 1, 200.0, 30.0).expand(3, -1, -1)
    q = crf.refined(crf.unary_of_labels(labels, 2), image, crf.CONFIDENT)
    assert (q.argmax(0) == labels).float().mean() > 0.98


def test_the_exact_field_is_near_the_library():
    dense = pytest.importorskip("pydensecrf.densecrf", reason="wsol[crf] is compiled where it is installed")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 8, (24, 30, 3), np.uint8)
    image[6:18, 8:22] += 150
    labels = np.zeros((24, 30), np.int64)
    labels[8:20, 6:20] = 1
    unary = crf.unary_of_labels(torch.from_numpy(labels), 2)
    field = dense.DenseCRF2D(30, 24, 2)
    field.setUnaryEnergy(np.ascontiguousarray(unary.flatten(1).numpy(), np.float32))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    theirs = np.asarray(field.inference(10)).reshape(2, 24, 30)
    ours = crf.mean_field(unary, torch.from_numpy(image).permute(2, 0, 1), crf.CONFIDENT).numpy()
    assert (ours.argmax(0) == theirs.argmax(0)).mean() > 0.99
