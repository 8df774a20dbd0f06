"""The walk over a split: images in, counts out. It is handed method, readout and rows, and imports none of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol_pipeline.device import as_models_are_read, to_device, to_host
from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation.behind import Behind
from wsol_pipeline.evaluation.counts import BOXES, Counts
from wsol_pipeline.evaluation.detection import Detection, component_boxes
from wsol_pipeline.evaluation.masks import IGNORED
from wsol_pipeline.evaluation.metrics import LocalizationCounts, plain
from wsol_pipeline.evaluation.protocols import Protocol, ground_truth_boxes
from wsol_pipeline.evaluation.selection import Choice, choose
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.protocol import require_searchable

PART_BYTES = 64 * 2**20  # of maps that travel and wait together
OPEN_PARTS = 2  # that wait to be scored, while the next one is made


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
    on_maps: Callable[..., None] | None = None,
    prepare: Callable[..., Tensor] = normalize,
    truth: str = BOXES,
    keep_scores: bool = False,
    rule: str = "",
) -> Counts:
    """Counts of all `rows` at the given readout settings, by default all there are, from one forward per batch.

    `rows` must come in the protocol's geometry. A readout is handed the method's output and runs passes of its own
    only where it needs gradients or other scales; one that needs photographs as they are stored is handed them too.
    Masks count where protocol and rows have them. `ten_crop`: class
    ranks come from ten crops of each image, ten more forwards; maps still from the centre. `on_batch` is told the
    number of images done in each batch, `on_maps` row numbers, batch, maps, true boxes, true masks and class ranks of
    each batch at each setting. `truth`, `keep_scores` and `rule` are those of `LocalizationCounts`.

    A thread of its own scores maps, and calls `on_maps`, while the device makes the next ones; a process that has one
    CPU thread, and no other device, does one after the other. Counts are the same.

    Of multi-label rows each pair of an image and one of its classes is counted, like an image of that class, which is
    predicted first where only other classes of the image have a higher score.
    """
    rows = rows_for(readout, rows)
    masks = bool(protocol.masks) and rows.has_masks
    if protocol.masks and not protocol.ious and not masks:
        raise DataError(f"Protocol {protocol.name} scores masks but the {rows.role.value!r} split has none.")
    ids: list[str] = []
    labels: list[int] = []
    num_shrunk = 0
    metric = LocalizationCounts(
        protocol, settings=settings_of(method, readout, settings), keep_images=keep_images, masks=masks,
        num_classes=rows.num_classes, truth=truth, keep_scores=keep_scores, rule=rule,
    )  # fmt: skip
    walked = walk(method, readout, rows, protocol, settings=settings, device=device, ten_crop=ten_crop, prepare=prepare)
    with Behind(open_parts(device)) as scored:
        for step in walked:
            batch = step.batch
            boxes = batch_boxes(batch, rows.box_convention, protocol)
            true_masks = batch_masks(batch, protocol) if masks else None
            score = partial(_score, metric, on_maps, step.first_row + batch.pairs[0], batch, boxes, true_masks)
            for indices, arrived in parts_on_host(step, device):
                scored.add(partial(score, indices, arrived))
            ids += batch.ids
            labels += batch.labels_B.tolist()
            num_shrunk += step.num_shrunk
            if on_batch:
                scored.add(nothing, after=partial(on_batch, step.num_images))
    counts = metric.counts(ids, labels)
    return replace(counts, shrunk=np.array(num_shrunk)) if needs_stored(readout) else counts


class Step(NamedTuple):
    """A batch on its way through a method: what a walk over rows shows, its maps one setting after the other.

    Of multi-label rows the batch is one of pairs of an image and one of its classes (`class_pairs`).
    """

    batch: Any
    first_row: int
    num_images: int
    images_BCHW: Tensor  # as the network takes them
    labels_B: Tensor
    output: Any
    ranks_B: Tensor  # of the true class among the predicted ones, 0 = first; on the device
    maps: Iterator[tuple[int, Tensor]]  # (index of the setting, maps)
    num_shrunk: int


def walk(
    method: nn.Module,
    readout: Any,
    rows: Any,
    protocol: Protocol,
    *,
    settings: Sequence[Any] | None = None,
    device: torch.device | str = "cpu",
    ten_crop: bool = False,
    prepare: Callable[..., Tensor] = normalize,
) -> Iterator[Step]:
    """All `rows`, batch after batch, through one forward each; options are those of `count`. No box is looked at."""
    rows, first_row = rows_for(readout, rows), 0
    as_input = partial(prepare, device=device, dtype=dtype_of(method))
    chosen = settings_of(method, readout, settings)
    with _evaluating(method):
        for found in rows.batches():
            batch = class_pairs(found, protocol)
            images_BCHW, labels_B = as_input(batch.images_BCHW), to_device(batch.labels_B, device)
            with torch.no_grad():
                output = method(images_BCHW)
                scores_BK = ten_crop_scores(method, as_input(batch.whole_BCHW), protocol) if ten_crop else None
            scores_BK = output.logits_BK.detach() if scores_BK is None else scores_BK
            if batch.others_BK is not None:
                scores_BK = scores_BK.masked_fill(to_device(batch.others_BK, device), -torch.inf)
            ranks_B = class_ranks(scores_BK, labels_B)
            handed: dict[str, Any] = {"output": output, **photographs(readout, batch, as_input, device)}
            maps = _maps(method, readout, images_BCHW, labels_B, handed, settings, chosen)
            shown = ((index, shown_part(maps_BHW, readout, protocol)) for index, maps_BHW in maps)
            num_shrunk = found.num_shrunk if needs_stored(readout) else 0
            yield Step(batch, first_row, len(found.ids), images_BCHW, labels_B, output, ranks_B, shown, num_shrunk)
            first_row += len(found.ids)


def settings_of(method: nn.Module, readout: Any, settings: Sequence[Any] | None) -> tuple[Any, ...]:
    """The given settings, or without any all that the readout has."""
    if settings is not None:
        return tuple(settings)
    with _evaluating(method):
        return tuple(readout.settings(method))


def parts_on_host(step: Step, device: torch.device | str) -> Iterator[tuple[list[int], Callable[[], list[Tensor]]]]:
    """The maps of a batch as they leave the device: numbers of some settings, and what waits for the class ranks and
    these settings' maps on the host."""
    for part in parts(step.maps, PART_BYTES if open_parts(device) else 0):
        yield [index for index, _ in part], together(step.ranks_B, *(maps for _, maps in part))


