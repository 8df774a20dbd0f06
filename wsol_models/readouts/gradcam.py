"""Grad-CAM: features weighted by the mean gradient of their channel.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017,
https://arxiv.org/abs/1610.02391. Global average pooling and a linear layer have a CAM because their weights say what a
channel is worth; for any other network the gradient of the class score does, averaged over positions. At the input of
such a linear head it is CAM without its negative part.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from wsol_models.readouts._gradients import GradientReadout


@dataclass(frozen=True)
class Readout(GradientReadout):
    """One setting per stage; by default the last one, as in the paper."""

    def localize(self, features_BCHW: Tensor, gradients_BCHW: Tensor, scores_B: Tensor) -> Tensor:
        return grad_cam(features_BCHW, gradients_BCHW)


def grad_cam(features_BCHW: Tensor, gradients_BCHW: Tensor) -> Tensor:
    """ReLU(Σ_c α_c Z_c), Eq. 2, with α_c the mean of G_c over positions, Eq. 1; B×H×W."""
    weights_BC11 = gradients_BCHW.mean((2, 3), keepdim=True)
    return F.relu((weights_BC11 * features_BCHW).sum(1))
