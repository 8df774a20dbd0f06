"""Readouts: how a map is read from a trained method. One file each: `ls` is the list.

    from wsol_models.readouts import readout
    for k, maps_BHW in readout("topk").search(method, images_BCHW, classes_B): ...

A readout file holds one `Readout`, a frozen dataclass whose fields are its options, and the plain math it reads maps
with. It works on every method that offers what it needs.
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wsol_models import method_module, methods
from wsol_models._layers import LocalizationMethod, Output
from wsol_models._lookup import configured, file_names, unknown

Setting = int | float | str | bool | None | tuple[int | float | str | bool | None, ...]


class LocalizationReadout:
    """What every `Readout` is: settings, each a plain value that JSON can hold, whose maps are read from shared passes.

    A file writes `settings`, `passes` and `read`. Maps are raw, B×H×W, float32 at least (B×2×H×W where a map is told
    by two, the object's and the background's: it shows where the first is the higher), on the network's grid unless the
    readout says otherwise. `classes_B` are the classes to localize. `output` is a forward of the same images, to share
    it; without one, or where it needs gradients, the readout runs its own. The method is in eval mode.

    enlarges: maps are enlarged to the images bilinearly, since that is what the authors normalise; else an evaluation
        enlarges them, in its own way.
    needs_stored: `search` and `maps` are to be handed `stored_BCHW` too, the photographs as they are stored, of one
        size, and `prepare`, which turns what is resized into what the network takes, if it is not yet; maps are of the
        whole photographs.
    """

    enlarges: ClassVar[bool] = False
    needs_stored: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return file_of(type(self))

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        """All settings. Raises `ValueError` if the method lacks what the readout needs or is in training mode."""
        raise NotImplementedError

    def passes(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        settings: Sequence[Setting],
        output: Output | None,
    ) -> Any:
        """What the maps of all `settings` are read from, made once."""
        raise NotImplementedError

    def read(self, passes: Any, classes_B: Tensor, setting: Setting) -> Tensor:
        """Maps of one setting."""
        raise NotImplementedError

    def cuts_itself(self, setting: Setting) -> bool:
        """Whether the maps of a setting are masks already, which no threshold changes."""
        return False

    def check(self, method: LocalizationMethod, setting: Setting) -> None:
        """Raise `ValueError` unless the setting is one for this method."""
        require_setting(self.name, setting, self.settings(method))

    def search(
        self, method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor, output: Output | None = None
    ) -> Iterator[tuple[Setting, Tensor]]:
        """(setting, maps) of all settings, in their order and none held back."""
        for setting, maps in self.coarse_search(method, images_BCHW, classes_B, output):
            yield setting, enlarged(maps, images_BCHW.shape[2:]) if self.enlarges else maps

    def maps(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        setting: Setting,
        output: Output | None = None,
    ) -> Tensor:
        """Maps of one setting, equal to the search's."""
        maps = self.coarse_maps(method, images_BCHW, classes_B, setting, output)
        return enlarged(maps, images_BCHW.shape[2:]) if self.enlarges else maps

    def coarse_search(
        self, method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor, output: Output | None = None
    ) -> Iterator[tuple[Setting, Tensor]]:
        """`search`, with maps as they were before they are enlarged: for readouts that add them up over views."""
        settings = self.settings(method)
        passes = self.passes(method, images_BCHW, classes_B, settings, output)
        for setting in settings:
            yield setting, self.read(passes, classes_B, setting)

    def coarse_maps(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        setting: Setting,
        output: Output | None = None,
    ) -> Tensor:
        """`maps`, as `coarse_search` has them."""
        self.check(method, setting)
        return self.read(self.passes(method, images_BCHW, classes_B, [setting], output), classes_B, setting)


def readouts() -> tuple[str, ...]:
    """Names of all readouts."""
    return file_names(__path__)


def readout(name: str, **options: Any) -> LocalizationReadout:
    """A readout by name; options are its fields. Raises `ValueError` for an unknown name or option."""
    if name not in readouts():
        raise unknown("readout", name, readouts())
    return configured(importlib.import_module(f"{__name__}.{name}").Readout, name, options)


def require(readout_name: str, need: str, method: LocalizationMethod) -> None:
    """Raise `ValueError` unless the method offers what the readout needs and is in eval mode."""
    if need not in method.offers:
        offering = [name for name in methods() if need in method_module(name).Method.offers]
        raise ValueError(
            f"Readout {readout_name!r} needs {need} but {file_of(type(method))!r} has none; "
            f"methods that have: {', '.join(offering)}."
        )
    require_eval(method)


def require_eval(method: LocalizationMethod) -> None:
    """Raise `ValueError` for a method in training mode."""
    if method.training:
        raise ValueError("Maps are read from a method in eval mode: call method.eval() first.")


def require_setting(readout_name: str, setting: Setting, settings: list[Setting]) -> None:
    """Raise `ValueError` unless the setting is one of `settings`."""
    if setting not in settings:
        raise unknown(f"setting of readout {readout_name!r}", setting, settings)


def file_of(kind: type) -> str:
    """Name of the file a class stands in: what the method or the readout is called."""
    return kind.__module__.rpartition(".")[2]


def forward(method: LocalizationMethod, images_BCHW: Tensor) -> Output:
    """The method's output without gradients."""
    with torch.no_grad():
        return method(images_BCHW)


@torch.no_grad()
def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (the last two dimensions) at another size, bilinearly, corners not aligned."""
    planes_N1HW = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = F.interpolate(planes_N1HW, list(size), mode="bilinear", align_corners=False)
    return resized.reshape(*maps.shape[:-2], *size)
