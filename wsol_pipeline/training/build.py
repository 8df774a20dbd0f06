"""From a training configuration to its method; apart from the loop, so that a served model needs no Ray."""

import wsol_models
from wsol_models import LocalizationMethod
from wsol_pipeline.training.config import TrainConfig


def build_method(config: TrainConfig, num_classes: int) -> LocalizationMethod:
    """The untrained method of `config`. Raises `ValueError` with the known choices for a wrong name or option."""
    return wsol_models.build(
        config.method,
        backbone=config.backbone,
        num_classes=num_classes,
        weights=config.weights,
        frozen_batch_norm=config.freeze_batch_norm,
        **config.options,
    )
