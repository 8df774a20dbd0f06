"""From a training configuration to its method and readout; apart from the loop, so that a served model needs no Ray."""

from collections.abc import Sequence
from typing import Any

import wsol_models
from wsol_models import LocalizationMethod, readouts
from wsol_pipeline.training.config import TrainConfig


def build_method(config: TrainConfig, num_classes: int) -> LocalizationMethod:
    """The untrained method of `config`, in float64 if that is its precision.

    Raises `ValueError` with the known choices for a wrong name or option.
    """
    method = wsol_models.build(
        config.method,
        backbone=config.backbone,
        num_classes=num_classes,
        weights=config.weights,
        frozen_batch_norm=config.freeze_batch_norm,
        **config.options,
    )
    return method.double() if config.precision == "float64" else method


def build_readout(config: TrainConfig) -> Any:
    """How maps are read. Raises `ValueError` with the known choices for a wrong name or option."""
    options = config.readout_options.items()  # JSON has no tuples
    return readouts.readout(config.readout, **{k: tuple(v) if isinstance(v, list) else v for k, v in options})


def fixed_setting(wanted: Any, settings: Sequence[Any]) -> Any:
    """The published setting; one beyond what this method has (k > K) is its last, none its first."""
    return wanted if wanted in settings else settings[0 if wanted is None else -1]
