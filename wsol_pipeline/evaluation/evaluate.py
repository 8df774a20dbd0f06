"""The walk over a split: images in, counts out. It is handed method, readout and rows, and imports none of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol_pipeline.errors import UsageError
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
    on_batch: Callable[[int], None] | None = None,
    prepare: Callable[..., Tensor] = normalize,
) -> Counts:
    """Counts of all `rows` at the given readout settings, by default all there are, from one forward per batch.

    `rows` must come in the protocol's geometry. A readout is handed the method's output and runs passes of its own
    only where it needs gradients or other scales. `on_batch` is told the number of images done in each batch.
    """
    ids: list[str] = []
    labels: list[int] = []
    with _evaluating(method):
        chosen = tuple(readout.settings(method) if settings is None else settings)
        metric = LocalizationCounts(protocol, settings=chosen, keep_images=keep_images)
        for batch in rows.batches():
            _check_single_label(batch.labels_B)
            images_BCHW, labels_B = prepare(batch.images_BCHW, device), batch.labels_B.to(device)
            with torch.no_grad():
                output = method(images_BCHW)
            ranks_B = class_ranks(output.logits_BK.detach(), labels_B).cpu()
            truth = batch_boxes(batch, rows.box_convention, protocol)
            for index, maps_BHW in _maps(method, readout, images_BCHW, labels_B, output, settings, chosen):
                metric.update(index, maps_BHW, truth, ranks_B)
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


def class_ranks(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """How many classes are predicted before the true one, int64 [B]; of equal logits the first class comes first.

    A logit that is not a number comes before every true class, so that broken predictions count as wrong.
    """
    true_B1 = logits_BK.gather(1, labels_B[:, None])
    first_BK = torch.arange(logits_BK.shape[1], device=logits_BK.device) < labels_B[:, None]
    return (~(logits_BK <= true_B1) | ((logits_BK == true_B1) & first_BK)).sum(1)


def batch_boxes(batch: Any, convention: str, protocol: Protocol) -> list[NDArray[np.float64]]:
    """The true boxes of a batch in evaluation pixels, float64 [N, 4] per image."""
    return [
        ground_truth_boxes(boxes_N4, size_wh, convention, protocol)
        for boxes_N4, size_wh in zip(batch.boxes, batch.sizes_B2, strict=True)
    ]


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
