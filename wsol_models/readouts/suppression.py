"""A threshold for each image: maps of another readout, 0 below the threshold that suppresses their class best.

From the extension of BAS (https://arxiv.org/abs/2309.12943, Section 5.5 and Table 15). A threshold t cuts the mask
m = (map >= t), which takes the place of M_f in the losses of an image: L_bas(m) + L_ac(m) is how much of the class is
left outside of the mask, and how large the mask is. The threshold with the lowest sum wins, of equal ones the lowest.

An image has one threshold: over a pyramid, that of the map that all scales and mirror images add up to. Masks are
brought to the generator's grid, as M_f has it, and judged by the trained network on the image as it is.

No code was released. Our reading: maps are divided by their maximum before, as seeds are; masks are resized to the
nearest pixel. What is left of a map keeps its values, so that classes still compete; one threshold for all images, 0
included, is solved on top.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsol_models._layers import LocalizationMethod, Output
from wsol_models.bas import area_constraint, background_activation_suppression
from wsol_models.readouts import LocalizationReadout, Setting, forward, readout, require

PASSES = 128  # masked images that one pass judges together


@dataclass(frozen=True)
class Readout(LocalizationReadout):
    """The settings of the readout below.

    steps: thresholds tried, evenly from 0 on; each costs a pass of what follows F. over: the readout below, by default
    the map of the class. options: its fields.
    """

    steps: int = 20
    over: str = "own"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1 threshold but is {self.steps}.")
        readout(self.over, **self.options)

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        require("suppression", "background suppression", method)
        return readout(self.over, **self.options).settings(method)

    @property
    def needs_stored(self) -> bool:  # type: ignore[override]
        return readout(self.over, **self.options).needs_stored

    def search(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        output: Output | None = None,
        **stored: Any,
    ) -> Iterator[tuple[Setting, Tensor]]:
        self.settings(method)
        judge = Judge.of(method, images_BCHW, classes_B, output)
        below = readout(self.over, **self.options)
        for setting, maps_BHW in below.search(method, images_BCHW, classes_B, output, **stored):
            yield setting, judge.cut(maps_BHW, self.steps)

    def maps(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        setting: Setting,
        output: Output | None = None,
        **stored: Any,
    ) -> Tensor:
        self.settings(method)
        maps_BHW = readout(self.over, **self.options).maps(method, images_BCHW, classes_B, setting, output, **stored)
        return Judge.of(method, images_BCHW, classes_B, output).cut(maps_BHW, self.steps)

    coarse_search, coarse_maps = search, maps  # the maps below were enlarged already


@dataclass(frozen=True)
class Judge:
    """A trained BAS network before the images, that says how well a mask suppresses their classes."""

    method: Any
    images_BCHW: Tensor
    classes_B: Tensor
    features_BCHW: Tensor
    logits_BK: Tensor

    @staticmethod
    @torch.no_grad()
    def of(method: Any, images_BCHW: Tensor, classes_B: Tensor, output: Output | None) -> "Judge":
        output = output or forward(method, images_BCHW)
        features_BCHW, _ = method.F1(images_BCHW, ())
        return Judge(method, images_BCHW, classes_B, features_BCHW, output.logits_BK)

    def cut(self, maps_BHW: Tensor, steps: int) -> Tensor:
        """Maps over their maximum, each 0 below its best threshold; a map that is nowhere above 0 is 0."""
        maps_BHW = maps_BHW.clamp(min=0)
        maps_BHW = maps_BHW / maps_BHW.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps_BHW.dtype).tiny)
        cuts, at_once = [step / steps for step in range(steps)], max(1, PASSES // len(maps_BHW))
        scores = [self.scores(maps_BHW, cuts[first : first + at_once]) for first in range(0, steps, at_once)]
        thresholds_B = torch.cat(scores).argmin(0) / steps
        return maps_BHW.where(maps_BHW >= thresholds_B[:, None, None], 0)

    @torch.no_grad()
    def scores(self, maps_BHW: Tensor, cuts: Sequence[float]) -> Tensor:
        """L_bas + L_ac of each image with the mask, of any size, of each cut for its M_f, S×B, all in one pass."""
        grid, kind = self.features_BCHW.shape[2:], self.features_BCHW.dtype
        masks = [F.interpolate((maps_BHW >= cut)[:, None].to(kind), grid, mode="nearest-exact")[:, 0] for cut in cuts]
        masks_NHW = torch.cat(masks)
        images_NCHW, features_NCHW, logits_NK, classes_N = (
            of.repeat(len(cuts), *[1] * (of.ndim - 1))
            for of in (self.images_BCHW, self.features_BCHW, self.logits_BK, self.classes_B)
        )
        left_NK = self.method.background_logits(images_NCHW, features_NCHW, masks_NHW)
        suppression_N = background_activation_suppression(logits_NK, left_NK, classes_N, reduction="none")
        return (suppression_N + area_constraint(masks_NHW, reduction="none")).unflatten(0, (len(cuts), -1))
