"""MsCAM: the sum of one image's maps at several scales, over any other readout.

Multi-scale part of mLDFR (https://github.com/wangbo2016/wsol-mLDFR-2020): a network finds the parts of an object in a
large image and the whole of it in a small one; added up, their maps cover the object. Raw maps are added, as in that
code: no scale is normalised before. Segmentation seeds (BAS, B-CAM) add the maps of the mirrored image to them.

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
from wsol_models.readouts import LocalizationReadout, Setting, enlarged, readout

AS_IT_IS = (1.0, False)  # the view that shares the caller's forward


@dataclass(frozen=True)
class Readout(LocalizationReadout):
    """One setting per subset of the scales and setting of the readout below: "1+1.5+2/cam". Maps have the images' size.

    scales: of an image's sides. mirror: add the map of the mirrored image at every scale, mirrored back. over: the
    readout below. options: its fields.
    """

    scales: Sequence[float] = (1.0, 1.5, 2.0)
    mirror: bool = False
    over: str = "cam"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scales or not all(isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError(f"scales must be one or more finite numbers > 0 but is {self.scales}.")
        readout(self.over, **self.options)

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        return list(self._parts(method))

    def coarse_search(
        self, method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor, output: Output | None = None
    ) -> Iterator[tuple[Setting, Tensor]]:
        """One pass per scale: the searches below run side by side, and one map per view is held at a time."""
        subsets = self._subsets()
        views = self._views(subsets[-1])
        below = readout(self.over, **self.options)
        searches = [
            below.coarse_search(method, seen(images_BCHW, *view), classes_B, output if view == AS_IT_IS else None)
            for view in views
        ]
        for found in zip(*searches, strict=True):
            restored = {v: restore(maps_BHW, images_BCHW, v[1]) for v, (_, maps_BHW) in zip(views, found, strict=True)}
            for subset in subsets:
                yield named(subset, found[0][0]), total([restored[view] for view in self._views(subset)])

    def coarse_maps(
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
        restored = []
        for view in self._views(subset):
            shared = output if view == AS_IT_IS else None
            maps_BHW = below.coarse_maps(method, seen(images_BCHW, *view), classes_B, setting_below, shared)
            restored.append(restore(maps_BHW, images_BCHW, view[1]))
        return total(restored)

    def _parts(self, method: LocalizationMethod) -> dict[Setting, tuple[tuple[float, ...], Setting]]:
        """Subset of scales and setting below, by the name of a setting."""
        below = readout(self.over, **self.options).settings(method)
        return {named(subset, setting): (subset, setting) for setting in below for subset in self._subsets()}

    def _views(self, scales: Sequence[float]) -> list[tuple[float, bool]]:
        """Scale and whether mirrored."""
        return [(scale, mirrored) for scale in scales for mirrored in ((False, True) if self.mirror else (False,))]

    def _subsets(self) -> list[tuple[float, ...]]:
        """All but the empty one, from single scales to the whole set."""
        scales = sorted(set(self.scales))
        return [subset for size in range(1, len(scales) + 1) for subset in combinations(scales, size)]


def named(scales: Sequence[float], setting: Setting) -> str:
    return f"{'+'.join(f'{scale:g}' for scale in scales)}/{setting}"


def seen(images_BCHW: Tensor, scale: float, mirrored: bool) -> Tensor:
    """Images as one view has them."""
    return rescaled(images_BCHW.flip(-1) if mirrored else images_BCHW, scale)


def rescaled(images_BCHW: Tensor, scale: float) -> Tensor:
    """Images of `scale` times their size in whole pixels; themselves at scale 1."""
    if scale == 1:
        return images_BCHW
    size = [round(scale * side) for side in images_BCHW.shape[2:]]
    return F.interpolate(images_BCHW, size, mode="bilinear", align_corners=False, antialias=True)


def restore(maps_BHW: Tensor, images_BCHW: Tensor, mirrored: bool) -> Tensor:
    """Maps of a view on the pixels of the images."""
    maps_BHW = enlarged(maps_BHW, images_BCHW.shape[2:])
    return maps_BHW.flip(-1) if mirrored else maps_BHW


def total(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(maps)).sum(0)
