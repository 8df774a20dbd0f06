"""Grad-CAM++: as Grad-CAM, but only positive gradients count, and each position by its own weight.

Chattopadhyay et al., Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks, WACV 2018,
https://arxiv.org/abs/1710.11063. A mean over positions favours what covers much of the image; the weights α, derived
from the score's second and third derivatives under an exponential, let small parts and second objects count alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wsol_models.readouts._gradients import GradientReadout

EPSILON = 1e-7
LARGEST_SCORE = 60.0  # e^s only scales the map; beyond, products could leave float32


@dataclass(frozen=True)
class Readout(GradientReadout):
    """One setting per stage; by default the last one, as in the paper."""

    def localize(self, features_BCHW: Tensor, gradients_BCHW: Tensor, scores_B: Tensor) -> Tensor:
        return grad_cam_pp(features_BCHW, gradients_BCHW, scores_B)


def grad_cam_pp(features_BCHW: Tensor, gradients_BCHW: Tensor, logits_B: Tensor) -> Tensor:
    """ReLU(Σ_c w_c Z_c) with w_c = Σ_n α_cn ReLU(e^s G_cn), Eq. 5; B×H×W. logits_B: the logit s."""
    slope_B111 = logits_B.clamp(max=LARGEST_SCORE).exp()[:, None, None, None]
    alphas_BCHW = position_weights(features_BCHW, gradients_BCHW)
    weights_BC11 = (alphas_BCHW * F.relu(slope_B111 * gradients_BCHW)).sum((2, 3), keepdim=True)
    return F.relu((weights_BC11 * features_BCHW).sum(1))


def position_weights(features_BCHW: Tensor, gradients_BCHW: Tensor) -> Tensor:
    """α = G² / (2G² + Σ_n Z_n G_n³), Eq. 19; a denominator of 0 counts as 1. B×C×H×W.

    The third power stands inside the sum over positions n, as in the code that the comparisons of BagCAMs ran.
    """
    squares_BCHW = gradients_BCHW.square()
    thirds_BC11 = (features_BCHW * gradients_BCHW.pow(3)).sum((2, 3), keepdim=True)
    denominators_BCHW = 2 * squares_BCHW + thirds_BC11
    return squares_BCHW / (torch.where(denominators_BCHW == 0, 1.0, denominators_BCHW) + EPSILON)
