"""Readouts: how a map is read from a trained method. One file each: `ls` is the list.

    from wsol_models.readouts import readout
    for k, maps_BHW in readout("topk").search(method, images_BCHW, classes_B): ...

A readout file holds one `Readout`, a frozen dataclass whose fields are its options. It has three verbs:

    settings(method) -> list of settings: plain values that JSON can hold
    search(method, images_BCHW, classes_B, output=None) -> yields (setting, maps_BHW), all settings, none held back
    maps(method, images_BCHW, classes_B, setting, output=None) -> maps_BHW of one setting, equal to the search's

Maps are raw, float32, on the network's grid. `classes_B` are the classes to localize. `output` is a forward of the same
images, to share it; without one the readout runs its own. The method is in eval mode.
"""

import importlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from wsol_models import method_module, methods
from wsol_models._layers import LocalizationMethod, Output
from wsol_models._lookup import configured, file_names, unknown

Setting = int | float | str | bool | None | tuple[int | float | str | bool | None, ...]


class Readout(Protocol):
    """What every readout file's `Readout` is."""

    def settings(self, method: LocalizationMethod) -> list[Setting]: ...

    def search(
        self, method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor, output: Output | None = None
    ) -> Iterator[tuple[Setting, Tensor]]: ...

    def maps(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        setting: Setting,
        output: Output | None = None,
    ) -> Tensor: ...


def readouts() -> tuple[str, ...]:
    """Names of all readouts."""
    return file_names(__path__)


def readout(name: str, **options: Any) -> Readout:
    """A readout by name; options are its fields. Raises `ValueError` for an unknown name or option."""
    if name not in readouts():
        raise unknown("readout", name, readouts())
    return configured(importlib.import_module(f"{__name__}.{name}").Readout, name, options)


def require(readout_name: str, need: str, method: LocalizationMethod) -> None:
    """Raise `ValueError` unless the method offers what the readout needs and is in eval mode."""
    if need not in method.offers:
        offering = [name for name in methods() if need in method_module(name).Method.offers]
        name = type(method).__module__.rpartition(".")[2]
        raise ValueError(
            f"Readout {readout_name!r} needs {need} but {name!r} has none; methods that have: {', '.join(offering)}."
        )
    if method.training:
        raise ValueError("Maps are read from a method in eval mode: call method.eval() first.")


def forward(method: LocalizationMethod, images_BCHW: Tensor) -> Output:
    """The method's output without gradients."""
    with torch.no_grad():
        return method(images_BCHW)


def require_setting(readout_name: str, setting: Setting, settings: list[Setting]) -> None:
    """Raise `ValueError` unless the setting is one of `settings`."""
    if setting not in settings:
        raise unknown(f"setting of readout {readout_name!r}", setting, settings)
