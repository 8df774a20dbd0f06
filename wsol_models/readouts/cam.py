"""CAM: the linear head applied at every position (Zhou et al., CVPR 2016, https://arxiv.org/abs/1512.04150, Eq. 2).

As https://github.com/clovaai/wsolevaluation: the mean over channels, not the sum, and without the bias; neither changes
a min-max normalised map. Works on every method whose last layer is linear.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol_models._layers import LocalizationMethod, Output
from wsol_models.readouts import Setting, forward, require, require_setting


@dataclass(frozen=True)
class Readout:
    """One setting: "cam"."""

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        require("cam", "a linear head", method)
        return ["cam"]

    def search(
        self, method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor, output: Output | None = None
    ) -> Iterator[tuple[Setting, Tensor]]:
        for setting in self.settings(method):
            yield setting, self.maps(method, images_BCHW, classes_B, setting, output)

    def maps(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        setting: Setting,
        output: Output | None = None,
    ) -> Tensor:
        require_setting("cam", setting, self.settings(method))
        output = output or forward(method, images_BCHW)
        return class_activation_maps(output.features_BCHW, method.head_weight_KC, classes_B)


@torch.no_grad()
def class_activation_maps(features_BCHW: Tensor, weight_KC: Tensor, classes_B: Tensor) -> Tensor:
    """mean_c(weight[y, c]·features[c]) for the class y of each image, B×H×W, float32."""
    weighted_BHW = torch.einsum("bchw,bc->bhw", features_BCHW, weight_KC[classes_B].to(features_BCHW.dtype))
    return weighted_BHW.float() / features_BCHW.shape[1]
