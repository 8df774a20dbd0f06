"""MsCAM: the sum of a photograph's maps at several scales, over any other readout.

Multi-scale part of mLDFR (https://github.com/wangbo2016/wsol-mLDFR-2020): a network finds the parts of an object in a
large image and the whole of it in a small one; added up, their maps cover the object. Each scale is the photograph as
it is stored, resized once with its aspect kept, and each map is enlarged once, to the photograph's size. Raw maps are
added, as in that code: no scale is normalised before. What the network is trained with is smaller than most
photographs: enlarged images of that size would show it no more than it has seen.

Segmentation seeds (BAS, B-CAM) take scales of the photograph's own size and add the maps of its mirror image. Their
code resizes bicubically, and lays maps out on a canvas whose sides are multiples of 16 pixels, cut to the photograph:
a network with a stride of 16 rounds its map up, so that its cells have 16 pixels there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsol_models._layers import LocalizationMethod, Output, at_least_float32
from wsol_models._lookup import unknown
from wsol_models.readouts import LocalizationReadout, Setting, enlarged, readout

BASES = ("network", "stored")
RESAMPLING = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Readout(LocalizationReadout):
    """One setting per subset of the scales and setting of the readout below: "1+1.5+2/cam". Maps have the photographs'
    size.

    scales: of the base. base: "network", whose images' short side the photograph's becomes, or "stored", its own size.
    mirror: add the map of the mirrored photograph at every scale, mirrored back. resampling: of photographs.
    canvas: pixels of which the canvas of the maps has a multiple. over: the readout below. options: its fields.
    """

    needs_stored = True

    scales: Sequence[float] = (1.0, 1.5, 2.0)
    base: str = "network"
    mirror: bool = False
    resampling: str = "bilinear"
    canvas: int = 1
    over: str = "cam"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scales or not all(isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError(f"scales must be one or more finite numbers > 0 but is {self.scales}.")
        if self.canvas < 1:
            raise ValueError(f"canvas must be at least 1 pixel but is {self.canvas}.")
        for name, known in (("base", BASES), ("resampling", RESAMPLING)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if readout(self.over, **self.options).needs_stored:
            raise ValueError(f"A pyramid stands over a readout of one image but over is {self.over!r}.")

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        return list(self._parts(method))

    def search(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        output: Output | None = None,
        stored_BCHW: Tensor | None = None,
    ) -> Iterator[tuple[Setting, Tensor]]:
        """One pass per scale: the searches below run side by side, and one map per view is held at a time."""
        stored_BCHW = photographs(stored_BCHW)
        subsets = self._subsets()
        views = self._views(subsets[-1])
        below = readout(self.over, **self.options)
        searches = [
            below.coarse_search(method, self._seen(stored_BCHW, images_BCHW, *view), classes_B) for view in views
        ]
        for found in zip(*searches, strict=True):
            restored = {v: self._restore(m_BHW, stored_BCHW, v[1]) for v, (_, m_BHW) in zip(views, found, strict=True)}
            for subset in subsets:
                yield named(subset, found[0][0]), total([restored[view] for view in self._views(subset)])

    def coarse_maps(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        setting: Setting,
        output: Output | None = None,
        stored_BCHW: Tensor | None = None,
    ) -> Tensor:
        self.check(method, setting)
        stored_BCHW = photographs(stored_BCHW)
        subset, setting_below = self._parts(method)[setting]
        below = readout(self.over, **self.options)
        restored = []
        for view in self._views(subset):
            seen_BCHW = self._seen(stored_BCHW, images_BCHW, *view)
            maps_BHW = below.coarse_maps(method, seen_BCHW, classes_B, setting_below)
            restored.append(self._restore(maps_BHW, stored_BCHW, view[1]))
        return total(restored)

    def _seen(self, stored_BCHW: Tensor, images_BCHW: Tensor, scale: float, mirrored: bool) -> Tensor:
        """Photographs as one view has them."""
        side = None if self.base == "stored" else min(images_BCHW.shape[2:])
        size = scaled(stored_BCHW.shape[2:], scale, side)
        return resized(stored_BCHW.flip(-1) if mirrored else stored_BCHW, size, self.resampling)

    @torch.no_grad()
    def _restore(self, maps_BHW: Tensor, stored_BCHW: Tensor, mirrored: bool) -> Tensor:
        """Maps of a view on the pixels of the photographs."""
        maps_BHW = at_least_float32(maps_BHW.flip(-1) if mirrored else maps_BHW)
        height, width = stored_BCHW.shape[2:]
        canvas = [ceil(side / self.canvas) * self.canvas for side in (height, width)]
        return enlarged(maps_BHW, canvas)[..., :height, :width]

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


def photographs(stored_BCHW: Tensor | None) -> Tensor:
    """Raises `ValueError` if there are none."""
    if stored_BCHW is None:
        raise ValueError("Readout 'pyramid' reads photographs as they are stored: hand them in as stored_BCHW.")
    return stored_BCHW


def scaled(size: Sequence[int], scale: float, side: int | None) -> list[int]:
    """Height and width of a photograph of `size` at a scale of its own, or of a short side.

    Halves go to the even number (so do the papers': 448 for 1.5 x 299); the long side is cut to whole pixels, as
    torchvision's Resize does.
    """
    if side is None:
        return [max(1, round(scale * length)) for length in size]
    short = max(1, round(scale * side))
    return [short if length == min(size) else int(short * length / min(size)) for length in size]


def resized(images_BCHW: Tensor, size: list[int], resampling: str) -> Tensor:
    """As PIL resizes, which widens its filter where it shrinks."""
    if list(images_BCHW.shape[2:]) == size:
        return images_BCHW
    return F.interpolate(images_BCHW, size, mode=resampling, align_corners=False, antialias=True)


def total(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(maps)).sum(0)