def open_parts(device: torch.device | str) -> int:
    """How many parts may wait to be scored: none where a process has one thread of a CPU, for network and scores."""
    return 0 if torch.device(device).type == "cpu" and torch.get_num_threads() == 1 else OPEN_PARTS


def _score(
    metric: LocalizationCounts,
    on_maps: Callable[..., None] | None,
    row_numbers: NDArray[np.int64],
    batch: Any,
    truth: list[NDArray[np.float64]],
    true_masks: list[NDArray[np.uint8]] | None,
    indices: Sequence[int],
    arrived: Callable[[], list[Tensor]],
) -> None:
    """Count the maps of some settings once they have come to the host, after the class ranks."""
    ranks_B, *maps = arrived()
    for index, maps_BHW in zip(indices, maps, strict=True):
        metric.update(index, maps_BHW, truth, ranks_B, true_masks, batch.sizes_B2, batch.pairs)
        if on_maps:
            on_maps(row_numbers, batch, maps_BHW, truth, true_masks, ranks_B)


def nothing() -> None: ...


def parts(maps: Iterator[tuple[int, Tensor]], size: int) -> Iterator[list[tuple[int, Tensor]]]:
    """The maps of a batch's settings, cut where they have `size` bytes; at least one setting a part."""
    held: list[tuple[int, Tensor]] = []
    for index, maps_BHW in maps:
        held.append((index, maps_BHW))
        if sum(of.nbytes for _, of in held) >= size:
            yield held
            held = []
    if held:
        yield held


def together(*tensors: Tensor) -> Callable[[], list[Tensor]]:
    """`to_host`, by one copy for all of a type: some hundreds of maps wait no longer than one."""
    if not tensors[0].is_cuda:
        return to_host(tensors)
    kinds = list(dict.fromkeys(tensor.dtype for tensor in tensors))
    flat = [torch.cat([of.detach().flatten() for of in tensors if of.dtype == kind]) for kind in kinds]
    arrived = to_host(flat)

    def apart() -> list[Tensor]:
        pieces = {
            kind: iter(copy.split([of.numel() for of in tensors if of.dtype == kind]))
            for kind, copy in zip(kinds, arrived(), strict=True)
        }
        return [next(pieces[of.dtype]).view(of.shape) for of in tensors]

    return apart


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


