"""Dense conditional random field: labels that follow an image's edges (Krähenbühl and Koltun, NeurIPS 2011).

Mean field with a smoothing and an appearance kernel, the pixel's pair with itself included, normalised from both sides.
Of four readings of the authors' library this is the nearest to it. It is exact, so its cost is the square of the
pixels: `labels_of` lays it on every s-th pixel. `pydensecrf2` (the extra `crf`) approximates all pixels in half a
second.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_PIXELS = 5500  # of the exact field: a matrix of 120 MB
LEAST = 1e-5  # probabilities below are clipped


@dataclass(frozen=True)
class Kernels:
    """Spatial width `sxy` (pixels) and weight of smoothing; width, colour width (0..255) and weight of appearance."""

    smooth_sxy: float
    smooth_weight: float
    sxy: float
    srgb: float
    weight: float
    iterations: int = 10


CONFIDENT = Kernels(3, 3, 50, 5, 10)  # labels that train IRN
REFINE = Kernels(3, 3, 80, 13, 10)  # scores (the constants of PAMR's authors)
NETWORK = Kernels(1, 3, 67, 3, 4)  # DeepLab's outputs


def unary_of_labels(labels_HW: Tensor, count: int, certainty: float = 0.7) -> Tensor:
    """-ln of the probability of each of `count` labels, [count, H, W]: `certainty` for the pixel's own."""
    other = -math.log((1 - certainty) / (count - 1))
    unary_HWL = torch.full((*labels_HW.shape, count), other, dtype=torch.float64)
    return unary_HWL.scatter(2, labels_HW.long()[..., None], -math.log(certainty)).permute(2, 0, 1)


def unary_of_scores(scores_LHW: Tensor) -> Tensor:
    """-ln of scores over their sum at each pixel."""
    return -(scores_LHW.double() / scores_LHW.double().sum(0)).clamp(min=LEAST).log()


def mean_field(unary_LHW: Tensor, image_3HW: Tensor, kernels: Kernels, scale: int = 1) -> Tensor:
    """Q, float64 [L, H, W]. `image`: 0..255. `scale`: pixels of the photograph per pixel here, along each side."""
    unary_LN, q_LHW = unary_LHW.flatten(1).double(), (-unary_LHW.double()).softmax(0)
    mixed_NN = _mixed_kernel(image_3HW, kernels, scale)
    q_LN = q_LHW.flatten(1)
    for _ in range(kernels.iterations):
        q_LN = (-unary_LN + q_LN @ mixed_NN).softmax(0)
    return q_LN.view_as(q_LHW)


def _mixed_kernel(image_3HW: Tensor, kernels: Kernels, scale: int) -> Tensor:
    """w_G k_G + w_B k_B, each over √(n_i n_j), n the sums of its rows."""
    height, width = image_3HW.shape[1:]
    grid_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places_N2 = torch.stack(grid_HW, -1).reshape(-1, 2).double() * scale
    apart_NN = torch.cdist(places_N2, places_N2).square()
    colours_N3 = image_3HW.flatten(1).T.double()
    colour_NN = torch.cdist(colours_N3, colours_N3).square()
    smooth_NN = (-0.5 * apart_NN / kernels.smooth_sxy**2).exp()
    alike_NN = (-0.5 * (apart_NN / kernels.sxy**2 + colour_NN / kernels.srgb**2)).exp()
    return kernels.smooth_weight * _normalised(smooth_NN) + kernels.weight * _normalised(alike_NN)


def _normalised(kernel_NN: Tensor) -> Tensor:
    root_N = (kernel_NN.sum(1) + 1e-20).sqrt()
    return kernel_NN / (root_N[:, None] * root_N)


@torch.no_grad()
def refined(unary_LHW: Tensor, image_3HW: Tensor, kernels: Kernels) -> Tensor:
    """Q, float64 [L, H, W], by the field on every s-th pixel, the least s whose pixels are at most `MOST_PIXELS`.

    One label needs no field. Between the pixels Q is bilinear.
    """
    size = unary_LHW.shape[1:]
    if len(unary_LHW) == 1:
        return torch.ones_like(unary_LHW, dtype=torch.float64)
    step = next(s for s in range(1, max(size) + 1) if math.ceil(size[0] / s) * math.ceil(size[1] / s) <= MOST_PIXELS)
    q_LHW = mean_field(unary_LHW[:, ::step, ::step], image_3HW[:, ::step, ::step], kernels, step)
    if step == 1:
        return q_LHW
    return F.interpolate(q_LHW[None], list(size), mode="bilinear", align_corners=False)[0]
