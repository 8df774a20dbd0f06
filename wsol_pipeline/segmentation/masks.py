"""Label images: PNG with VOC's palette, run lengths for Parquet and COCO."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_masks

from wsol_pipeline.data.headers import probe
from wsol_pipeline.errors import DataError, UsageError

MOST_CLASSES = 254  # labels 1..254; 255 counts neither way
Labels = NDArray[np.uint8]


def check_classes(num_classes: int) -> None:
    """Raise `UsageError` for more classes than a label image of 8 bits tells apart."""
    if num_classes > MOST_CLASSES:
        raise UsageError(f"Masks of 8 bits hold {MOST_CLASSES} classes at most but the dataset has {num_classes}.")


def palette() -> list[int]:
    """VOC's colours of 256 labels: three bits of a label at a time fill red, green and blue from the top down."""
    return [
        sum(((label >> (3 * place + colour)) & 1) << (7 - place) for place in range(8))
        for label in range(256)
        for colour in range(3)
    ]


_PALETTE = palette()


def encode(labels_HW: Labels) -> bytes:
    """A palette PNG of labels, which keep their values; not `optimize`d, which would order the palette anew."""
    image, sink = Image.fromarray(labels_HW, "P"), io.BytesIO()
    image.putpalette(_PALETTE)
    image.save(sink, "PNG", optimize=False)
    return sink.getvalue()


def decode(data: bytes) -> Labels:
    """The labels of a palette or grey PNG: values, never colours. Raises `DataError` for another image."""
    kind, _, _ = probe(data)
    if kind != "PNG":
        raise DataError(f"A mask must be a PNG but is a {kind}.")
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.mode not in ("P", "L"):
            raise DataError(f"A mask must be a PNG with a palette or grey but has mode {image.mode!r}.")
        return np.array(image)


def run_lengths(labels_HW: Labels) -> list[tuple[int, dict[str, Any]]]:
    """(label, COCO's run lengths: `size` [H, W] and `counts`) of each label above the background."""
    found = np.unique(labels_HW)
    return [(int(label), _encoded(labels_HW == label)) for label in found if label not in (0, 255)]


def _encoded(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_masks.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def coco(images: Iterable[tuple[str, Labels]], classes: Sequence[str]) -> dict[str, Any]:
    """Label images as COCO's annotations of things: a category for each class, in our order, from 1 on."""
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, labels_HW) in enumerate(images, start=1):
        height, width = labels_HW.shape
        listed.append({"id": number, "file_name": name, "height": height, "width": width})
        for label, encoded in run_lengths(labels_HW):
            area = int((labels_HW == label).sum())
            box = coco_masks.toBbox({**encoded, "counts": encoded["counts"].encode()}).tolist()
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": label, "segmentation": encoded,
                 "area": area, "bbox": box, "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": listed, "annotations": annotations, "categories": categories}
