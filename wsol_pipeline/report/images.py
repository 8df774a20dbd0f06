"""What every model of a report shows on every single test image, as one Parquet file."""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wsol_pipeline.evaluation.cases import SCORES, Case, kind
from wsol_pipeline.evaluation.objects import Frame
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.redaction import redact
from wsol_pipeline.report.facts import Facts

INCLUSIVE = ("whole_mask", "components")  # box rules whose maxima are the last pixels, see `contours.boxes_per_mask`
_BOX = pa.list_(pa.field("side", pa.float64()), 4)
# name: (type, what it is); docs/studies.md has the same
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "model": (pa.string(), "a row of the comparison"),
    "image": (pa.string(), "id in the dataset"),
    "class": (pa.string(), "of the object, by the dataset's name"),
    "width": (pa.int64(), "of the stored image, pixels"),
    "height": (pa.int64(), "of the stored image, pixels"),
    "box": (_BOX, "predicted at the chosen threshold: left, top, right, bottom in pixels of the stored image, from 0; "
                  "right and bottom are the first outside. Null where masks are scored"),
    "true_boxes": (pa.list_(_BOX), "in the same pixels, as far as the evaluation sees them"),
    "iou": (pa.float64(), "the best of the predicted boxes (or the mask) with a true one, 0 to 1"),
    "rank": (pa.int64(), "classes that the model holds for likelier than the true one; 0: Top-1 is right"),
    "outcome": (pa.string(), "right, wrong class, or how the box fails"),
    "object_size": (pa.float64(), "share of the image that the largest true box takes, 0 to 1"),
    "max_box_acc_v2": (pa.float64(), "what the image adds to the metric of that name, 0 to 1"),
    "gt_known_loc": (pa.float64(), "the same, of that metric"),
    "top1_loc": (pa.float64(), "the same, of that metric"),
}  # fmt: skip
SCHEMA = pa.schema([pa.field(name, of, metadata={"description": told}) for name, (of, told) in COLUMNS.items()])


def table(facts: Facts) -> pa.Table:
    """A row for each model and test image (pair of image and class, of multi-label data), with `SCHEMA`."""
    main = facts.main
    rows = [
        {"model": line.row.label, **_row(case, main.description["classes"], main.protocol)}
        for line in facts.lines
        for case in line.cases
    ]
    return pa.Table.from_pylist(redact(rows), SCHEMA)


def parquet(facts: Facts) -> bytes:
    """`table` as a file."""
    file = io.BytesIO()
    pq.write_table(table(facts), file)
    return file.getvalue()


def _row(case: Case, classes: Sequence[str], rules: Protocol) -> dict[str, Any]:
    return {
        "image": case.id,
        "class": classes[case.label],
        "width": case.width,
        "height": case.height,
        "box": _in_image(_half_open(case, rules), case, rules) if case.box and case.width else None,
        "true_boxes": [_in_image((x0, y0, x1 + 1, y1 + 1), case, rules) for x0, y0, x1, y1 in case.truth if case.width],
        "iou": case.iou,
        "rank": case.rank,
        "outcome": kind(case),
        "object_size": case.size,
        **{metric: getattr(case, metric) for metric in SCORES},
    }


def _half_open(case: Case, rules: Protocol) -> tuple[float, ...]:
    """The predicted box of evaluation pixels by its edges: each evaluator has a convention of its own.

    Contours have exclusive maxima that are cut to the last pixel; one that was cut is taken to reach the edge.
    """
    x0, y0, *maxima = case.box
    if rules.box_rule in INCLUSIVE:
        return x0, y0, *(maximum + 1 for maximum in maxima)
    if rules.box_rule == "largest_component":
        return tuple(case.box)
    sides = rules.map_size((case.width, case.height))
    return x0, y0, *(side if maximum == side - 1 else maximum for maximum, side in zip(maxima, sides, strict=True))


def _in_image(box: Sequence[float], case: Case, rules: Protocol) -> list[float]:
    """A half-open box of evaluation pixels in pixels of the stored image."""
    x0, y0, x1, y1 = box
    return list(Frame.of((case.width, case.height), rules).box((x0, y0, x1, y1)))
