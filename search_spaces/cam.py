"""CAM: no constants of its own, so the learning rate is what is searched (`wsol_models/cam.py`)."""

from typing import Any

from search_spaces import Preset


def space(trial: Any) -> dict[str, Any]:
    """The benchmark's search (https://github.com/clovaai/wsolevaluation): learning rate, log-uniform in 1e-5 to 1."""
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1.0, log=True)}


# The benchmark's own tuned rates are in no released file; those of BagCAMs' script for its ResNet50 baseline are.
BAGCAMS_CUB = Preset(
    id="bagcams/table2/cub/resnet50/cam",
    method="cam",
    dataset="cub",
    backbone="resnet50",
    method_options={"large": True, "head_lr_scale": 10.0, "layer4_lr_scale": 1.0},
    recipe={
        "epochs": 50,
        "batch_size": 32,
        "learning_rate": 0.002248447,
        "weight_decay": 1e-4,
        "nesterov": True,
        "decay_every": 15,
        "decay_counts_from": 1,  # before the 15th epoch, the 30th, the 45th
    },
    readout={"name": "cam"},
    protocol="wsol-v2",
    published={"top1_loc": 55.31, "gt_known": 66.06, "max_box_acc_v2": 59.21, "piou": 46.70, "pxap": 65.94},
    source="https://github.com/zh460045050/BagCAMs",
)

PUBLISHED = {BAGCAMS_CUB.id: BAGCAMS_CUB}
