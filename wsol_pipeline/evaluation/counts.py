"""Hits per threshold as plain arrays: all that a choice or a number needs from a split, additive over images."""

import base64
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.errors import UsageError

MEAN_IOU, BOXES = "mean_iou", "boxes"


@dataclass(frozen=True, eq=False)
class ImageHits:
    """Hits of every single image at one readout setting, for bootstraps and means over classes.

    n images (pairs of image and class, of multi-label data), I IoUs, T thresholds.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]  # [n], the true class
    bits: NDArray[np.uint8]  # [n, I, ceil(T / 8)], from `np.packbits`
    ranks: NDArray[np.int64]  # [n], rank of the true class, 0 = predicted first
    mask_pixels: NDArray[np.int64] | None = None  # [n, 2, T + 1], as in `Counts`, where masks are counted
    mask_levels: NDArray[np.int64] | None = None  # [n, 2, 256]
    scores: NDArray[np.float64] | None = None  # [n, T], as in `Counts`, where they are the objective

    def __add__(self, other: "ImageHits") -> "ImageHits":
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        ids = self.ids + other.ids
        return ImageHits(ids, **{n: _both(np.concatenate, pair) for n, pair in pairs.items() if n != "ids"})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ids"}
        return {"ids": list(self.ids)} | {name: _pack(array) for name, array in arrays.items() if array is not None}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "ImageHits":
        return ImageHits(tuple(data["ids"]), **{name: _unpack(data[name]) for name in data if name != "ids"})


SCORE_UNIT = 2.0**-44  # sums of scores are whole numbers of these: exact in any order, up to half a million images


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts over a set of images: S readout settings, I IoUs, T thresholds. Add them to join disjoint sets.

    Whole numbers, until `selection` weighs the images. `truth` says what the images were compared with: their "boxes",
    other boxes ("pseudo" and the SHA-256 of these), or none, by the name of what scores them instead. Counts of
    different truth never add up, compare or share a column.
    """

    protocol: str
    settings: tuple[Any, ...]  # plain values, one per setting
    ious: tuple[float, ...]
    thresholds: NDArray[np.float64]  # [T]
    hits: NDArray[Any]  # [S, I, T]: images whose best IoU reaches δ at τ
    top1_hits: NDArray[Any]  # [S, I, T]: of those, with the true class predicted first
    top5_hits: NDArray[Any]  # [S, I, T]: of those, with the true class among the first five
    top1: NDArray[Any]  # [S]: images with the true class predicted first, hit or not
    top5: NDArray[Any]  # [S]
    images: NDArray[Any]  # [S]
    image_hits: ImageHits | None = None
    any_hits: NDArray[Any] | None = None  # [S, I]: images whose best IoU reaches δ at any τ
    mask_pixels: NDArray[Any] | None = None  # [S, 2, T + 1]: pixels outside, inside of objects, from each τ (and 1) on
    mask_levels: NDArray[Any] | None = None  # [S, 2, 256]: the same per int(255 * value)
    class_pixels: NDArray[Any] | None = None  # [S, 3, K + 1, T + 1]: of `segmentation.count_classes`
    shrunk: NDArray[Any] | None = None  # []: photographs over the limit of pixels, where a readout saw stored ones
    scores: NDArray[Any] | None = None  # [S, T]: the sum over images of `score`, in `SCORE_UNIT`s
    score: str = MEAN_IOU
    truth: str = BOXES

    def __add__(self, other: "Counts") -> "Counts":
        mine, theirs = self._axes(), other._axes()
        if mine != theirs:
            raise UsageError(
                f"Only counts of one protocol, grid, list of settings and truth add up, not {mine} and {theirs}."
            )
        kept = self.image_hits + other.image_hits if self.image_hits and other.image_hits else None
        sums = {name: _both(sum, (getattr(self, name), getattr(other, name))) for name in _ARRAYS}
        return replace(self, **sums, image_hits=kept)

    def at(self, setting: Any) -> "Counts":
        """The counts of one setting alone."""
        s = self.settings.index(setting)
        arrays = {name: getattr(self, name) for name in _ARRAYS if name != "shrunk"}
        return replace(
            self, settings=(setting,), **{name: of[s : s + 1] for name, of in arrays.items() if of is not None}
        )

    def summed(self, total: Callable[[NDArray[Any]], NDArray[Any]]) -> "Counts":
        """These counts with the `total` of each array in its place; the hits of single images stay as they are."""
        totals: dict[str, Any] = {name: total(array) for name in _ARRAYS if (array := getattr(self, name)) is not None}
        return replace(self, **totals)

    def _axes(self) -> tuple[Any, ...]:
        return self.protocol, self.settings, self.ious, self.thresholds.tobytes(), self.score, self.truth

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; the hits of single images stay behind."""
        axes = {"protocol": self.protocol, "settings": list(self.settings), "ious": list(self.ious)}
        axes |= {"score": self.score, "truth": self.truth}
        arrays = {name: getattr(self, name) for name in ("thresholds", *_ARRAYS)}
        return axes | {name: _pack(array) for name, array in arrays.items() if array is not None}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Counts":
        settings = tuple(tuple(s) if isinstance(s, list) else s for s in data["settings"])  # JSON has no tuples
        values: dict[str, Any] = {name: _unpack(data[name]) for name in ("thresholds", *_ARRAYS) if name in data}
        values |= {name: data[name] for name in ("score", "truth") if name in data}
        return Counts(data["protocol"], settings, tuple(data["ious"]), **values, image_hits=None)


_ARRAYS = (
    "hits", "top1_hits", "top5_hits", "top1", "top5", "images", "any_hits", "mask_pixels", "mask_levels",
    "class_pixels", "shrunk", "scores",
)  # fmt: skip


def _both(join: Any, pair: tuple[Any, Any]) -> Any:
    """`join(pair)`, or None where one is missing."""
    return None if pair[0] is None or pair[1] is None else join(pair)


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    text = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode()
    return {"shape": list(array.shape), "dtype": array.dtype.str, "zlib_base64": text}


def _unpack(data: Mapping[str, Any]) -> NDArray[Any]:
    raw = zlib.decompress(base64.b64decode(data["zlib_base64"]))
    return np.frombuffer(raw, np.dtype(data["dtype"])).reshape(data["shape"])