def detect(
    method: nn.Module,
    readout: Any,
    rows: Any,
    protocol: Protocol,
    choice: Choice,
    *,
    min_score: float = 0.5,
    device: torch.device | str = "cpu",
    prepare: Callable[..., Tensor] = normalize,
) -> tuple[list[Detection], dict[tuple[str, int], NDArray[np.float64]]]:
    """Boxes of all classes that multi-label rows seem to show, and the true ones by image and class.

    A class is looked for where its sigmoid reaches `min_score`; each component of its map is a box, scored by the
    sigmoid times the mean activation (our reading of mLDFR, which gives neither cut nor score).
    """
    found: list[Detection] = []
    truth: dict[tuple[str, int], NDArray[np.float64]] = {}
    with _evaluating(method):
        for batch in rows_for(readout, rows).batches():
            pairs = class_pairs(batch, protocol)
            keys = [(batch.ids[i], c) for i, c in zip(*(of.tolist() for of in pairs.pairs), strict=True)]
            truth |= dict(zip(keys, batch_boxes(pairs, rows.box_convention, protocol), strict=True))
            images_BCHW = prepare(batch.images_BCHW, device, dtype_of(method))
            with torch.no_grad():
                scores_BK = method(images_BCHW).logits_BK.sigmoid().cpu()
            image_of, class_of = (scores_BK >= min_score).nonzero().unbind(1)
            if not len(image_of):
                continue
            seen = picked(batch, image_of)
            maps_PHW = plain(
                read_maps(method, readout, seen, class_of, choice.readout, protocol, device=device, prepare=prepare)
            )
            for raw_HW, i, c in zip(maps_PHW, image_of.tolist(), class_of.tolist(), strict=True):
                boxes = component_boxes(raw_HW, choice.threshold, protocol, tuple(batch.sizes_B2[i].tolist()))
                score = float(scores_BK[i, c])
                found += [
                    Detection(batch.ids[i], c, score * mean, tuple(box))
                    for box, mean in zip(boxes[0].tolist(), boxes[1].tolist(), strict=True)
                ]
    return found, truth


def needs_stored(readout: Any) -> bool:
    """Whether a readout is to be handed photographs as they are stored; one that does not say is not."""
    return getattr(readout, "needs_stored", False)


def rows_for(readout: Any, rows: Any) -> Any:
    """The rows, with the photographs as they are stored if the readout needs them."""
    return rows.with_stored() if needs_stored(readout) else rows


def picked(batch: Any, at: Any) -> SimpleNamespace:
    """Images of a batch by number, with their photographs as they are stored if it has them."""
    stored_BCHW = batch.stored_BCHW
    return SimpleNamespace(
        images_BCHW=batch.images_BCHW[at], stored_BCHW=None if stored_BCHW is None else stored_BCHW[at]
    )


def read_maps(
    method: nn.Module,
    readout: Any,
    batch: Any,
    labels_B: Tensor,
    setting: Any,
    protocol: Protocol,
    *,
    output: Any = None,
    device: torch.device | str = "cpu",
    prepare: Callable[..., Tensor] = normalize,
) -> Tensor:
    """Raw maps of a batch at one setting, B×H×W, of what the protocol shows the network. The method is in eval mode."""
    as_input = partial(prepare, device=device, dtype=dtype_of(method))
    handed = {"output": output, **photographs(readout, batch, as_input, device)}
    maps_BHW = readout.maps(method, as_input(batch.images_BCHW), to_device(labels_B, device), setting, **handed)
    return shown_part(maps_BHW, readout, protocol)


def photographs(
    readout: Any, batch: Any, as_input: Callable[[Tensor], Tensor], device: torch.device | str
) -> dict[str, Any]:
    """What a readout is handed beside a batch's images, if it needs it: photographs as they are stored, in bytes, and
    what makes images of them when it has resized them."""
    if not needs_stored(readout):
        return {}
    return {"stored_BCHW": to_device(batch.stored_BCHW, device), "prepare": as_input}


