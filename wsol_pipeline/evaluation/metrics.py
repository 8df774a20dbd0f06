"""Localization counts as a `torchmetrics.Metric`: maps and true boxes in, hits at every IoU and threshold out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wsol_pipeline.evaluation.contours import boxes_per_mask, ious_per_mask
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.evaluation.levels import level_image, num_masks
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.evaluation.selection import best


def ious_per_threshold(
    raw_HW: NDArray[np.floating], truth_N4: NDArray[np.float64], protocol: Protocol
) -> NDArray[np.float64]:
    """Best IoU of the boxes of a raw map with any of the true boxes (evaluation pixels), float64 [thresholds]."""
    levels_HW, mask_of_threshold = level_image(normalised_map(raw_HW, protocol), protocol)
    return ious_per_mask(levels_HW, num_masks(protocol), truth_N4, protocol.box_rule)[mask_of_threshold]


def predicted_box(raw_HW: NDArray[np.floating], threshold: float, protocol: Protocol) -> NDArray[np.int32]:
    """The largest box `x0y0x1y1` of a raw map at one threshold, in evaluation pixels; for predictions and pictures."""
    levels_HW, mask_of_threshold = level_image(normalised_map(raw_HW, protocol), protocol)
    mask = mask_of_threshold[int(np.argmin(np.abs(protocol.thresholds - threshold)))]
    return boxes_per_mask(levels_HW, num_masks(protocol), protocol.box_rule)[mask]


def found(ious_T: NDArray[np.float64], protocol: Protocol) -> NDArray[np.bool_]:
    """Which IoUs count as a hit at each δ of the protocol, bool [I, T]."""
    deltas_I1 = np.asarray(protocol.ious)[:, None]
    return ious_T > deltas_I1 if protocol.strict else ious_T >= deltas_I1


class LocalizationCounts(Metric):
    """Counts for every IoU and threshold, for any number of readout settings at once.

    All states are sums of integers, so they merge over batches and workers to the last count. With `keep_images` (for
    one setting) the hits of each image stay too, a bit each: 375 bytes an image.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    image_bits: list[Tensor]
    image_ranks: list[Tensor]

    def __init__(
        self, protocol: Protocol, num_settings: int = 1, keep_images: bool = False, settings: Sequence[Any] = ()
    ) -> None:
        """`settings` are the plain values of the settings, where they have any; else they are numbered."""
        super().__init__()
        self.protocol = protocol
        self.settings = tuple(settings) or tuple(range(num_settings))
        self.keep_images = keep_images
        if keep_images and len(self.settings) > 1:
            raise ValueError(f"keep_images is for one setting but there are {len(self.settings)}.")
        shape = (len(self.settings), len(protocol.ious), protocol.num_thresholds)
        for name in ("hits", "top1_hits", "top5_hits"):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("top1", "top5", "images"):
            self.add_state(name, torch.zeros(shape[0], dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("image_bits", [], dist_reduce_fx="cat")
        self.add_state("image_ranks", [], dist_reduce_fx="cat")

    def update(
        self, setting: int, maps_BHW: Tensor | ArrayLike, boxes: Sequence[NDArray[np.float64]], class_rank_B: ArrayLike
    ) -> None:
        """Count a batch at one setting.

        `maps_BHW` are raw maps of the true classes, of any size; `boxes` the true ones in evaluation pixels, [N, 4] per
        image; `class_rank_B` the rank of the true class among the predicted ones, 0 = first.
        """
        maps_BHW = maps_BHW.detach().float().cpu().numpy() if isinstance(maps_BHW, Tensor) else np.asarray(maps_BHW)
        ranks_B = torch.as_tensor(class_rank_B).cpu().numpy()
        ious = [
            ious_per_threshold(raw_HW, np.asarray(truth_N4, np.float64), self.protocol)
            for raw_HW, truth_N4 in zip(maps_BHW, boxes, strict=True)
        ]
        self.update_ious(setting, ious, ranks_B)

    def update_ious(self, setting: int, ious: Sequence[NDArray[np.float64]], ranks_B: NDArray[np.int64]) -> None:
        """Count a batch whose IoUs per threshold are known, [T] per image."""
        hits_BIT = np.stack([found(ious_T, self.protocol) for ious_T in ious])
        everyone, first, first_five = np.ones(len(ranks_B), bool), ranks_B < 1, ranks_B < 5
        for name, counted_B in (("hits", everyone), ("top1_hits", first), ("top5_hits", first_five)):
            getattr(self, name)[setting] += torch.from_numpy(hits_BIT[counted_B].sum(0)).to(self.device)
        for name, counted_B in (("images", everyone), ("top1", first), ("top5", first_five)):
            getattr(self, name)[setting] += int(counted_B.sum())
        if self.keep_images:
            self.image_bits.append(torch.from_numpy(np.packbits(hits_BIT, axis=-1)).to(self.device))
            self.image_ranks.append(torch.from_numpy(ranks_B.astype(np.int64)).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Each metric in percent, per setting [S], at the thresholds best for these very images."""
        return {name: torch.from_numpy(values_S) for name, values_S in best(self.counts()).items()}

    def counts(self, ids: Sequence[str] = (), labels: Sequence[int] = ()) -> Counts:
        """The states as a plain record; `ids` and true classes of the images, where their hits are kept."""
        arrays = {
            name: getattr(self, name).cpu().numpy().copy()
            for name in ("hits", "top1_hits", "top5_hits", "top1", "top5", "images")
        }
        kept = None
        if self.keep_images:
            bits, ranks = (dim_zero_cat(state).cpu().numpy() for state in (self.image_bits, self.image_ranks))
            kept = ImageHits(tuple(ids), np.asarray(labels, np.int64), bits, ranks)
        axes = (self.protocol.name, self.settings, self.protocol.ious, self.protocol.thresholds)
        return Counts(*axes, **arrays, image_hits=kept)
