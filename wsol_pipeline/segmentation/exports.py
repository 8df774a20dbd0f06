"""Label images of a station for other programs: palette PNG, run lengths in Parquet, COCO's annotations."""

import io
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsol_pipeline.segmentation import masks
from wsol_pipeline.segmentation.masks import Labels
from wsol_pipeline.segmentation.station import Station, parts_of
from wsol_pipeline.storage import Store

COLUMN = {"seeds": "seed", "pseudo masks": "pseudo_mask"}
RUNS = pa.schema([("id", pa.string()), ("label", pa.int16()), ("class", pa.string()), ("height", pa.int32()),
                  ("width", pa.int32()), ("counts", pa.string())])  # fmt: skip


def export(found: Station, out: Store) -> int:
    """Write the label images of training images to `out`: PNGs by id, masks.parquet, coco.json; how many there are."""
    classes, runs, images = found.manifest["classes"], [], 0
    for name, labels_HW in _label_images(found):
        out.write(f"png/{name}.png", masks.encode(labels_HW))
        images += 1
        for label, encoded in masks.run_lengths(labels_HW):
            height, width = encoded["size"]
            runs.append({"id": name, "label": label, "class": classes[label - 1], "height": height, "width": width,
                         "counts": encoded["counts"]})  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(runs, schema=RUNS), sink)
    out.write("masks.parquet", sink.getvalue())
    out.write("coco.json", json.dumps(masks.coco(_label_images(found), classes)).encode())
    return images


def _label_images(found: Station) -> Iterator[tuple[str, Labels]]:
    column = COLUMN[found.manifest["kind"]]
    for part in parts_of("train", found.rows("train")):
        for row in found.read("train", np.arange(part.begin, part.end), ["id", column]).to_pylist():
            yield row["id"], masks.decode(row[column])
