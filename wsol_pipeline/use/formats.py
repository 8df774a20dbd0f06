"""The forms that others load, made from the parts of a localization: nothing is computed, and no image is opened
but those that are shown."""

import base64
import csv
import dataclasses
import io
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import escape

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from wsol_pipeline.data.photographs import photograph
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.use.localizer import Row
from wsol_pipeline.use.options import LocalizeOptions
from wsol_pipeline.use.run import by_image, read_contract, read_listing
from wsol_pipeline.use.sources import check_names, file_name, read

SIDES = ("x0", "y0", "x1", "y1")
WRITERS = 8  # files at once: a bucket answers each after a while
OVERLAY_SIDE, THUMBNAIL_SIDE = 1024, 256
TINT, EDGE = np.array([255.0, 51, 68], np.float32), (255, 51, 68)
CLASSES = "classes.txt"


def write(store: Store, options: LocalizeOptions) -> list[str]:
    """Write every format that is asked for; where each lies. Raises `UsageError` if files would have one name."""
    contract = read_contract(store)
    check_names(read_listing(store), options.format)
    as_begun = {name: contract[name] for name in ("image_column", "scale_16bit")}
    opened = dataclasses.replace(options, **as_begun)
    return [WRITE[name](store, opened, contract["classes"]) for name in options.format]


def found(rows: Sequence[Row]) -> list[Row]:
    """The rows that have a box."""
    return [row for row in rows if row["x0"] is not None]


def _coco(store: Store, options: LocalizeOptions, classes: Sequence[str]) -> str:
    """Instances with their score; ids count from 1, those of images by the listing."""
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for rows in by_image(store):
        row = rows[0]
        number = row["index"] + 1
        images.append({"id": number, "file_name": row["image_id"], "width": row["width"], "height": row["height"]})
        notes += [_annotation(number, one) | {"id": len(notes) + at} for at, one in enumerate(found(rows), 1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    store.write("coco.json", json.dumps({"images": images, "annotations": notes, "categories": categories}).encode())
    return store.path("coco.json")


def _annotation(image: int, row: Row) -> dict[str, Any]:
    x0, y0, x1, y1 = (row[side] for side in SIDES)
    return {
        "image_id": image, "category_id": row["class_id"] + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": row["area"],
        "segmentation": {"size": [row["height"], row["width"]], "counts": row["rle"]}, "iscrowd": 0,
        "score": row["score"],
    }  # fmt: skip


def voc_box(row: Row) -> tuple[int, int, int, int]:
    """A box as VOC has it: whole pixels that it touches, the first one 1, the last one inside."""
    return math.floor(row["x0"]) + 1, math.floor(row["y0"]) + 1, math.ceil(row["x1"]), math.ceil(row["y1"])


def _voc(store: Store, options: LocalizeOptions, classes: Sequence[str]) -> str:
    """Annotations, the list of them, and the classes: JPEGImages is where your images go."""
    names = []

    def files() -> Iterator[tuple[str, bytes]]:
        for rows in by_image(store):
            name = file_name(rows[0]["image_id"])
            names.append(name)
            yield f"voc/Annotations/{name}.xml", _xml(rows).encode()

    _write_all(store, files())
    store.write("voc/ImageSets/Main/localized.txt", "".join(f"{name}\n" for name in names).encode())
    store.write(f"voc/{CLASSES}", _lines(classes))
    return store.path("voc")


def _xml(rows: Sequence[Row]) -> str:
    first = rows[0]
    objects = "".join(_object(row) for row in found(rows))
    suffix = PurePosixPath(first["image_id"]).suffix or ".jpg"
    return (
        f"<annotation><filename>{escape(file_name(first['image_id']) + suffix)}</filename>"
        f"<size><width>{first['width']}</width><height>{first['height']}</height><depth>3</depth></size>"
        f"{objects}</annotation>\n"
    )


def _object(row: Row) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), voc_box(row), strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in corners)
    return f"<object><name>{escape(row['label'])}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"


