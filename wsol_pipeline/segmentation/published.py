"""Published walks of the extension of BAS: what the rows of its Tables 9 to 15 mean for seeds and masks, with figures.

Figures are mIoU in percent. Seed and mask: of VOC2012's own training list, at the best threshold on these very images;
val: of a network, on VOC2012 val or COCO val. What needs other methods' maps (CDA, AdvCAM), Table 14 (CLIMS, W-OoD) and
VOC's test server are not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from wsol_pipeline.errors import unknown

OptionsT = TypeVar("OptionsT")
CONFIDENT = {"foreground_at": 0.30, "background_at": 0.17}
WALKED = {"by": ("irn",), "backbone": "resnet50", "weights": "imagenet", "power": 1.5}


@dataclass(frozen=True)
class Row:
    """A row of a table. `study`: the preset of its seed model; `seeds`, `refine`: options of these stations."""

    id: str
    study: str
    figures: Mapping[str, float]
    seeds: Mapping[str, Any] = field(default_factory=lambda: CONFIDENT)
    refine: Mapping[str, Any] = field(default_factory=lambda: WALKED)
    note: str = ""


VOC, COCO = "bas-ext/table6/voc12/resnet50/bas", "bas-ext/table6/coco14/resnet50/bas"
ROWS = {
    row.id: row
    for row in (
        Row("bas-ext/table9/voc12/irn", VOC, {"seed": 58.2, "mask": 71.1},
            note="seeds are the sum of BAS's maps and IRN's CAM: give the study of that CAM by --fuse"),
        Row("bas-ext/table11/voc12", VOC, {"val": 69.6},
            note="whether a dense field follows the network is not said; the test column needs VOC's server"),
        Row("bas-ext/table12/coco14", COCO, {"val": 45.1},
            note="masks, network and its initial weights are not said; the table prints R50, the text ResNet101"),
        Row("bas-ext/table13/voc12/base", VOC, {"seed": 57.7, "mask": 71.1, "val": 69.6},
            note="the mask is that of table 9's sum with IRN's CAM, the seed that of BAS alone"),
        Row("bas-ext/table13/voc12/replace", VOC, {"seed": 57.9, "mask": 71.4, "val": 69.9},
            CONFIDENT | {"agnostic": "replace"}),
        Row("bas-ext/table13/voc12/average", VOC, {"seed": 58.3, "mask": 71.6, "val": 70.3},
            CONFIDENT | {"agnostic": "average"}),
        Row("bas-ext/table15/voc12/global", VOC, {"seed": 57.7}),
        Row("bas-ext/table15/voc12/image-specific", VOC, {"seed": 57.8}, CONFIDENT | {"threshold": "image"}),
    )
}  # fmt: skip


def row(name: str) -> Row:
    """Raises `UsageError` with the nearest for a row that is not there."""
    if name not in ROWS:
        raise unknown("row of the walk", name, ROWS)
    return ROWS[name]


def with_row(options: OptionsT, preset: str, station: str) -> OptionsT:
    """Options with what a row has for a `station` ("seeds", "refine"), where nothing else was given."""
    if not preset:
        return options
    defaults = {each.name: each.default for each in fields(options)}  # type: ignore[arg-type]
    wanted = getattr(row(preset), station)
    given = {name: value for name, value in wanted.items() if getattr(options, name) == defaults[name]}
    return replace(options, **given)  # type: ignore[type-var]
