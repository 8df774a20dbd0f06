"""PCS: each position's own features times its own gradient, the comparison that BagCAMs starts from.

Described in Zhu et al., Bagging Regional Classification Activation Maps for Weakly Supervised Object Localization,
ECCV 2022, https://arxiv.org/abs/2207.07818. Where Grad-CAM averages the gradient over positions, every position here
is a classifier of itself: what it adds, to first order, to the class score.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from wsol_models.readouts._gradients import GradientReadout


@dataclass(frozen=True)
class Readout(GradientReadout):
    """One setting per stage; by default the last one."""

    def localize(self, features_BCHW: Tensor, gradients_BCHW: Tensor, scores_B: Tensor) -> Tensor:
        return position_scores(features_BCHW, gradients_BCHW)


def position_scores(features_BCHW: Tensor, gradients_BCHW: Tensor) -> Tensor:
    """ReLU(Σ_c G_c Z_c), B×H×W."""
    return F.relu((gradients_BCHW * features_BCHW).sum(1))
