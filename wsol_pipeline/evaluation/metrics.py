"""Localization counts as a `torchmetrics.Metric`: maps, true boxes and masks in, hits and pixels per threshold out."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wsol_pipeline.evaluation.contours import boxes_per_mask, ious_per_mask
from wsol_pipeline.evaluation.counts import BOXES, SCORE_UNIT, Counts, ImageHits
from wsol_pipeline.evaluation.levels import level_image, num_masks
from wsol_pipeline.evaluation.maps import competing_map, normalised_map
from wsol_pipeline.evaluation.masks import NUM_LEVELS, count_pixels
from wsol_pipeline.evaluation.otsu import OTSU, Threshold, otsu_threshold
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.evaluation.segmentation import count_classes
from wsol_pipeline.evaluation.selection import best

Size = tuple[int, int]  # width, height


def ious_per_threshold(
    raw_HW: NDArray[Any], truth_N4: NDArray[np.float64], protocol: Protocol, size_wh: Size | None = None
) -> NDArray[np.float64]:
    """Best IoU of the boxes of a raw map with any of the true boxes (evaluation pixels), float64 [thresholds].

    `size_wh` is that of the stored image, which some protocols measure in.
    """
    return _ious_of_map(normalised_map(raw_HW, protocol, size_wh), truth_N4, protocol)


def _ious_of_map(
    map_HW: NDArray[np.floating], truth_N4: NDArray[np.float64], protocol: Protocol
) -> NDArray[np.float64]:
    if protocol.masks == "background":  # at τ the object is what lies below: 1 - map > 1 - τ, nothing of it at τ = 0
        inverse_T = _ious_of_map(1 - map_HW, truth_N4, replace(protocol, masks="object"))
        return np.append(0.0, inverse_T[:0:-1])
    levels_HW, mask_of_threshold = level_image(map_HW, protocol)
    return ious_per_mask(levels_HW, num_masks(protocol), truth_N4, protocol.box_rule)[mask_of_threshold]


def predicted_box(
    raw_HW: NDArray[Any], threshold: Threshold, protocol: Protocol, size_wh: Size | None = None
) -> NDArray[np.int32]:
    """The largest box `x0y0x1y1` of a raw map at one threshold, in evaluation pixels; for predictions and pictures."""
    levels_HW, mask = _levels_at(raw_HW, threshold, protocol, size_wh)
    return boxes_per_mask(levels_HW, num_masks(protocol), protocol.box_rule)[mask]


def predicted_box_and_iou(
    raw_HW: NDArray[Any], truth_N4: NDArray[np.float64], threshold: Threshold, protocol: Protocol, size_wh: Size
) -> tuple[NDArray[np.int32], float]:
    """`predicted_box`, and the IoU that counts: of all boxes at that threshold where the protocol accepts several."""
    levels_HW, mask = _levels_at(raw_HW, threshold, protocol, size_wh)
    box = boxes_per_mask(levels_HW, num_masks(protocol), protocol.box_rule)[mask]
    return box, float(ious_per_mask(levels_HW, num_masks(protocol), truth_N4, protocol.box_rule)[mask])


def all_boxes(
    raw_HW: NDArray[Any], threshold: Threshold, protocol: Protocol, size_wh: Size | None = None
) -> NDArray[np.int32]:
    """Every box `x0y0x1y1` of a raw map that counts at one threshold, in evaluation pixels, int32 [N, 4].

    All contours, holes' too, or components, where the protocol accepts several; else the one of `predicted_box`, which
    an empty mask has too.
    """
    mask_HW = mask_at(raw_HW, threshold, protocol, size_wh)
    if not mask_HW.any() or protocol.box_rule not in ("all_contours", "components"):
        return predicted_box(raw_HW, threshold, protocol, size_wh)[None]
    if protocol.box_rule == "components":
        x, y, width, height, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=4)[2][1:].T
        return np.stack([x, y, x + width - 1, y + height - 1], axis=1).astype(np.int32)
    contours = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    x, y, width, height = np.array([cv2.boundingRect(contour) for contour in contours]).T
    last_y, last_x = np.array(mask_HW.shape) - 1
    return np.stack([x, y, np.minimum(x + width, last_x), np.minimum(y + height, last_y)], axis=1).astype(np.int32)


def mask_at(
    raw_HW: NDArray[Any], threshold: Threshold, protocol: Protocol, size_wh: Size | None = None
) -> NDArray[np.bool_]:
    """The pixels of a raw map that are the object at one threshold, [H, W] in the size of the evaluation."""
    levels_HW, mask = _levels_at(raw_HW, threshold, protocol, size_wh)
    return levels_HW > mask


def _levels_at(
    raw_HW: NDArray[Any], threshold: Threshold, protocol: Protocol, size_wh: Size | None
) -> tuple[NDArray[Any], int]:
    """The level image of a raw map, and the mask that is read at a threshold, or by Otsu's rule."""
    map_HW = normalised_map(raw_HW, protocol, size_wh)
    at = otsu_threshold(map_HW, protocol) if threshold == OTSU else float(threshold)
    levels_HW, mask_of_threshold = level_image(map_HW, protocol)
    return levels_HW, int(mask_of_threshold[int(np.argmin(np.abs(protocol.thresholds - at)))])


