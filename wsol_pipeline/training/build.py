"""From a training configuration to its method and readout; apart from the loop, so that a served model needs no Ray."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import wsol_models
from wsol_models import LocalizationMethod, readouts
from wsol_pipeline.training.config import TrainConfig


def build_method(config: TrainConfig, num_classes: int) -> LocalizationMethod:
    """The untrained method of `config`, in float64 if its precision is that or reproducible.

    Then it is drawn in float64 too: normal numbers of float32 differ in their last bits between CPUs. Raises
    `ValueError` with the known choices for a wrong name or option.
    """
    with _default_dtype(torch.float64 if config.precision in ("float64", "reproducible") else torch.float32):
        method = wsol_models.build(
            config.method,
            backbone=config.backbone,
            num_classes=num_classes,
            weights=config.weights,
            frozen_batch_norm=config.freeze_batch_norm,
            **config.options,
        )
        return method.to(torch.get_default_dtype())


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_readout(config: TrainConfig) -> Any:
    """How maps are read. Raises `ValueError` with the known choices for a wrong name or option."""
    options = config.readout_options.items()  # JSON has no tuples
    return readouts.readout(config.readout, **{k: tuple(v) if isinstance(v, list) else v for k, v in options})


def fixed_setting(wanted: Any, settings: Sequence[Any]) -> Any:
    """The published setting; one beyond what this method has (k > K) is its last, none its first."""
    return wanted if wanted in settings else settings[0 if wanted is None else -1]
