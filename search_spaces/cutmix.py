"""CutMix: how large patches are and how often there are some, and the learning rate (`wsol_models/cutmix.py`)."""

from functools import partial
from typing import Any

from search_spaces import cam
from search_spaces.cam import BOXES, MASKS, baseline, boxes, masks, per_image, per_iou, top1

# The benchmark searches the probability in 0 to 1. β: from patches of almost nothing or everything to halves.
BETA, PROBABILITY = (0.1, 2.0), (0.0, 1.0)


def space(trial: Any) -> dict[str, Any]:
    """Options of `wsol_models.cutmix.Config` and the recipe's learning rate for an Optuna trial."""
    return {
        **cam.space(trial),
        "beta": trial.suggest_float("beta", *BETA),
        "probability": trial.suggest_float("probability", *PROBABILITY),
    }


# What BagCAMs' script has for ResNet50 on CUB stands in for all rows; the options are B-CAM's too.
OPTIONS, LEARNING_RATE = {"beta": 1.35, "probability": 0.34}, 0.002251717
row = partial(baseline, method="cutmix", learning_rate=LEARNING_RATE, options=OPTIONS)

ROWS = [
    row("bagcams/table2", "cub", "resnet50", BOXES, boxes(56.27, 64.13, 59.08, **masks(44.21, 65.23))),
    row("bagcams/table2", "ilsvrc", "resnet50", BOXES, boxes(50.17, 65.84, 63.73)),
    row("bagcams/table2", "openimages", "resnet50", MASKS, masks(42.85, 57.97), large=False),
    row("bagcams/table3", "cub", "inception_v3", BOXES, boxes(51.86, 66.62, 59.44, **masks(51.4, 74.19))),
    row("bagcams/table3", "ilsvrc", "inception_v3", BOXES, boxes(50.72, 66.96, 64.44)),
    row("bagcams/table3", "openimages", "inception_v3", MASKS, masks(46.3, 62.12)),
    row("b-cam/table1", "cub", "resnet50", BOXES, top1(17.38, 56.18, 71.91, 48.49) | per_iou(21.86, 72.2, 94.9, 62.99)),
    row("b-cam/table3", "cub", "resnet50", MASKS, masks(47.06, 65.96)),
    row("b-cam/table3", "openimages", "resnet50", MASKS, masks(42.73, 57.47), split="-test"),
    row("b-cam/table3", "openimages", "resnet50", MASKS, masks(43.43, 58.18), split="-val"),
    row("b-cam/table4", "ilsvrc", "resnet50", BOXES, boxes(51.49, 64.52, 62.73)),
    row("b-cam/table8", "cub", "vgg16", BOXES, per_iou(28.58, 67.28, 91.08, 62.31), large=False),
    row("b-cam/table8", "cub", "inception_v3", BOXES, per_iou(16.24, 62.91, 93.13, 57.43)),
    row(
        "b-cam/table10", "cub", "resnet50", BOXES,
        per_image(top1(37.33, 71.26, 74.97, 61.19) | per_iou(48.53, 94.15, 99.91, 80.87)),
    ),
]  # fmt: skip

PUBLISHED = {preset.id: preset for preset in ROWS}
