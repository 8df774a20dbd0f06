"""What models localize, as pictures."""

import base64
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.images import resize_to
from wsol_pipeline.data.reader import EvalRows
from wsol_pipeline.evaluation.cases import Case, spread
from wsol_pipeline.evaluation.contours import ious_of_boxes
from wsol_pipeline.evaluation.evaluate import batch_boxes, class_pairs, picked, read_maps, rows_for
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import predicted_box
from wsol_pipeline.storage import Store
from wsol_pipeline.training.model import Model
from wsol_pipeline.verdict.gallery import Shown, draw_gallery

GALLERY, GALLERY_IMAGES = "gallery.png", 8
PICTURES, PICTURES_OF_A_KIND = "pictures.json", 4
PICTURE_SIZE = 256  # pixels of the longer side, at most


def pictures_of(
    model: Model, rows: EvalRows, classes: Sequence[str], cases: Sequence[Case], device: str
) -> list[dict[str, Any]]:
    """Images of best, median and worst IoU as plain data: the image, its map, and what its `Case` says."""
    found = []
    for group, some in spread(cases, PICTURES_OF_A_KIND).items():
        for case in some:
            (read,) = rows_for(model.readout, dataclasses.replace(rows, begin=case.row, end=case.row + 1)).batches()
            batch = class_pairs(read, model.protocol)
            at = batch.labels_B.tolist().index(case.label)
            size_wh = model.protocol.map_size(batch.sizes_B2[at])
            raw_HW = _raw_maps(model, batch, [at], device)[0]
            map_HW = np.rint(255 * normalised_map(raw_HW, model.protocol, size_wh)).astype(np.uint8)
            picture = _picture(batch.images_BCHW[at], size_wh)[..., ::-1]  # OpenCV's order
            encoded = {"image": _encoded(".jpg", picture), "map": _encoded(".png", map_HW)}
            seen = dataclasses.asdict(case) | {"group": group, "class": classes[case.label], "pixels": size_wh}
            found.append(seen | encoded)
    return found


def _raw_maps(model: Model, batch: Any, at: list[int], device: str = "cpu") -> np.ndarray:
    """The model's maps of some images of a batch, of their labels."""
    seen, labels_B = picked(batch, at), batch.labels_B[at]
    maps_BHW = read_maps(
        model.method, model.readout, seen, labels_B, model.choice.readout, model.protocol, device=device
    )
    return maps_BHW.cpu().numpy()


def _encoded(kind: str, picture: np.ndarray) -> str:
    """A picture as a file of that kind, shrunk to `PICTURE_SIZE`, in base64."""
    scale = min(1.0, PICTURE_SIZE / max(picture.shape[:2]))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.imencode(kind, small)[1].tobytes()).decode()


def draw(rows: EvalRows, dataset: Dataset, models: Mapping[str, Model], folder: Store) -> str:
    """Write the gallery, the same images, evenly spread over `rows`, through every model; where it is.

    An image of several classes is shown with the first of them.
    """
    rules = next(iter(models.values())).protocol
    for model in models.values():
        rows = rows_for(model.readout, rows)
    wanted = sorted(set(np.linspace(0, rows.num_rows - 1, GALLERY_IMAGES).astype(int).tolist()))
    shown: dict[str, list[Shown]] = {label: [] for label in models}
    images, classes, truths = [], [], []
    first = 0
    for found in rows.batches():
        local = [row - first for row in wanted if first <= row < first + len(found.ids)]
        first += len(found.ids)
        if not local:
            continue
        batch = class_pairs(found, rules)
        at = np.searchsorted(batch.pairs[0], local).tolist()
        seen_boxes = dataclasses.replace(rules, ious=()) if not rows.split.has_boxes else rules
        truth = batch_boxes(batch, rows.box_convention, seen_boxes)
        sizes = [rules.map_size(batch.sizes_B2[i]) for i in at]
        classes += [dataset.classes[batch.labels_B[i]] for i in at]
        images += [_picture(batch.images_BCHW[i], size) for i, size in zip(at, sizes, strict=True)]
        truths += [truth[i] for i in at]
        for label, model in models.items():
            shown[label] += _seen(model, batch, at, [truth[i] for i in at], sizes)
    with tempfile.TemporaryDirectory() as temporary:
        picture = draw_gallery(images, classes, truths, shown, Path(temporary) / GALLERY)
        folder.write(GALLERY, picture.read_bytes())
    return folder.path(GALLERY)


def _picture(image_CHW: torch.Tensor, size_wh: tuple[int, int]) -> np.ndarray:
    """The image as its map and boxes are measured, uint8 [H, W, 3]."""
    return resize_to(image_CHW, size_wh[::-1]).permute(1, 2, 0).numpy()


def _seen(
    model: Model, batch: Any, at: list[int], truths: list[np.ndarray], sizes: list[tuple[int, int]]
) -> list[Shown]:
    found = []
    for raw_HW, truth_N4, size_wh in zip(_raw_maps(model, batch, at), truths, sizes, strict=True):
        box = predicted_box(raw_HW, model.threshold, model.protocol, size_wh)
        map_HW = normalised_map(raw_HW, model.protocol, size_wh)
        iou = float(ious_of_boxes(box[None], truth_N4)[0]) if len(truth_N4) else None
        found.append(Shown(map_HW, box, iou))
    return found