def yolo_line(row: Row, save_conf: bool) -> str:
    """`class cx cy w h` in shares of the image."""
    x0, x1 = row["x0"] / row["width"], row["x1"] / row["width"]
    y0, y1 = row["y0"] / row["height"], row["y1"] / row["height"]
    line = f"{row['class_id']} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}"
    return f"{line} {row['score']:.6f}\n" if save_conf else f"{line}\n"


def _yolo(store: Store, options: LocalizeOptions, classes: Sequence[str]) -> str:
    """Labels, classes and data.yaml: yolo/images is where your images go, called as their labels are."""
    lines = (
        (f"yolo/labels/{file_name(rows[0]['image_id'])}.txt",
         "".join(yolo_line(row, options.save_conf) for row in found(rows)).encode())
        for rows in by_image(store)
    )  # fmt: skip
    _write_all(store, lines)
    store.write(f"yolo/{CLASSES}", _lines(classes))
    names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(classes))
    store.write("yolo/data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}".encode())
    return store.path("yolo")


def _csv(store: Store, options: LocalizeOptions, classes: Sequence[str]) -> str:
    """All rows without their masks; and the boxes alone as the folder layout's boxes.csv."""
    columns = ["index", "image_id", "width", "height", "label", "class_id", "label_source", "class_score", "score",
               *SIDES, "area", "box_rank", "threshold", "reason"]  # fmt: skip
    whole, boxes = io.StringIO(), io.StringIO()
    table = csv.DictWriter(whole, columns, extrasaction="ignore", lineterminator="\n")
    plain = csv.writer(boxes, lineterminator="\n")
    table.writeheader()
    plain.writerow(["path", *SIDES])
    for rows in by_image(store):
        table.writerows(rows)
        plain.writerows([row["image_id"], *(row[side] for side in SIDES)] for row in found(rows))
    store.write("localized.csv", whole.getvalue().encode())
    store.write("boxes.csv", boxes.getvalue().encode())
    return store.path("localized.csv")


def _masks(store: Store, options: LocalizeOptions, classes: Sequence[str]) -> str:
    """PNGs with VOC's palette: 0 the background, k + 1 class k; where classes meet the higher score wins."""
    if len(classes) > 254:
        raise UsageError(f"--format masks holds 254 classes at most but the model has {len(classes)}: use coco's RLE.")
    files = ((f"masks/{file_name(rows[0]['image_id'])}.png", _labels_png(rows)) for rows in by_image(store))
    _write_all(store, files)
    return store.path("masks")


def _labels_png(rows: Sequence[Row]) -> bytes:
    labels_HW = np.zeros((rows[0]["height"], rows[0]["width"]), np.uint8)
    for row in sorted(found(rows), key=lambda row: row["score"]):
        labels_HW[mask_of(row)] = row["class_id"] + 1
    image, sink = Image.fromarray(labels_HW, "P"), io.BytesIO()
    image.putpalette(palette())
    image.save(sink, "PNG")
    return sink.getvalue()


def palette() -> list[int]:
    """VOC's colours of labels 0 to 255, [R, G, B, R, ...]: the bits of a label, spread over the three from the top."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1  # lowest first
    places = 7 - np.arange(8) // 3
    colours = [(bits[:, channel::3] << places[channel::3]).sum(1) for channel in range(3)]
    return np.stack(colours, axis=1).ravel().tolist()


def mask_of(row: Row) -> NDArray[np.bool_]:
    """A row's pixels, bool [H, W]."""
    return rle.decode({"size": [row["height"], row["width"]], "counts": row["rle"].encode()}).astype(bool)


def _overlays(store: Store, options: LocalizeOptions, classes: Sequence[str]) -> str:
    _write_all(store, ((name, picture) for name, picture in _pictures(store, options) if picture))
    return store.path("overlays")


