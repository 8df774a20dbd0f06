"""Whatever a user calls an image, as what the network is shown."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from wsol_pipeline.data.headers import _MODES
from wsol_pipeline.data.images import resize, shrunk
from wsol_pipeline.data.photographs import on_white, photograph
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.storage import Store

PATHS = (str, Path)


@dataclass(frozen=True)
class Prepared:
    """An image as the network is shown it, uint8 [3, H, W], and, for readouts that need it, as it is stored."""

    size_wh: tuple[int, int]  # of the image as it is shown
    image_CHW: torch.Tensor
    stored_CHW: torch.Tensor | None

    @property
    def shape(self) -> tuple[torch.Size, torch.Size | None]:
        """Images of one shape make a batch."""
        return self.image_CHW.shape, None if self.stored_CHW is None else self.stored_CHW.shape


def prepare(pixels_CHW: torch.Tensor, rules: Protocol, stored: bool) -> Prepared:
    """Pixels as the protocol shows them; `stored`: the photograph itself too, for readouts of other scales."""
    height, width = pixels_CHW.shape[-2:]
    if rules.geometry == "short_side":
        image_CHW = resize(pixels_CHW, rules.read_size, keep_aspect=True)
    else:
        image_CHW = F.center_crop(resize(pixels_CHW, rules.read_size), [rules.image_size, rules.image_size])
    return Prepared((width, height), image_CHW, shrunk(pixels_CHW) if stored else None)


def pixels_of(image: Any) -> torch.Tensor:
    """uint8 RGB [3, H, W] of a path, URI, PIL image, array [H, W, 3] or tensor [3, H, W].

    Files are turned as EXIF says; pixels are taken as they lie. Grey becomes RGB, what is transparent white.

    Raises:
        UsageError: it is none of these, or its values are not 8-bit.
        DataError: a file is missing or cannot be decoded.
    """
    if isinstance(image, PATHS):
        return photograph(file_bytes(str(image)))[0]
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise UsageError(
                f"A PIL image must have one of the modes {', '.join(_MODES)} but has {image.mode!r}: make it 8-bit "
                "colour first, so that nothing is guessed."
            )
        return torch.from_numpy(np.array(on_white(image))).permute(2, 0, 1).contiguous()
    if isinstance(image, torch.Tensor):
        _require_bytes(str(image.dtype).removeprefix("torch."))
        image = image.cpu().numpy() if image.ndim < 3 else image.permute(1, 2, 0).cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise UsageError(
            "An image is a path, a URI, a PIL image, a uint8 array [H, W, 3] or tensor [3, H, W] but got "
            f"{type(image).__name__}."
        )
    _require_bytes(str(image.dtype))
    if image.ndim == 2:
        image = image[..., None].repeat(3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or 0 in image.shape:
        raise UsageError(
            f"An array is an image [H, W, 3], grey [H, W] or with alpha [H, W, 4] but got {list(image.shape)}."
        )
    return pixels_of(Image.fromarray(np.ascontiguousarray(image)))


def _require_bytes(dtype: str) -> None:
    if dtype != "uint8":
        raise UsageError(f"Pixels must be uint8 0..255 but got {dtype}: scale them, so that nothing is guessed.")


def as_list(images: Any) -> Iterable[Any]:
    """One image, or several as a list, a tuple or an array [B, H, W, 3], as an iterable."""
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return images if isinstance(images, list | tuple) else [images]


def file_bytes(place: str) -> bytes:
    """A file by path or `s3://` URI. Raises `DataError`."""
    folder, _, name = place.rpartition("/")
    store = Store.at(folder or ("." if not place.startswith("/") else "/"))
    try:
        return store.read(name)
    except IsADirectoryError as error:
        raise DataError(f"{place} is a folder: hand over its images, or use wsol localize --source {place}.") from error
    except OSError as error:
        raise DataError(f"Cannot read {place}: {error.strerror or error}.") from error
