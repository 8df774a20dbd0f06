"""BagCAMs: no constants to train. What its paper varies, stage and weighting, is solved for a finished model.

`rayjobs/tune_bagcams.py` solves them; the paper's rows are the models of other files, read in another way.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from search_spaces import Preset, spaces


def space(trial: Any) -> dict[str, Any]:
    """Nothing to propose."""
    return {}


METRICS = ("top1_loc", "gt_known_loc", "max_box_acc_v2", "piou", "pxap")
READOUTS = {"pcs": "pcs", "gradcam": "gradcam", "gradcam++": "gradcampp", "bagcams": "bagcams"}
LAYERS = ("layer1", "layer2", "layer3", "layer4")
MIXED = ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")
STAGE = {"resnet50": "layer3", "inception_v3": "Mixed_6e"}

# table, dataset, backbone, model | METRICS of BagCAMs on it
TABLES_2_AND_3 = [
    ("table2", "cub", "resnet50", "cam", 70.89, 87.44, 76.22, 64.40, 84.38),
    ("table2", "ilsvrc", "resnet50", "cam", 52.14, 70.78, 69.13, None, None),
    ("table2", "openimages", "resnet50", "cam", None, None, None, 47.92, 62.52),
    ("table2", "cub", "resnet50", "has", 65.93, 89.65, 84.45, 70.24, 88.94),
    ("table2", "ilsvrc", "resnet50", "has", 53.32, 70.67, 69.17, None, None),
    ("table2", "openimages", "resnet50", "has", None, None, None, 47.71, 62.45),
    ("table2", "cub", "resnet50", "cutmix", 72.96, 87.44, 79.67, 64.93, 85.36),
    ("table2", "ilsvrc", "resnet50", "cutmix", 53.02, 69.92, 68.53, None, None),
    ("table2", "openimages", "resnet50", "cutmix", None, None, None, 46.67, 60.16),
    ("table2", "cub", "resnet50", "adl", 64.41, 86.06, 74.48, 60.46, 81.07),
    ("table2", "ilsvrc", "resnet50", "adl", 53.05, 70.51, 68.97, None, None),
    ("table2", "openimages", "resnet50", "adl", None, None, None, 47.04, 61.76),
    ("table2", "cub", "resnet50", "daol", 69.67, 94.01, 84.88, 74.51, 90.38),
    ("table2", "ilsvrc", "resnet50", "daol", 44.24, 72.08, 69.97, None, None),
    ("table2", "openimages", "resnet50", "daol", None, None, None, 52.17, 67.68),
    ("table3", "cub", "inception_v3", "cam", 54.75, 74.75, 65.65, 60.34, 81.49),
    ("table3", "ilsvrc", "inception_v3", "cam", 52.22, 68.84, 66.46, None, None),
    ("table3", "openimages", "inception_v3", "cam", None, None, None, 49.98, 65.91),
    ("table3", "cub", "inception_v3", "has", 57.93, 79.44, 69.65, 61.75, 83.03),
    ("table3", "ilsvrc", "inception_v3", "has", 52.22, 69.20, 66.89, None, None),
    ("table3", "openimages", "inception_v3", "has", None, None, None, 48.44, 64.37),
    ("table3", "cub", "inception_v3", "cutmix", 58.48, 79.58, 68.09, 62.44, 83.15),
    ("table3", "ilsvrc", "inception_v3", "cutmix", 52.60, 70.57, 68.04, None, None),
    ("table3", "openimages", "inception_v3", "cutmix", None, None, None, 49.28, 65.23),
    ("table3", "cub", "inception_v3", "adl", 54.75, 74.34, 64.87, 60.09, 81.41),
    ("table3", "ilsvrc", "inception_v3", "adl", 51.63, 68.81, 66.42, None, None),
    ("table3", "openimages", "inception_v3", "adl", None, None, None, 49.22, 65.31),
    ("table3", "cub", "inception_v3", "daol", 60.07, 89.78, 76.94, 58.05, 72.97),
    ("table3", "ilsvrc", "inception_v3", "daol", 53.87, 71.02, 66.93, None, None),
    ("table3", "openimages", "inception_v3", "daol", None, None, None, 50.79, 66.89),
]

# model, readout | METRICS at the stage that was best on test; here it is chosen on validation
TABLE_4 = [
    ("cam", "pcs", 60.27, 73.93, 65.24, 52.05, 72.06),
    ("cam", "gradcam", 56.68, 69.93, 61.70, 49.51, 68.69),
    ("cam", "gradcam++", 61.10, 73.79, 69.14, 53.61, 76.33),
    ("cam", "bagcams", 70.89, 87.44, 76.22, 64.40, 84.38),
    ("has", "pcs", 53.65, 73.24, 67.90, 54.87, 76.72),
    ("has", "gradcam", 56.82, 77.79, 69.37, 55.64, 76.77),
    ("has", "gradcam++", 55.31, 76.82, 70.29, 53.34, 75.54),
    ("has", "bagcams", 65.93, 89.65, 84.45, 70.24, 88.94),
    ("cutmix", "pcs", 57.65, 68.13, 61.51, 48.19, 68.74),
    ("cutmix", "gradcam", 60.96, 72.68, 64.50, 52.10, 71.49),
    ("cutmix", "gradcam++", 63.17, 77.10, 67.67, 53.77, 74.78),
    ("cutmix", "bagcams", 72.96, 87.44, 79.67, 64.93, 85.36),
    ("adl", "pcs", 52.13, 66.75, 59.31, 45.40, 59.49),
    ("adl", "gradcam", 52.13, 66.75, 59.31, 45.40, 59.49),
    ("adl", "gradcam++", 53.65, 70.89, 61.19, 44.72, 61.14),
    ("adl", "bagcams", 64.41, 86.06, 74.48, 60.46, 81.07),
    ("daol", "pcs", 63.30, 84.57, 71.49, 58.94, 76.81),
    ("daol", "gradcam", 63.30, 84.57, 71.49, 58.94, 76.81),
    ("daol", "gradcam++", 66.13, 89.60, 75.71, 63.08, 80.23),
    ("daol", "bagcams", 69.67, 94.01, 84.88, 74.51, 90.38),
]

# readout | PxAP at each of LAYERS of the ResNet50
TABLE_5 = {
    "pcs": (42.01, 51.36, 72.96, 65.94),
    "gradcam": (15.05, 19.61, 68.69, 65.94),
    "gradcam++": (13.16, 32.01, 76.33, 71.49),
    "bagcams": (71.35, 78.71, 84.38, 72.98),
}

# readout | PxAP at each of MIXED of the InceptionV3
TABLE_6 = {
    "pcs": (41.42, 61.37, 75.36, 76.32),
    "gradcam": (28.91, 46.62, 65.41, 76.19),
    "gradcam++": (26.77, 43.26, 65.41, 68.0),
    "bagcams": (78.14, 81.46, 82.8, 81.49),
}

# weighting | METRICS
TABLE_8 = [
    ("ours1", 66.75, 82.34, 74.80, None, 77.29),
    ("ours2", 70.20, 86.20, 74.16, None, 81.79),
    ("ours3", 70.89, 87.44, 76.22, None, 84.38),
]

# Where text and code of the maps differ, by readout.
NOTES: dict[str, tuple[str, ...]] = {
    "bagcams": (
        "Maps: by the text's formula they are those of PCS without ReLU; the code weighs each channel by its own mean. "
        "Here: as the code.",
        "Gradients: the code lets none that are negative through a ReLU, which the text does not say. Here: as the "
        "code.",
        "Log: the code takes it of the raw logit, not of a probability. Here: as the code.",
    ),
    "weightings": (
        "Weighting: the code has ours3 alone. Here: our reading, the text's Eq. 8 with Table 1's weights, each channel "
        "by itself as in the code.",
    ),
    "gradcampp": ("Weights: the text's table leaves out the exponential and the ReLU of GradCAM++. Here: with them.",),
    "gradcam": (),
    "pcs": (),
}

Figures = tuple[float | None, ...]


def trained() -> dict[str, Preset]:
    """The rows of all other files: models, each with the id of the row that trained it."""
    others = (importlib.import_module(f"search_spaces.{name}") for name in spaces() if name != "bagcams")
    return {id: row for other in others for id, row in other.PUBLISHED.items()}


MODELS = trained()


def reading(id: str, model: str, readout: Mapping[str, Any], figures: Figures) -> list[Preset]:
    """The row `id`: the model of another row with maps read by `readout`. None while that method has no file."""
    if model not in MODELS:
        return []
    published = {name: value for name, value in zip(METRICS, figures, strict=True) if value is not None}
    protocol = "wsol-v2" if "gt_known_loc" in published else "wsol-mask"
    trained = MODELS[model]
    notes = (*NOTES[readout["name"]], *trained.notes)
    return [dataclasses.replace(trained, id=id, readout=readout, protocol=protocol, published=published, notes=notes)]


def at(readout: str, *stages: str, **options: Any) -> dict[str, Any]:
    return {"name": READOUTS[readout], "options": {"stages": stages, **options}}


def tables_2_and_3(table: str, dataset: str, backbone: str, model: str, *figures: float | None) -> list[Preset]:
    row = f"bagcams/{table}/{dataset}/{backbone}/{model}"
    return reading(f"{row}+bagcams", row, at("bagcams", STAGE[backbone]), figures)


def table_4(model: str, readout: str, *figures: float | None) -> list[Preset]:
    stages = (STAGE["resnet50"],) if readout == "bagcams" else LAYERS
    row = f"bagcams/table4/cub/resnet50/{model}+{readout}"
    return reading(row, f"bagcams/table2/cub/resnet50/{model}", at(readout, *stages), figures)


def table_5(readout: str, layer: str, pxap: float) -> list[Preset]:
    row = f"bagcams/table5/cub/resnet50/{readout}/{layer}"
    return reading(row, "bagcams/table2/cub/resnet50/cam", at(readout, layer), (None,) * 4 + (pxap,))


def table_6(readout: str, stage: str, pxap: float) -> list[Preset]:
    row = f"bagcams/table6/cub/inception_v3/{readout}/{stage.lower()}"
    return reading(row, "bagcams/table3/cub/inception_v3/cam", at(readout, stage), (None,) * 4 + (pxap,))


def table_8(weighting: str, *figures: float | None) -> list[Preset]:
    readout = at("bagcams", STAGE["resnet50"], weightings=(weighting,))
    rows = reading(f"bagcams/table8/cub/resnet50/{weighting}", "bagcams/table2/cub/resnet50/cam", readout, figures)
    told = () if weighting == "ours3" else NOTES["weightings"]
    return [dataclasses.replace(row, notes=(*told, *row.notes)) for row in rows]


ROWS = [
    *(tables_2_and_3(*row) for row in TABLES_2_AND_3),
    *(table_4(*row) for row in TABLE_4),
    *(table_5(name, *cell) for name, row in TABLE_5.items() for cell in zip(LAYERS, row, strict=True)),
    *(table_6(name, *cell) for name, row in TABLE_6.items() for cell in zip(MIXED, row, strict=True)),
    *(table_8(*row) for row in TABLE_8),
]
PUBLISHED = {row.id: row for found in ROWS for row in found}