def found(ious_T: NDArray[np.float64], protocol: Protocol) -> NDArray[np.bool_]:
    """Which IoUs count as a hit at each δ of the protocol, bool [I, T]."""
    deltas_I1 = np.asarray(protocol.ious)[:, None]
    return ious_T > deltas_I1 if protocol.strict else ious_T >= deltas_I1


class LocalizationCounts(Metric):
    """Counts for every IoU and threshold, for any number of readout settings at once.

    All states are sums of integers, so they merge over batches and workers to the last count. With `keep_images` (for
    one setting) those of each image stay too: 375 bytes of hits, and 10 kB of pixels where there are masks.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    image_bits: list[Tensor]
    image_ranks: list[Tensor]
    image_mask_pixels: list[Tensor]
    image_mask_levels: list[Tensor]
    image_scores: list[Tensor]
    mask_pixels: Tensor
    mask_levels: Tensor

    def __init__(
        self,
        protocol: Protocol,
        num_settings: int = 1,
        keep_images: bool = False,
        settings: Sequence[Any] = (),
        masks: bool = False,
        num_classes: int = 0,
        rule: str = "",
        truth: str = BOXES,
        keep_scores: bool = False,
    ) -> None:
        """`settings` are the plain values of the settings, where they have any; else they are numbered.

        masks: count pixels against masks too; of `num_classes` if they are class masks. rule: `OTSU` cuts each map by
        it, so that all thresholds count the same. truth: what the boxes are, see `Counts`. keep_scores: with
        `keep_images`, also each image's IoU at every threshold.
        """
        super().__init__()
        self.protocol = protocol
        self.settings = tuple(settings) or tuple(range(num_settings))
        self.keep_images, self.num_classes, self.rule = keep_images, num_classes, rule
        self.truth, self.keep_scores = truth, keep_images and keep_scores
        self.masks = masks and protocol.masks in ("object", "background")
        self.class_masks = masks and protocol.masks == "classes"
        if keep_images and len(self.settings) > 1:
            raise ValueError(f"keep_images is for one setting but there are {len(self.settings)}.")
        num, num_ious = len(self.settings), len(protocol.ious)
        for name in _HITS:
            self._add_sum(name, num, num_ious, protocol.num_thresholds)
        for name in _CLASSES:
            self._add_sum(name, num)
        self._add_sum("any_hits", num, num_ious)
        self._add_sum("scores", num, protocol.num_thresholds)
        self._add_sum("mask_pixels", num, 2, len(protocol.mask_cuts))
        self._add_sum("mask_levels", num, 2, NUM_LEVELS)
        if self.class_masks:
            self._add_sum("class_pixels", num, 3, num_classes + 1, len(protocol.mask_cuts))
        for name in ("image_bits", "image_ranks", "image_mask_pixels", "image_mask_levels", "image_scores"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """torchmetrics makes a single value 0-dim; ours stay [S]."""
        computed = super()._wrap_compute(compute)

        @functools.wraps(computed)
        def per_setting() -> dict[str, Tensor]:
            return {name: value.reshape(len(self.settings)) for name, value in computed().items()}

        return per_setting

    def _add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        setting: int,
        maps_BHW: Tensor | ArrayLike,
        boxes: Sequence[NDArray[np.float64]],
        class_rank_B: ArrayLike,
        masks: Sequence[NDArray[np.uint8]] | None = None,
        sizes: Sequence[Size | None] | None = None,
        pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    ) -> None:
        """Count a batch at one setting.

        `maps_BHW` are raw maps of the true classes, of any size, or masks (see `normalised_map`); `boxes` the true ones
        in evaluation pixels, [N, 4] per image; `class_rank_B` the rank of the true class among the predicted ones, 0 =
        first; `masks` [H, W] of the evaluation's size, 1 inside, 0 outside, 255 for neither; `sizes` of the stored
        images. `pairs` are the image and the class of each map, where class masks are scored.
        """
        ranks_B = torch.as_tensor(class_rank_B).cpu().numpy()
        sizes = [None] * len(ranks_B) if sizes is None else sizes
        scored = in_threads(self._scored, plain(maps_BHW), sizes, boxes)
        maps = [map_HW for map_HW, _ in scored]
        self.update_ious(setting, [ious_T for _, ious_T in scored], ranks_B)
        if self.masks or self.class_masks:
            self.update_masks(setting, maps, masks, pairs)

    def _scored(
        self, raw_HW: NDArray[Any], size_wh: Size | None, truth_N4: ArrayLike
    ) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
        """A normalised map, and the best IoU per threshold if boxes count."""
        make = competing_map if self.class_masks else normalised_map
        map_HW = make(raw_HW, self.protocol, size_wh)
        if self.rule:
            map_HW = mask_at(raw_HW, self.rule, self.protocol, size_wh).astype(np.float64)
        if not self.protocol.ious:
            return map_HW, np.zeros(self.protocol.num_thresholds)
        return map_HW, _ious_of_map(map_HW, np.asarray(truth_N4, np.float64), self.protocol)

    def update_ious(self, setting: int, ious: Sequence[NDArray[np.float64]], ranks_B: NDArray[np.int64]) -> None:
        """Count a batch whose IoUs per threshold are known, [T] per image."""
        hits_BIT = np.stack([found(ious_T, self.protocol) for ious_T in ious])
        everyone, first, first_five = np.ones(len(ranks_B), bool), ranks_B < 1, ranks_B < 5
        for name, counted_B in zip(_HITS, (everyone, first, first_five), strict=True):
            self._add(name, setting, hits_BIT[counted_B].sum(0))
        for name, counted_B in zip(_CLASSES, (everyone, first, first_five), strict=True):
            self._add(name, setting, counted_B.sum())
        self._add("any_hits", setting, hits_BIT.any(-1).sum(0))
        self._add("scores", setting, in_units(np.stack(ious)).sum(0))
        if self.keep_images:
            self.image_bits.append(torch.from_numpy(np.packbits(hits_BIT, axis=-1)).to(self.device))
            self.image_ranks.append(torch.from_numpy(ranks_B.astype(np.int64)).to(self.device))
        if self.keep_scores:
            self.image_scores.append(torch.from_numpy(np.stack(ious)).to(self.device))

    def update_masks(
        self,
        setting: int,
        maps: Sequence[NDArray[np.floating]],
        masks: Sequence[NDArray[np.uint8]] | None,
        pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    ) -> None:
        """Count the pixels of a batch of normalised maps against masks, or together against class masks."""
        if masks is None or (self.class_masks and pairs is None):
            raise ValueError("Masks are to be counted but they, or the pairs that share one, are missing.")
        if self.masks:
            self._update_pixels(setting, maps, masks)
        elif pairs is not None:
            self._update_classes(setting, maps, masks, *pairs)

    def _update_pixels(
        self, setting: int, maps: Sequence[NDArray[np.floating]], masks: Sequence[NDArray[np.uint8]]
    ) -> None:
        for pixels, levels in in_threads(self._counted_pixels, maps, masks):
            self._add("mask_pixels", setting, pixels)
            self._add("mask_levels", setting, levels)
            if self.keep_images:
                self.image_mask_pixels.append(torch.from_numpy(pixels[None].astype(np.int32)).to(self.device))
                self.image_mask_levels.append(torch.from_numpy(levels[None].astype(np.int32)).to(self.device))

    def _counted_pixels(self, map_HW: NDArray[np.floating], mask_HW: NDArray[np.uint8]) -> Any:
        if map_HW.shape != mask_HW.shape:
            raise ValueError(f"A mask must have its map's size {map_HW.shape} but has {mask_HW.shape}.")
        return count_pixels(map_HW, mask_HW, self.protocol.mask_cuts)

    def _update_classes(
        self,
        setting: int,
        maps: Sequence[NDArray[np.floating]],
        masks: Sequence[NDArray[np.uint8]],
        image_of: NDArray[np.int64],
        class_of: NDArray[np.int64],
    ) -> None:
        """Count the pixels of each image, whose maps come one after the other and each with its class mask."""
        for image in np.unique(image_of):
            at = np.flatnonzero(image_of == image).tolist()
            maps_CHW = np.stack([maps[pair] for pair in at])
            grid = self.protocol.thresholds
            pixels = count_classes(maps_CHW, class_of[at], masks[at[0]], grid, self.num_classes)
            self._add("class_pixels", setting, pixels)

    def _add(self, name: str, setting: int, counts: ArrayLike) -> None:
        getattr(self, name)[setting] += torch.as_tensor(counts, dtype=torch.int64).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Each metric in percent, per setting [S], at the thresholds best for these very images."""
        counts = replace(self.counts(), image_hits=None)  # whose classes only the caller of `counts` knows
        return {name: torch.from_numpy(values_S) for name, values_S in best(counts).items()}

    def counts(self, ids: Sequence[str] = (), labels: Sequence[int] = ()) -> Counts:
        """The states as a plain record; `ids` and true classes of the images, where their hits are kept."""
        scores = ("scores",) if self.protocol.ious else ()
        names = (*_HITS, *_CLASSES, "any_hits", *scores, *self._pixel_states())
        arrays = {name: getattr(self, name).cpu().numpy().copy() for name in names}
        axes = (self.protocol.name, self.settings, self.protocol.ious, self.protocol.thresholds)
        kept = self._kept(tuple(ids), np.asarray(labels, np.int64)) if self.keep_images else None
        return Counts(*axes, **arrays, image_hits=kept, truth=self.truth)

    def _pixel_states(self) -> tuple[str, ...]:
        if self.class_masks:
            return ("class_pixels",)
        return ("mask_pixels", "mask_levels") if self.masks else ()

    def _kept(self, ids: tuple[str, ...], labels_N: NDArray[np.int64]) -> ImageHits:
        ious, thresholds = len(self.protocol.ious), -(-self.protocol.num_thresholds // 8)
        shapes: list[tuple[Any, tuple[int, ...], Any]] = [
            (self.image_bits, (ious, thresholds), np.uint8),
            (self.image_ranks, (), np.int64),
        ]
        if self.masks:
            shapes.append((self.image_mask_pixels, (2, len(self.protocol.mask_cuts)), np.int32))
            shapes.append((self.image_mask_levels, (2, NUM_LEVELS), np.int32))
        # a rank may have had no rows
        bits, *rest = (
            dim_zero_cat(state).cpu().numpy() if len(state) else np.empty((0, *shape), dtype)
            for state, shape, dtype in shapes
        )
        scores = dim_zero_cat(self.image_scores).cpu().numpy() if self.image_scores else None
        return replace(ImageHits(ids, labels_N, bits, *rest), scores=scores)


def in_units(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Scores as whole numbers of `SCORE_UNIT`."""
    return np.rint(scores / SCORE_UNIT).astype(np.int64)


_HITS = ("hits", "top1_hits", "top5_hits")
_CLASSES = ("images", "top1", "top5")


def in_threads(function: Callable[..., Any], *columns: Sequence[Any] | NDArray[Any]) -> list[Any]:
    """`function` of each row of `columns`, in as many threads as torch has: OpenCV and our kernels free the GIL."""
    rows = zip(*columns, strict=True)
    if (threads := torch.get_num_threads()) == 1:
        return [function(*row) for row in rows]
    return list(_pool(threads).map(lambda row: function(*row), rows))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, for a search calls it once a setting; what runs in it calls for no other."""
    return ThreadPoolExecutor(threads, "scoring")


def plain(maps_BHW: Tensor | ArrayLike) -> NDArray[Any]:
    """Maps as an array; those of half types as numbers that numpy has."""
    if not isinstance(maps_BHW, Tensor):
        return np.asarray(maps_BHW)
    maps_BHW = maps_BHW.detach().cpu()
    return (maps_BHW.float() if maps_BHW.dtype in (torch.bfloat16, torch.float16) else maps_BHW).numpy()
