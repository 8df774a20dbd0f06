"""Losses and schedules of segmentation networks: labels 255 count neither way, means are over the global batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = 255


def pixel_cross_entropy(logits_BLHW: Tensor, labels_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of cross-entropies over pixels with a label, and their number; logits are enlarged to the labels' size.

    torch's mean is NaN for a batch without such pixels: the sum over at least 1 is 0, with gradient 0.
    """
    if logits_BLHW.shape[2:] != labels_BHW.shape[1:]:
        logits_BLHW = F.interpolate(logits_BLHW, list(labels_BHW.shape[1:]), mode="bilinear", align_corners=False)
    labels_BHW = labels_BHW.long()
    total = F.cross_entropy(logits_BLHW.float(), labels_BHW, ignore_index=IGNORED, reduction="sum")
    return total, (labels_BHW != IGNORED).sum()


def nearest(labels_BHW: Tensor, size_HW: Sequence[int]) -> Tensor:
    """Labels of another size, each from the middle of its cell, as PIL does; torch's "nearest" takes its corner."""
    return F.interpolate(labels_BHW[:, None].float(), list(size_HW), mode="nearest-exact")[:, 0].to(labels_BHW.dtype)


def poly(base: float, step: int, steps: int, power: float = 0.9, every: int = 1) -> float:
    """The learning rate of 0-based `step` of `steps`: base · (1 - s / steps)^power, s the last multiple of `every`."""
    done = min(step - step % every, steps)
    return base * (1 - done / steps) ** power


def maximum(logits: Sequence[Tensor]) -> Tensor:
    """The maximum of logit maps at several scales, at the size of the first."""
    size = list(logits[0].shape[2:])
    wide = [F.interpolate(other, size, mode="bilinear", align_corners=False) for other in logits[1:]]
    return torch.stack([logits[0], *wide]).amax(0)
