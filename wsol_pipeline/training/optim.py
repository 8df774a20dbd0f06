"""The optimizer of a recipe: SGD with the method's own learning-rate multipliers, and the schedule of its rate."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from wsol_models import LocalizationMethod
from wsol_pipeline.training.config import Recipe

POLY_POWER = 0.9
PLATEAU_THRESHOLD = 1e-4  # of the best value; torch's default


def build_optimizer(method: LocalizationMethod, recipe: Recipe) -> torch.optim.SGD:
    """SGD with one group per multiplier that `method.lr_scale(name)` gives; every group remembers its `scale`.

    All parameters, biases and normalisation included, get the weight decay: the papers' code does so. On a GPU it is
    one kernel, which can be told not to move (see `guard`).
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(float(method.lr_scale(name)), []).append(parameter)
    return torch.optim.SGD(
        [{"params": parameters, "scale": scale} for scale, parameters in sorted(groups.items())],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,  # without momentum both are plain SGD; torch refuses
        fused=all(parameter.is_cuda for parameter in method.parameters()) or None,
    )


def learning_rate(recipe: Recipe, epoch: int, records: Sequence[Mapping[str, Any]] = (), done: float = 0.0) -> float:
    """The base learning rate in 0-based `epoch`, by the recipe's schedule.

    "step": x 0.1 at the start of every epoch divisible by `decay_every`, counted from `decay_counts_from`: with 0 this
        is a usual StepLR; with 1 (wsolevaluation, B-CAM, BagCAMs) it decays one epoch earlier.
    "plateau_top1", "plateau_loss": x 0.1 after more than `plateau_patience` epochs in a row in which validation's
        Top-1 accuracy, or the training loss, was no better (mLDFR's code, its text).
    "poly": x (1 - share of all steps done)^0.9 (the extension of BAS on segmentation).

    A pure function of the epoch, the records of the epochs before and the share of this one that is `done`, so there
    is no scheduler to save, and all ranks agree.
    """
    if recipe.schedule == "poly":
        return recipe.learning_rate * (1 - (epoch + done) / recipe.epochs) ** POLY_POWER
    if recipe.schedule == "plateau_top1":
        tenths = plateaus([record["val"]["cls_top1"] for record in records[:epoch]], recipe.plateau_patience)
    elif recipe.schedule == "plateau_loss":
        tenths = plateaus([-record["train"]["loss"] for record in records[:epoch]], recipe.plateau_patience)
    elif recipe.decay_every:
        tenths = (epoch + recipe.decay_counts_from) // recipe.decay_every
    else:
        tenths = 0
    return recipe.learning_rate * 0.1**tenths


def plateaus(values: Sequence[float], patience: int) -> int:
    """How often more than `patience` values in a row were not above the best before by a ten-thousandth of its size:
    how often torch's ReduceLROnPlateau reduces the rate."""
    best, waited, found = -math.inf, 0, 0
    for value in values:
        if value > best + PLATEAU_THRESHOLD * abs(best) or best == -math.inf:
            best, waited = value, 0
        else:
            waited += 1
        if waited > patience:
            found, waited = found + 1, 0
    return found


def set_learning_rate(optimizer: torch.optim.Optimizer, base: float) -> None:
    """Give each group `base` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = base * group["scale"]
