"""The optimizer of a recipe: SGD with the method's own learning-rate multipliers, decayed by steps."""

import torch
from torch import nn

from wsol_models import LocalizationMethod
from wsol_pipeline.training.config import Recipe


def build_optimizer(method: LocalizationMethod, recipe: Recipe) -> torch.optim.SGD:
    """SGD with one group per multiplier that `method.lr_scale(name)` gives; every group remembers its `scale`.

    All parameters, biases and normalisation included, get the weight decay: the papers' code does so.
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
    )


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The base learning rate in 0-based `epoch`: x 0.1 at the start of every epoch divisible by `decay_every`.

    Epochs are counted from `decay_counts_from`: with 0 this is a usual StepLR; with 1 (wsolevaluation, B-CAM, BagCAMs)
    it decays one epoch earlier.
    """
    if recipe.decay_every == 0:
        return recipe.learning_rate
    return recipe.learning_rate * 0.1 ** ((epoch + recipe.decay_counts_from) // recipe.decay_every)


def set_learning_rate(optimizer: torch.optim.Optimizer, base: float) -> None:
    """Give each group `base` times its scale. A pure function of the epoch, so there is no scheduler to save."""
    for group in optimizer.param_groups:
        group["lr"] = base * group["scale"]
