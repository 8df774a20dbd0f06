"""A threshold for each image: a method's own map, 0 where it is below the threshold that suppresses its class best.

From the extension of BAS (https://arxiv.org/abs/2309.12943, Table 15). A threshold t cuts the mask m = (map >= t),
which takes the place of M_f in the losses of an image: L_bas(m) + L_ac(m) is how much of the class is left outside of
the mask, and how large the mask is. The threshold with the lowest sum wins, of equal ones the lowest.

No code was released: that maps are divided by their maximum before, as seeds are, is our reading. What is left of a map
keeps its values, so that classes still compete; one threshold for all images, 0 included, is solved on top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsol_models._layers import LocalizationMethod, Output
from wsol_models.bas import background_activation_suppression
from wsol_models.readouts import LocalizationReadout, Setting, forward, require
from wsol_models.readouts.topk import own_maps, rows


@dataclass(frozen=True)
class Readout(LocalizationReadout):
    """One setting: "suppression". steps: thresholds tried, evenly from 0 on; each costs a pass of what follows F."""

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1 threshold but is {self.steps}.")

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        require("suppression", "background suppression", method)
        return ["suppression"]

    @torch.no_grad()
    def passes(
        self,
        method: Any,
        images_BCHW: Tensor,
        classes_B: Tensor,
        settings: Sequence[Setting],
        output: Output | None,
    ) -> Tensor:
        """The maps, cut."""
        output = output or forward(method, images_BCHW)
        maps_BKHW = own_maps(output)
        maps_BHW = maps_BKHW[rows(maps_BKHW), classes_B].float()
        maps_BHW = maps_BHW / maps_BHW.amax((1, 2), keepdim=True)
        features_BCHW, _ = method.F1(images_BCHW, ())
        scores = []
        for step in range(self.steps):
            masks_BHW = (maps_BHW >= step / self.steps).to(features_BCHW.dtype)
            left_BK = method.background_logits(images_BCHW, features_BCHW, masks_BHW)
            scores.append(suppression_and_area(output.logits_BK, left_BK, masks_BHW, classes_B))
        thresholds_B = torch.stack(scores).argmin(0) / self.steps
        return maps_BHW.where(maps_BHW >= thresholds_B[:, None, None], 0)

    def read(self, passes: Tensor, classes_B: Tensor, setting: Setting) -> Tensor:
        return passes


def suppression_and_area(logits_BK: Tensor, left_BK: Tensor, masks_BHW: Tensor, classes_B: Tensor) -> Tensor:
    """L_bas + L_ac of each image, B."""
    each = zip(logits_BK[:, None], left_BK[:, None], classes_B[:, None], strict=True)
    suppression_B = torch.stack([background_activation_suppression(*image) for image in each])
    return suppression_B + masks_BHW.mean((1, 2))
