"""The same training images through every station: their true masks, seeds, pseudo masks, what a network says."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw

from wsol_pipeline.data.audit import open_audit
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.errors import DataError
from wsol_pipeline.segmentation import masks, station
from wsol_pipeline.segmentation.exports import COLUMN
from wsol_pipeline.segmentation.make_seeds import Image, read_images, true_labels
from wsol_pipeline.segmentation.segmenter import load_segmenter
from wsol_pipeline.segmentation.station import Part, Station
from wsol_pipeline.storage import Store
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.score import Progress, local_device, silent

STATIONS, IMAGES = "stations.png", 8
HEIGHT, GAP, NAMES = 130, 4, 150  # pixels: of a picture, between two, of the column of names
STRENGTH = 0.6  # of a mask's colours over the image

Tiles = list[Picture.Image]


def draw_stations(options: EvaluateOptions, progress: Progress = silent) -> str:
    """Write the picture beside the last of the finished stations of `options.segmentation`; where it is.

    Columns are training images with a true mask, evenly spread; rows the image, its true mask, and what each station
    holds or says of it; a network on images that it was trained on. Raises `DataError` for stations of different data,
    or for data whose masks of training images were not kept.
    """
    names, device = options.segmentation, local_device(options.device)
    found = {name: station.finished(options.store, name) for name in names}
    if len({one.identity["dataset"] for one in found.values()}) > 1:
        raise DataError(f"{', '.join(names)} are of different data: their images are not the same.")
    rows: dict[str, Tiles] = {}
    with progress("pictures", len(found)) as add:
        for name, one in found.items():
            for row, tiles in _rows(name, one, device).items():
                rows.setdefault(row, tiles)
            add(1)
    last, sink = found[names[-1]], io.BytesIO()
    _sheet(rows).save(sink, "PNG", optimize=True)
    last.place.write(STATIONS, sink.getvalue())
    return last.place.path(STATIONS)


def _rows(name: str, found: Station, device: str) -> dict[str, Tiles]:
    """What one station adds to the sheet."""
    if found.manifest["kind"] not in COLUMN:
        source, segmenter = station.source(found, "masks"), load_segmenter(Store.at(found.uri("model")), device)
        shown = [(image, segmenter.segment(image.pixels_HW3)) for image, _, _ in _spread(source)]
        return {name: [_over(image, labels_HW) for image, labels_HW in shown]}
    column, images = COLUMN[found.manifest["kind"]], list(_spread(found))
    return {
        "image": [_tile(image.pixels_HW3) for image, _, _ in images],
        "true mask": [_over(image, truth_HW) for image, _, truth_HW in images],
        name: [_over(image, masks.decode(row[column])) for image, row, _ in images],
    }


def _spread(found: Station) -> Iterator[tuple[Image, dict[str, Any], np.ndarray]]:
    """(image, what the station holds of it, its true labels) of some training images that have a true mask."""
    dataset, column = open_dataset(found.uri("data")), COLUMN[found.manifest["kind"]]
    ids = found.read("train", np.arange(dataset.train.num_rows), ["id"])["id"].to_pylist()
    masked = {name for name, mask, _ in open_audit(dataset).masks() if mask is not None}
    rows = [row for row, name in enumerate(ids) if name in masked]
    wanted = sorted({rows[at] for at in np.linspace(0, len(rows) - 1, IMAGES).astype(int)})
    shown = {ids[row] for row in wanted}
    truths = {name: (mask, ignore) for name, mask, ignore in open_audit(dataset).masks() if name in shown}
    for row in wanted:
        (image,) = read_images(dataset.train, Part("train", 0, row, row + 1))
        (held,) = found.read("train", np.array([row]), ["id", column]).to_pylist()
        size_wh = image.pixels_HW3.shape[1], image.pixels_HW3.shape[0]
        yield image, held, true_labels(*truths[image.id], size_wh, image.labels, dataset.multilabel)


def _over(image: Image, labels_HW: np.ndarray) -> Picture.Image:
    """Labels in their colours over the image; background is the image itself, what is not judged is white."""
    colours_L3 = np.array(masks.palette(), float).reshape(256, 3)
    labelled_HW1 = (labels_HW > 0)[..., None] * STRENGTH
    mixed_HW3 = image.pixels_HW3 * (1 - labelled_HW1) + colours_L3[labels_HW] * labelled_HW1
    return _tile(mixed_HW3.astype(np.uint8))


def _tile(pixels_HW3: np.ndarray) -> Picture.Image:
    picture = Picture.fromarray(pixels_HW3)
    return picture.resize((max(1, round(picture.width * HEIGHT / picture.height)), HEIGHT))


def _sheet(rows: dict[str, Tiles]) -> Picture.Image:
    widths = [tile.width for tile in next(iter(rows.values()))]
    size = (NAMES + sum(widths) + GAP * len(widths), (HEIGHT + GAP) * len(rows))
    sheet = Picture.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, tiles) in enumerate(rows.items()):
        top, left = number * (HEIGHT + GAP), NAMES
        pen.text((GAP, top + HEIGHT // 2), name, fill="black")
        for tile in tiles:
            sheet.paste(tile, (left, top))
            left += tile.width + GAP
    return sheet
