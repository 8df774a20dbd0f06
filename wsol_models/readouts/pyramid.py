"""MsCAM: the sum of one image's maps at several scales, over any other readout.

Multi-scale part of mLDFR (https://github.com/wangbo2016/wsol-mLDFR-2020): a network finds the parts of an object in a
large image and the whole of it in a small one; added up, their maps cover the object. Raw maps are added, as in that
code: no scale is normalised before.

A readout is handed images of one size, so the common size is theirs: each scale resizes them, and its maps are brought
back to their size. A protocol's images are square; the paper resizes the short side and keeps the aspect, which a
caller gets who hands in uncropped images whose short side is the network's input.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsol_models._layers import LocalizationMethod, Output
from wsol_models.readouts import LocalizationReadout, Setting, readout


@dataclass(frozen=True)
class Readout(LocalizationReadout):
    """One setting per subset of the scales and setting of the readout below: "1+1.5+2/cam". Maps have the images' size.

    scales: of an image's sides. over: the readout below. options: its fields.
    """

    scales: Sequence[float] = (1.0, 1.5, 2.0)
    over: str = "cam"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scales or not all(isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError(f"scales must be one or more finite numbers > 0 but is {self.scales}.")
        readout(self.over, **self.options)

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        return list(self._parts(method))

    def search(
        self, method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor, output: Output | None = None
    ) -> Iterator[tuple[Setting, Tensor]]:
        """One pass per scale: the searches below run side by side, and one map per scale is held at a time."""
        subsets = self._subsets()
        scales = subsets[-1]
        below = readout(self.over, **self.options)
        searches = [
            below.search(method, rescaled(images_BCHW, scale), classes_B, output if scale == 1 else None)
            for scale in scales
        ]
        for found in zip(*searches, strict=True):
            enlarged = {s: enlarge(maps_BHW, images_BCHW) for s, (_, maps_BHW) in zip(scales, found, strict=True)}
            for subset in subsets:
                yield named(subset, found[0][0]), total([enlarged[scale] for scale in subset])

    def maps(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        setting: Setting,
        output: Output | None = None,
    ) -> Tensor:
        self.check(method, setting)
        subset, setting_below = self._parts(method)[setting]
        below = readout(self.over, **self.options)
        maps = [
            below.maps(method, rescaled(images_BCHW, scale), classes_B, setting_below, output if scale == 1 else None)
            for scale in subset
        ]
        return total([enlarge(maps_BHW, images_BCHW) for maps_BHW in maps])

    def _parts(self, method: LocalizationMethod) -> dict[Setting, tuple[tuple[float, ...], Setting]]:
        """Subset of scales and setting below, by the name of a setting."""
        below = readout(self.over, **self.options).settings(method)
        return {named(subset, setting): (subset, setting) for setting in below for subset in self._subsets()}

    def _subsets(self) -> list[tuple[float, ...]]:
        """All but the empty one, from single scales to the whole set."""
        scales = sorted(set(self.scales))
        return [subset for size in range(1, len(scales) + 1) for subset in combinations(scales, size)]


def named(scales: Sequence[float], setting: Setting) -> str:
    return f"{'+'.join(f'{scale:g}' for scale in scales)}/{setting}"


def rescaled(images_BCHW: Tensor, scale: float) -> Tensor:
    """Images of `scale` times their size in whole pixels; themselves at scale 1."""
    if scale == 1:
        return images_BCHW
    size = [round(scale * side) for side in images_BCHW.shape[2:]]
    return F.interpolate(images_BCHW, size, mode="bilinear", align_corners=False, antialias=True)


@torch.no_grad()
def enlarge(maps_BHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Maps on the pixels of the images."""
    size = list(images_BCHW.shape[2:])
    return F.interpolate(maps_BHW[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def total(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(maps)).sum(0)
