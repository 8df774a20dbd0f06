"""Photographs from anywhere, as viewers show them: EXIF's turn applied, transparency laid on white, 8-bit RGB.

Images of a dataset are settled at its import; these are whatever somebody has.
"""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsol_pipeline.data.headers import _BROKEN, _ORIENTATION, _TURNS, READ, orientation, probe
from wsol_pipeline.data.images import decode
from wsol_pipeline.errors import DataError

FORMATS = (*READ, "TIFF", "GIF")  # of the last two the first page
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")
_LOW, _HIGH = 0.5, 99.5  # percentiles of a deep image that become 0 and 255


def photograph(data: bytes, scale_16bit: bool = False) -> tuple[torch.Tensor, int]:
    """An encoded image as it is shown, uint8 RGB [3, H, W], and EXIF's orientation of the file, 1 to 8.

    scale_16bit: map the 0.5 to 99.5 percentiles of an image of 16 bits or floats to 0..255; else it is refused.

    Raises:
        DataError: it is too large, of no known format or mode, or cannot be decoded to its end.
    """
    if not data:
        raise DataError("image is empty: 0 bytes")
    kind, _, _ = probe(data, FORMATS, modes=_DEEP if scale_16bit else ())
    turn = orientation(data)  # not of a TIFF, which PIL turns itself
    if kind == "JPEG":
        return turned(decode(data, ("JPEG",)), turn), turn
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            told = image.getexif().get(_ORIENTATION, 1) if kind == "TIFF" else turn
            image.load()
            if image.mode in _DEEP:
                pixels_HWC = _scaled(np.asarray(image))
            elif kind == "PNG" and not image.has_transparency_data:
                return turned(decode(data, ("PNG",)), turn), turn
            else:
                pixels_HWC = np.array(on_white(image))
    except _BROKEN as error:
        raise DataError(f"image cannot be decoded: {error}") from error
    return turned(torch.from_numpy(pixels_HWC).permute(2, 0, 1), turn), told


def on_white(image: Image.Image) -> Image.Image:
    """An image in RGB; what is transparent is white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def turned(image_CHW: torch.Tensor, turn: int) -> torch.Tensor:
    """Pixels as EXIF's orientation `turn` shows them."""
    if turn not in _TURNS:
        return image_CHW.contiguous()
    image = Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy()).transpose(_TURNS[turn])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _scaled(pixels_HW: NDArray[np.number]) -> NDArray[np.uint8]:
    values_HW = pixels_HW.astype(np.float64)
    if not np.isfinite(values_HW).all():
        raise DataError("image has values that are no numbers")
    low, high = np.percentile(values_HW, (_LOW, _HIGH))
    grey_HW = np.clip((values_HW - low) / max(high - low, 1e-300), 0, 1) * 255
    return np.repeat(np.rint(grey_HW).astype(np.uint8)[..., None], 3, axis=2)
