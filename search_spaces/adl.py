"""ADL: how often and from which attention on features are dropped, and the learning rate (`wsol_models/adl.py`)."""

from functools import partial
from typing import Any

from search_spaces import cam
from search_spaces.cam import BOXES, MASKS, baseline, boxes, masks, per_image, per_iou, top1

# As the benchmark searches.
DROP_RATE, THRESHOLD = (0.0, 1.0), (0.0, 1.0)


def space(trial: Any) -> dict[str, Any]:
    """Options of `wsol_models.adl.Config` and the recipe's learning rate for an Optuna trial."""
    return {
        **cam.space(trial),
        "drop_rate": trial.suggest_float("drop_rate", *DROP_RATE),
        "threshold": trial.suggest_float("threshold", *THRESHOLD),
    }


# What BagCAMs' script has for ResNet50 on CUB stands in for all rows; the options are B-CAM's too.
OPTIONS, LEARNING_RATE = {"drop_rate": 0.24, "threshold": 0.76}, 0.012534383
row = partial(baseline, method="adl", learning_rate=LEARNING_RATE, options=OPTIONS)

ROWS = [
    row("bagcams/table2", "cub", "resnet50", BOXES, boxes(52.13, 66.75, 59.31, **masks(45.4, 59.49))),
    row("bagcams/table2", "ilsvrc", "resnet50", BOXES, boxes(50.4, 66.88, 64.5)),
    row("bagcams/table2", "openimages", "resnet50", MASKS, masks(42.29, 56.21), large=False),
    row("bagcams/table3", "cub", "inception_v3", BOXES, boxes(49.1, 62.62, 57.01, **masks(49.72, 70.06))),
    row("bagcams/table3", "ilsvrc", "inception_v3", BOXES, boxes(50.2, 66.3, 63.66)),
    row("bagcams/table3", "openimages", "inception_v3", MASKS, masks(47.03, 63.42)),
    row(
        "b-cam/table1", "cub", "resnet50", BOXES, top1(11.68, 48.52, 65.53, 41.91) | per_iou(16.36, 67.5, 94.61, 59.49)
    ),
    row("b-cam/table3", "cub", "resnet50", MASKS, masks(43.39, 56.96)),
    row("b-cam/table3", "openimages", "resnet50", MASKS, masks(42.05, 55.02), split="-test"),
    row("b-cam/table3", "openimages", "resnet50", MASKS, masks(42.33, 55.26), split="-val"),
    row("b-cam/table4", "ilsvrc", "resnet50", BOXES, boxes(50.63, 65.85, 63.9)),
    row("b-cam/table8", "cub", "vgg16", BOXES, per_iou(23.04, 78.06, 97.72, 66.28), large=False),
    row("b-cam/table8", "cub", "inception_v3", BOXES, per_iou(16.86, 65.79, 93.77, 58.81)),
    row(
        "b-cam/table10", "cub", "resnet50", BOXES,
        per_image(top1(30.53, 66.67, 69.76, 55.66) | per_iou(42.42, 94.29, 99.98, 78.9)),
    ),
]  # fmt: skip

PUBLISHED = {preset.id: preset for preset in ROWS}
