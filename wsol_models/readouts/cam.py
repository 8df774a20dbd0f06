"""CAM: the linear head applied at every position (Zhou et al., CVPR 2016, https://arxiv.org/abs/1512.04150, Eq. 2).

As https://github.com/clovaai/wsolevaluation: the mean over channels, not the sum, and without the bias; neither changes
a min-max normalised map. Works on every method whose last layer is linear.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol_models._layers import LocalizationMethod, Output, at_least_float32
from wsol_models.readouts import LocalizationReadout, Setting, forward, require


@dataclass(frozen=True)
class Readout(LocalizationReadout):
    """One setting: "cam"."""

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        require("cam", "a linear head", method)
        return ["cam"]

    def passes(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        settings: Sequence[Setting],
        output: Output | None,
    ) -> tuple[Tensor, Tensor]:
        output = output or forward(method, images_BCHW)
        return output.features_BCHW, method.head_weight_KC

    def read(self, passes: tuple[Tensor, Tensor], classes_B: Tensor, setting: Setting) -> Tensor:
        features_BCHW, weight_KC = passes
        return class_activation_maps(features_BCHW, weight_KC, classes_B)


@torch.no_grad()
def class_activation_maps(features_BCHW: Tensor, weight_KC: Tensor, classes_B: Tensor) -> Tensor:
    """mean_c(weight[y, c]·features[c]) for the class y of each image, B×H×W, float32 at least."""
    weighted_BHW = torch.einsum("bchw,bc->bhw", features_BCHW, weight_KC[classes_B].to(features_BCHW.dtype))
    return at_least_float32(weighted_BHW) / features_BCHW.shape[1]