def _pictures(store: Store, options: LocalizeOptions) -> Iterator[tuple[str, bytes | None]]:
    items = {item["index"]: item for item in read_listing(store)}
    for rows in by_image(store):
        name = f"overlays/{file_name(rows[0]['image_id'])}.jpg"
        yield name, picture_of(rows, items[rows[0]["index"]], options, OVERLAY_SIDE)


def picture_of(rows: Sequence[Row], item: dict[str, Any], options: LocalizeOptions, side: int) -> bytes | None:
    """The image with masks tinted and boxes drawn, a JPEG of at most `side` pixels; None if it cannot be read now."""
    try:
        pixels_CHW, _ = photograph(read(item, options), options.scale_16bit)
    except DataError:
        return None
    image = pixels_CHW.permute(1, 2, 0).numpy()
    scale = min(1.0, side / max(image.shape[:2]))
    size_wh = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    drawn = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA).astype(np.float32)
    for row in found(rows):
        mask = cv2.resize(mask_of(row).astype(np.uint8), size_wh, interpolation=cv2.INTER_NEAREST).astype(bool)
        drawn[mask] = 0.65 * drawn[mask] + 0.35 * TINT
    picture = drawn.astype(np.uint8)
    for row in found(rows):
        x0, y0, x1, y1 = (round(row[name] * scale) for name in SIDES)
        cv2.rectangle(picture, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), EDGE, max(1, side // 200))
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _html(store: Store, options: LocalizeOptions, classes: Sequence[str]) -> str:
    """One page: lowest and highest scores, and a draw of the others; the images are in it."""
    scores = [(rows[0]["score"], rows[0]["index"]) for rows in by_image(store)]
    order = [index for _, index in sorted(scores)]
    third = max(1, options.gallery // 3)
    lowest, others = order[:third], order[third:]
    highest, rest = others[::-1][:third], others[:-third]
    drawn = random.Random(0).sample(rest, min(len(rest), max(options.gallery - 2 * third, 0)))
    groups = {"Lowest scores": lowest, "Highest scores": highest, "Drawn by lot": sorted(drawn)}
    wanted = {index for group in groups.values() for index in group}
    items = {item["index"]: item for item in read_listing(store) if item["index"] in wanted}
    shown = {rows[0]["index"]: _shown(rows, items[rows[0]["index"]], options) for rows in by_image(store)
             if rows[0]["index"] in wanted}  # fmt: skip
    page = jinja2.Environment(autoescape=True).from_string(Path(__file__).with_name("gallery.html").read_text())
    labels = Counter(rows[0]["label"] for rows in by_image(store))
    facts = f"{len(scores)} images; " + ", ".join(f"{count} {label}" for label, count in labels.most_common(12))
    told = page.render(
        title="Localized by a model that learned from labels",
        facts=facts,
        groups=[(heading, [shown[index] for index in group]) for heading, group in groups.items()],
    )
    store.write("index.html", told.encode())
    return store.path("index.html")


def _shown(rows: Sequence[Row], item: dict[str, Any], options: LocalizeOptions) -> dict[str, Any]:
    picture = picture_of(rows, item, options, THUMBNAIL_SIDE)
    missing = "" if picture else "the image cannot be read any more"
    facts = {name: rows[0][name] for name in ("label", "score", "image_id")}
    return facts | {"picture": base64.b64encode(picture or b"").decode(), "reason": missing or rows[0]["reason"]}


def _write_all(store: Store, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files, a few at a time."""
    with ThreadPoolExecutor(WRITERS) as pool:
        waiting = []
        for name, data in files:
            waiting.append(pool.submit(store.write, name, data))
            if len(waiting) == 8 * WRITERS:
                waiting.pop(0).result()
        for one in waiting:
            one.result()


def _lines(names: Iterable[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


WRITE: dict[str, Callable[[Store, LocalizeOptions, Sequence[str]], str]] = {
    "coco": _coco, "voc": _voc, "yolo": _yolo, "csv": _csv, "masks": _masks, "overlays": _overlays, "html": _html,
}  # fmt: skip