def shown_part(maps_BHW: Tensor, readout: Any, protocol: Protocol) -> Tensor:
    """Of maps of whole photographs what lies in the protocol's centre crop, if it has one; other maps as they are.

    To the nearest pixel of the photograph.
    """
    if not needs_stored(readout) or not protocol.margin:
        return maps_BHW
    edges = np.array([protocol.margin, protocol.margin + protocol.image_size]) / protocol.read_size
    (top, bottom), (left, right) = (np.rint(edges * side).astype(int) for side in maps_BHW.shape[-2:])
    return maps_BHW[..., top : max(bottom, top + 1), left : max(right, left + 1)]


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


def batch_masks(batch: Any, protocol: Protocol) -> list[NDArray[np.uint8]]:
    """The true masks of a batch, uint8 [H, W] each: 1 is what the maps should show, 0 is not, 255 counts neither way.

    Under "classes" the class masks as they are.
    """
    if protocol.masks != "background":
        return list(batch.masks)
    return [np.where(mask_HW > 1, mask_HW, 1 - mask_HW) for mask_HW in batch.masks]


def class_pairs(batch: Any, protocol: Protocol) -> Any:
    """A multi-label batch as a batch of pairs of an image and one of its classes, with that class's boxes and mask.

    `pairs` are image and class of each, int64, `others_BK` the image's other classes, bool. A class mask becomes 1 for
    the class and 0 for all others, unless the protocol scores the classes together. Rows of labels alone have neither.
    Raises `DataError` where classes are scored together and the batch has one class per image.
    """
    if batch.labels_B.ndim == 1:
        if protocol.masks == "classes":
            raise DataError(f"Protocol {protocol.name} scores class masks, which only multi-label data has.")
        own = np.arange(len(batch.ids)), batch.labels_B.numpy()
        return SimpleNamespace(**vars(batch), pairs=own, others_BK=None)
    image_of, class_of = batch.labels_B.nonzero().unbind(1)
    pairs = list(zip(image_of.tolist(), class_of.tolist(), strict=True))
    masks, boxes = None, None
    if getattr(batch, "boxes", None) is not None:
        boxes = [batch.boxes[i][batch.box_labels[i] == c] for i, c in pairs]
    if getattr(batch, "masks", None) is not None:
        together = protocol.masks == "classes"
        masks = [batch.masks[i] if together else _mask_of(batch.masks[i], c) for i, c in pairs]
    return SimpleNamespace(
        ids=[batch.ids[i] for i, _ in pairs],
        images_BCHW=batch.images_BCHW[image_of],
        whole_BCHW=batch.whole_BCHW[image_of] if batch.whole_BCHW is not None else None,
        stored_BCHW=batch.stored_BCHW[image_of] if batch.stored_BCHW is not None else None,
        labels_B=class_of,
        boxes=boxes,
        masks=masks,
        sizes_B2=batch.sizes_B2[image_of.numpy()],
        pairs=(image_of.numpy(), class_of.numpy()),
        others_BK=(batch.labels_B[image_of] > 0).scatter(1, class_of[:, None], False),
    )


def _mask_of(labels_HW: NDArray[np.uint8], label: int) -> NDArray[np.uint8]:
    return np.where(labels_HW == IGNORED, IGNORED, labels_HW == label + 1).astype(np.uint8)


def _maps(
    method: nn.Module,
    readout: Any,
    images_BCHW: Tensor,
    labels_B: Tensor,
    handed: dict[str, Any],
    settings: Sequence[Any] | None,
    chosen: tuple[Any, ...],
) -> Iterator[tuple[int, Tensor]]:
    """Maps of the batch with the index of their setting: one shared search, or the given settings one by one."""
    if settings is None:
        for setting, maps_BHW in readout.search(method, images_BCHW, labels_B, **handed):
            yield chosen.index(setting), maps_BHW
        return
    for index, setting in enumerate(chosen):
        yield index, readout.maps(method, images_BCHW, labels_B, setting, **handed)


@contextmanager
def _evaluating(method: nn.Module) -> Iterator[None]:
    was_training = method.training
    method.eval()
    try:
        with as_models_are_read():
            yield
    finally:
        method.train(was_training)
