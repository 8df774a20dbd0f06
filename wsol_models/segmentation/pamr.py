"""PAMR: pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020, https://arxiv.org/abs/2005.08104, Section 3.3).

Each pixel's labels become a mean of those of its 48 neighbours (8 at each of six dilations), weighted by how alike
their colours are; ten times. Nothing is trained, no library is needed.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

DILATIONS = (1, 2, 4, 8, 12, 24)
AROUND = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))


@torch.no_grad()
def refine(masks_CHW: Tensor, image_NHW: Tensor, dilations: Sequence[int] = DILATIONS, iterations: int = 10) -> Tensor:
    """Masks [C, H, W] after `iterations`, on an image [N, H, W] of the same size with any number of colours.

    Sums over C stay what they were, since each pixel's weights sum to 1.
    """
    if masks_CHW.shape[1:] != image_NHW.shape[1:]:
        raise ValueError(f"Masks of {tuple(masks_CHW.shape[1:])} need an image as large: {tuple(image_NHW.shape[1:])}.")
    weights_NHW = weights(image_NHW, dilations)
    for _ in range(iterations):
        masks_CHW = sum(w_HW * m_CHW for w_HW, m_CHW in zip(weights_NHW, neighbours(masks_CHW, dilations), strict=True))
    return masks_CHW


def weights(image_NHW: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """softmax over neighbours of -|I(i) - I(n)| / (1e-8 + .1 σ), a mean over colours, [8 * dilations, H, W].

    σ is the deviation (n - 1) over neighbours and the centre, which counts once for each dilation.
    """
    around = torch.stack(list(neighbours(image_NHW, dilations)))
    with_centre = torch.cat([around, image_NHW.expand(len(dilations), *image_NHW.shape)])
    distance = (around - image_NHW).abs() / (1e-8 + 0.1 * with_centre.std(0))
    return (-distance.mean(1)).softmax(0)


def neighbours(planes_CHW: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Each of the neighbours as planes [C, H, W]; beyond the edge the edge's pixels go on."""
    height, width = planes_CHW.shape[1:]
    for reach in dilations:
        padded_CHW = F.pad(planes_CHW[None], (reach,) * 4, mode="replicate")[0]
        for y, x in AROUND:
            top, left = reach * (1 + y), reach * (1 + x)
            yield padded_CHW[:, top : top + height, left : left + width]
