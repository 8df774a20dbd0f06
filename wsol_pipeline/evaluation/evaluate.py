"""The walk over a split: images in, counts out. It is handed method, readout and rows, and imports none of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.metrics import LocalizationCounts
from wsol_pipeline.evaluation.protocols import Protocol, ground_truth_boxes
from wsol_pipeline.evaluation.selection import Choice, choose
from wsol_pipeline.images import normalize
from wsol_pipeline.protocol import require_searchable


def count(
    method: nn.Module,
    readout: Any,
    rows: Any,
    protocol: Protocol,
    *,
    settings: Sequence[Any] | None = None,
    device: torch.device | str = "cpu",
    keep_images: bool = False,
    ten_crop: bool = False,
    on_batch: Callable[[int], None] | None = None,
    prepare: Callable[..., Tensor] = normalize,
) -> Counts:
    """Counts of all `rows` at the given readout settings, by default all there are, from one forward per batch.

    `rows` must come in the protocol's geometry. A readout is handed the method's output and runs passes of its own
    only where it needs gradients or other scales. Masks count where protocol and rows have them. `ten_crop`: class
    ranks come from ten crops of each image, ten more forwards; maps still from the centre. `on_batch` is told the
    number of images done in each batch.
    """
    ids: list[str] = []
    labels: list[int] = []
    masks = bool(protocol.masks) and rows.has_masks
    if not protocol.ious and not masks:
        raise DataError(f"Protocol {protocol.name} scores masks but the {rows.role.value!r} split has none.")
    with _evaluating(method):
        chosen = tuple(readout.settings(method) if settings is None else settings)
        metric = LocalizationCounts(protocol, settings=chosen, keep_images=keep_images, masks=masks)
        for batch in rows.batches():
            _check_single_label(batch.labels_B)
            images_BCHW, labels_B = prepare(batch.images_BCHW, device), batch.labels_B.to(device)
            with torch.no_grad():
                output = method(images_BCHW)
                scores_BK = ten_crop_scores(method, prepare(batch.whole_BCHW, device), protocol) if ten_crop else None
            ranks_B = class_ranks(output.logits_BK.detach() if scores_BK is None else scores_BK, labels_B).cpu()
            truth = batch_boxes(batch, rows.box_convention, protocol)
            true_masks = batch_masks(batch, protocol) if masks else None
            for index, maps_BHW in _maps(method, readout, images_BCHW, labels_B, output, settings, chosen):
                metric.update(index, maps_BHW, truth, ranks_B, true_masks, batch.sizes_B2)
            ids += batch.ids
            labels += batch.labels_B.tolist()
            if on_batch:
                on_batch(len(batch.ids))
    return metric.counts(ids, labels)


def solve(
    method: nn.Module,
    readout: Any,
    rows: Any,
    protocol: Protocol,
    objective: str = "max_box_acc_v2",
    device: torch.device | str = "cpu",
    **options: Any,
) -> tuple[Choice, Counts]:
    """The best readout setting and thresholds on validation rows, and the counts they were chosen from.

    Raises `ProtocolError`, before any batch is read, unless the rows are of the validation split. `options` are those
    of `count`.
    """
    require_searchable(rows, "Solving readout and threshold")
    counts = count(method, readout, rows, protocol, device=device, **options)
    return choose(counts, objective), counts


def class_ranks(scores_BK: Tensor, labels_B: Tensor) -> Tensor:
    """How many classes are predicted before the true one, int64 [B]; of equal scores the first class comes first.

    A score that is not a number comes before every true class, so that broken predictions count as wrong.
    """
    true_B1 = scores_BK.gather(1, labels_B[:, None])
    first_BK = torch.arange(scores_BK.shape[1], device=scores_BK.device) < labels_B[:, None]
    return (~(scores_BK <= true_B1) | ((scores_BK == true_B1) & first_BK)).sum(1)


def ten_crop_scores(method: nn.Module, whole_BCHW: Tensor, protocol: Protocol) -> Tensor:
    """The mean of the softmax over the corners, the centre and their mirror images, B×K (BAS).

    `whole_BCHW` are the resized images before the crop.
    """
    size, far, margin = protocol.image_size, protocol.read_size - protocol.image_size, protocol.margin
    corners = ((0, 0), (0, far), (far, 0), (far, far), (margin, margin))
    crops = [whole_BCHW[..., top : top + size, left : left + size] for top, left in corners]
    scores = [method(crop).logits_BK.softmax(1) for crop in (*crops, *(crop.flip(-1) for crop in crops))]
    return torch.stack(scores).mean(0)


def batch_boxes(batch: Any, convention: str, protocol: Protocol) -> list[NDArray[np.float64]]:
    """The true boxes of a batch in evaluation pixels, float64 [N, 4] per image.

    Raises `DataError` for an image without a box, if boxes count.
    """
    if protocol.ious and (without := [i for i, b in zip(batch.ids, batch.boxes, strict=True) if not len(b)]):
        raise DataError(f"Protocol {protocol.name} scores boxes but image {without[0]!r} has none.")
    return [
        ground_truth_boxes(boxes_N4, size_wh, convention, protocol)
        for boxes_N4, size_wh in zip(batch.boxes, batch.sizes_B2, strict=True)
    ]


def batch_masks(batch: Any, protocol: Protocol) -> NDArray[np.uint8]:
    """The true masks of a batch, uint8 [B, H, W]: 1 is what the maps should show, 0 is not, 255 counts neither way."""
    masks_BHW: NDArray[np.uint8] = batch.masks_BHW
    return np.where(masks_BHW > 1, masks_BHW, 1 - masks_BHW) if protocol.masks == "background" else masks_BHW


def _check_single_label(labels_B: Tensor) -> None:
    if labels_B.ndim != 1:
        raise UsageError(f"Box metrics take one class per image but the labels have shape {tuple(labels_B.shape)}.")


def _maps(
    method: nn.Module,
    readout: Any,
    images_BCHW: Tensor,
    labels_B: Tensor,
    output: Any,
    settings: Sequence[Any] | None,
    chosen: tuple[Any, ...],
) -> Iterator[tuple[int, Tensor]]:
    """Maps of the batch with the index of their setting: one shared search, or the given settings one by one."""
    if settings is None:
        for setting, maps_BHW in readout.search(method, images_BCHW, labels_B, output=output):
            yield chosen.index(setting), maps_BHW
        return
    for index, setting in enumerate(chosen):
        yield index, readout.maps(method, images_BCHW, labels_B, setting, output=output)


@contextmanager
def _evaluating(method: nn.Module) -> Iterator[None]:
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)
