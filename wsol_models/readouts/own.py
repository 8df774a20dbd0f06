"""The map that a method makes itself, of the class handed in.

From a forward that is told this class: ACoL (https://arxiv.org/abs/1804.06962) erases it for its second classifier, so
the map of a class depends on which one that was. Of methods whose maps don't, it is `topk` with k = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol_models._layers import LocalizationMethod, Output, at_least_float32
from wsol_models.readouts import LocalizationReadout, Setting, require


@dataclass(frozen=True)
class Readout(LocalizationReadout):
    """One setting: "own"."""

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        require("own", "own maps", method)
        return ["own"]

    def passes(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        settings: Sequence[Setting],
        output: Output | None,
    ) -> Tensor:
        with torch.no_grad():
            maps_BKHW = method(images_BCHW, classes_B).maps_BKHW
        return maps_BKHW[torch.arange(maps_BKHW.shape[0], device=maps_BKHW.device), classes_B]

    def read(self, passes: Tensor, classes_B: Tensor, setting: Setting) -> Tensor:
        return at_least_float32(passes)
