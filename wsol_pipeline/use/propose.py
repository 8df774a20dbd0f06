"""One box for each image of validation that a machine makes of its label: a file that chooses in the place of boxes.

The images and labels of `val` alone are seen: no box of it, and nothing of test.
"""

import csv
import io
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.reader import LabelledRows, ReadConfig, labelled_rows
from wsol_pipeline.data.targets import COLUMNS, MADE_BY, described, read_targets
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.evaluate import read_maps
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import plain
from wsol_pipeline.evaluation.objects import Frame, is_flat
from wsol_pipeline.evaluation.pointing import Boxes, Point, Scores, candidates, holding, inside, most_telling, peak
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.selectors import said
from wsol_pipeline.storage import Store
from wsol_pipeline.training import ray_internals
from wsol_pipeline.training.guesses import size_bias
from wsol_pipeline.training.model import Model, assemble, batched
from wsol_pipeline.use.detectors import CocoDetector, shared_with_coco
from wsol_pipeline.use.models import named, pick
from wsol_pipeline.use.options import ModelOptions, ProposeOptions
from wsol_pipeline.use.proposals import selective_search
from wsol_pipeline.verdict.rows import dataset_at, finished_study
from wsol_pipeline.verdict.score import Progress, silent

AT_ONCE = 32  # photographs in memory


class Shown(NamedTuple):
    """A validation image as the classifier is shown it, and as it is stored."""

    id: str
    label: int
    size_wh: tuple[int, int]
    image_CHW: Tensor
    stored_CHW: Tensor  # one of very many pixels is shrunk
    peak: Point | None  # of the classifier's map of the label; None of a flat one


@dataclass(frozen=True)
class Proposed:
    """What has come of it: the file, how many images were looked at, and what to know of its boxes."""

    place: str
    images: int
    seconds: float
    notes: tuple[str, ...]


def propose(options: ProposeOptions, progress: Progress = silent) -> Proposed:
    """Write the boxes to --out.

    Raises:
        UsageError: --out is there already; the model has no peak; interpreter or detector is not what it can be.
        DataError: model and data are of other classes, or a file is broken.
    """
    folder, _, name = Store.at(options.out).uri.rpartition("/")
    if Store(folder).exists(name):
        raise UsageError(f"{options.out} is there already: give another --out, or move it away.")
    dataset, model = _dataset(options), _reference(options)
    _check_fits(model, dataset)
    started, found = time.monotonic(), []
    with _source(options) as find, progress("proposed", dataset.val_labels.num_rows) as add:
        for some in batched(shown(model, dataset, options), AT_ONCE):
            for one, boxes_N4 in zip(some, find([of.stored_CHW for of in some]), strict=True):
                found += [(one, best)] if (best := _best(model, one, boxes_N4, options)) else []
            add(len(some))
    if not found:
        raise DataError(f"No box is left for any of {dataset.val_labels.num_rows} images: nothing was written.")
    Store(folder).write(name, as_csv(found, dataset.classes, options.by))
    seconds = time.monotonic() - started
    return Proposed(options.out, dataset.val_labels.num_rows, seconds, _notes(options, model, dataset))


def _dataset(options: ProposeOptions) -> Dataset:
    if options.data:
        return open_dataset(options.data)
    return dataset_at(finished_study(Store.at(options.storage), options.study)["data"])


def _reference(options: ProposeOptions) -> Model:
    asked = ModelOptions(options.reference, options.study if not options.reference else "", options.storage)
    return assemble(named(asked), pick(options.device))


def _check_fits(model: Model, dataset: Dataset) -> None:
    """Raise `DataError` for a reference of other classes, `UsageError` for what cannot be pointed at."""
    if model.multilabel or dataset.multilabel:
        raise UsageError("propose makes one box an image: it takes data of one class an image.")
    if model.classes != dataset.classes:
        raise DataError(
            f"The reference knows {len(model.classes)} classes ({model.classes[0]}, ...), {dataset.uri} has "
            f"{len(dataset.classes)} ({dataset.classes[0]}, ...): it has to be trained on these."
        )
    if model.cuts_own_mask:
        raise UsageError(f"The reference's readout {model.config.readout!r} cuts masks, which have no peak: take cam.")


def _source(options: ProposeOptions) -> AbstractContextManager[Any]:
    """What finds boxes, best first, in a list of images."""
    if options.by == "proposals":
        return selective_search(options.proposals_python, options.children or ray_internals.cores())
    detector = CocoDetector(options.arch, options.weights, options.mode == "rpn", pick(options.device))
    return nullcontext(lambda images: [detector(image_CHW) for image_CHW in images])


