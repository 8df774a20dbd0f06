"""Methods of weakly supervised object localization, one file per paper: `ls` is the list.

    from wsol_models import build, method_module
    method = build("bas", backbone="resnet50", num_classes=200, weights="imagenet", alpha=0.5, beta=1.5)
    output = method(images_BCHW, targets_B)
    loss = sum(method_module("bas").losses(output, method.config).values())

A method file holds a frozen `Config` with the paper's values as defaults, a `Method` and its `losses`, with
`reduction="none"` those of each image (SPG's and DA-WSOL's are of the whole batch). A `Config` says
with `layout` which form of backbone it wants (`_backbones/`). To add a method, add its file.
"""

import importlib
from types import ModuleType
from typing import Any

from wsol_models import _backbones
from wsol_models._backbones import LATER as LATER
from wsol_models._backbones import backbone_names as backbone_names
from wsol_models._backbones import network_state as network_state
from wsol_models._layers import LocalizationMethod
from wsol_models._lookup import configured, file_names, unknown


def methods() -> tuple[str, ...]:
    """Names of all methods."""
    return file_names(__path__)


def backbones() -> tuple[str, ...]:
    """Names of all backbones."""
    return tuple(_backbones.BACKBONES)


def pretrained_backbones() -> tuple[str, ...]:
    """Names of the backbones that have ImageNet weights to download."""
    return tuple(name for name, entry in _backbones.BACKBONES.items() if entry.imagenet)


def method_module(name: str) -> ModuleType:
    """The module of a method, with its `Config`, `Method` and `losses`. Raises `ValueError` for an unknown name."""
    if name not in methods():
        raise unknown("method", name, methods())
    return importlib.import_module(f"wsol_models.{name}")


def build(
    name: str,
    *,
    backbone: str,
    num_classes: int,
    weights: str | None = None,
    frozen_batch_norm: bool = False,
    **options: Any,
) -> LocalizationMethod:
    """A method on a backbone, in training mode.

    weights: of the backbone: "imagenet", the path of a state dict (`.pth`, `.safetensors`) None for random ones, or
        `LATER` if a state dict of the method will be loaded.
    frozen_batch_norm: batch norm keeps its stored statistics in training; its scale and shift are trained.
    options: fields of the method's `Config`.
    Raises `ValueError` for an unknown method, backbone or option, or a value that breaks a rule.
    """
    module = method_module(name)
    config = configured(module.Config, name, options)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 but is {num_classes}.")
    network = _backbones.backbone(backbone, config.layout, weights, frozen_batch_norm)
    return module.Method(config, network, num_classes)
