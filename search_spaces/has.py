"""HaS: cells and how many of them are hidden, and the learning rate (`wsol_models/has.py`)."""

from functools import partial
from typing import Any

from search_spaces import cam
from search_spaces.cam import BOXES, MASKS, baseline, boxes, masks, per_image, per_iou, top1

# The benchmark searches the share in 0 to 1; the side of a cell spans its default (4 px) and what was tuned (120 px).
GRID_SIZE, DROP_RATE = (4, 128), (0.0, 1.0)


def space(trial: Any) -> dict[str, Any]:
    """Options of `wsol_models.has.Config` and the recipe's learning rate for an Optuna trial."""
    return {
        **cam.space(trial),
        "grid_size": trial.suggest_int("grid_size", *GRID_SIZE, log=True),
        "drop_rate": trial.suggest_float("drop_rate", *DROP_RATE),
    }


# What BagCAMs' script has for ResNet50 on CUB stands in for all rows; the options are B-CAM's too.
OPTIONS, LEARNING_RATE = {"grid_size": 120, "drop_rate": 0.66}, 0.003619965
row = partial(baseline, method="has", learning_rate=LEARNING_RATE, options=OPTIONS)

ROWS = [
    row("bagcams/table2", "cub", "resnet50", BOXES, boxes(54.48, 72.55, 66.25, **masks(51.0, 71.87))),
    row("bagcams/table2", "ilsvrc", "resnet50", BOXES, boxes(50.8, 66.91, 64.67)),
    row("bagcams/table2", "openimages", "resnet50", MASKS, masks(42.28, 55.83), large=False),
    row("bagcams/table3", "cub", "inception_v3", BOXES, boxes(52.68, 70.89, 62.39, **masks(52.78, 74.07))),
    row("bagcams/table3", "ilsvrc", "inception_v3", BOXES, boxes(51.0, 66.99, 64.26)),
    row("bagcams/table3", "openimages", "inception_v3", MASKS, masks(42.87, 59.5)),
    row(
        "b-cam/table1", "cub", "resnet50", BOXES, top1(21.46, 56.45, 70.16, 49.36) | per_iou(27.74, 74.33, 94.33, 65.47)
    ),
    row("b-cam/table3", "cub", "resnet50", MASKS, masks(49.74, 68.75)),
    row("b-cam/table3", "openimages", "resnet50", MASKS, masks(41.92, 55.1), split="-test"),
    row("b-cam/table3", "openimages", "resnet50", MASKS, masks(42.47, 55.84), split="-val"),
    row("b-cam/table4", "ilsvrc", "resnet50", BOXES, boxes(52.33, 65.39, 63.42)),
    row("b-cam/table8", "cub", "vgg16", BOXES, per_iou(29.1, 69.93, 92.1, 63.71), large=False),
    row("b-cam/table8", "cub", "inception_v3", BOXES, per_iou(12.63, 56.21, 91.3, 53.38)),
    row(
        "b-cam/table10", "cub", "resnet50", BOXES,
        per_image(top1(42.16, 70.68, 73.06, 61.97) | per_iou(56.52, 96.0, 99.98, 84.17)),
    ),
]  # fmt: skip

PUBLISHED = {preset.id: preset for preset in ROWS}