def shown(model: Model, dataset: Dataset, options: ProposeOptions) -> Iterator[Shown]:
    """The validation images, with the peak of the reference's map of the label."""
    rules = model.protocol
    read = ReadConfig(rules.resize_size, rules.image_size, cache_dir=options.cache_dir)
    rows: LabelledRows = labelled_rows(dataset.val_labels, read, rules.geometry, AT_ONCE).with_stored()
    device = next(model.method.parameters()).device
    for batch in rows.batches():
        assert batch.stored_BCHW is not None
        maps = read_maps(
            model.method, model.readout, batch, batch.labels_B, model.choice.readout, rules, device=device
        )  # fmt: skip
        sizes = [(int(width), int(height)) for width, height in batch.sizes_B2]
        peaks = [_peak(raw_HW, size_wh, model) for raw_HW, size_wh in zip(plain(maps), sizes, strict=True)]
        labels = batch.labels_B.tolist()
        yield from map(Shown, batch.ids, labels, sizes, batch.images_BCHW, batch.stored_BCHW, peaks)


def _peak(raw_HW: Any, size_wh: tuple[int, int], model: Model) -> Point | None:
    if is_flat(raw_HW):
        return None
    return peak(normalised_map(raw_HW, model.protocol, size_wh), Frame.of(size_wh, model.protocol).window)


def _best(model: Model, one: Shown, boxes_N4: Boxes, options: ProposeOptions) -> tuple[Boxes, float | None] | None:
    """The box of an image, and p_in - p_out where the classifier has chosen; None if no proposal is left."""
    if one.peak is None:
        return None
    boxes_N4 = boxes_N4 * np.tile(one.size_wh, 2) / np.tile(one.stored_CHW.shape[:0:-1], 2)
    if options.by == "detector" and options.mode == "boxes":
        held_N4 = boxes_N4[holding(boxes_N4, one.peak)]
        return (held_N4[0], None) if len(held_N4) else None
    left_N4 = boxes_N4[candidates(boxes_N4, one.peak, one.size_wh)]
    found = most_telling(left_N4, lambda of: probability(model, one, of), lambda of: probability(model, one, of, False))
    return (left_N4[found[0]], found[1]) if found else None


def probability(model: Model, one: Shown, boxes_N4: Boxes, alone: bool = True) -> Scores:
    """The probability of the label with each box alone, or without it: what is not shown has the mean colour, [N]."""
    window = Frame.of(one.size_wh, model.protocol).window
    inside_NHW = torch.from_numpy(inside(boxes_N4, window, tuple(one.image_CHW.shape[1:])))
    device = next(model.method.parameters()).device
    seen_1CHW = normalize(one.image_CHW[None], device, dtype_of(model.method))  # 0 is the mean colour
    hidden_NHW = (~inside_NHW if alone else inside_NHW).to(device)
    with torch.no_grad():
        logits_NK = model.method(seen_1CHW.masked_fill(hidden_NHW[:, None], 0.0)).logits_BK
    return logits_NK.double().softmax(1)[:, one.label].cpu().numpy()


def as_csv(found: list[tuple[Shown, tuple[Boxes, float | None]]], classes: tuple[str, ...], by: str) -> bytes:
    """The file: half-open pixels of the stored images, by id, and what made them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "score", "label", MADE_BY])
    for one, (box, score) in found:
        told = "" if score is None else f"{score:.4f}"
        writer.writerow([one.id, *(f"{value:.2f}" for value in box), told, classes[one.label], by])
    return text.getvalue().encode()


def _notes(options: ProposeOptions, model: Model, dataset: Dataset) -> tuple[str, ...]:
    """What chose the reference, what else stands behind the boxes, and how large they are."""
    selected = said(model.description.get("selected_on", "val/boxes"))
    notes = [f"reference: {model.config.method} on {model.config.backbone}, selected on {selected}"]
    if options.by == "detector":
        shared = shared_with_coco(dataset.classes)
        of_these = f"; COCO has {', '.join(shared)} by name, on which it is supervised" if shared else ""
        notes.append(f"{options.arch} ({options.mode}) uses boxes of COCO{of_these}")
    targets = read_targets(options.out, dataset, options.by, allow_partial=True)
    return (*notes, described(targets, dataset), size_bias(targets, dataset, model, options.cache_dir))
