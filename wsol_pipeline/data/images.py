"""Encoded images that may come from strangers: look at the header first, decode within limits, resize one way."""

import io
import math
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from wsol_pipeline.errors import DataError

IGNORED = 255  # label of mask pixels that count neither way
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000  # 192 MB decoded
STORED_PIXELS = 2**22  # of stored images that are held at once: a larger image is shrunk to it
MAX_SCANS = 100  # passes over the pixels of a JPEG: an encoder makes about ten, and a hundred bytes ask for one
STORED = ("JPEG", "PNG")  # what shards hold
READ = (*STORED, "WEBP", "BMP")  # what an import takes
_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BROKEN = (OSError, SyntaxError, ValueError)  # what PIL says of an image that is not as it should be
# What `convert("RGB")` turns into 8-bit colour without a choice of its own; 16-bit and float images are not among them.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
# Odd EXIF, palettes with alpha and sizes over a limit that is not ours: all is decoded or refused here.
warnings.filterwarnings("ignore", module=r"PIL\.")


def probe(data: bytes, formats: tuple[str, ...] = STORED) -> tuple[str, int, int]:
    """Format (of `formats`), width and height, from the header alone. Raises `DataError` for all that is refused."""
    if len(data) > MAX_BYTES:
        raise DataError(f"image has {len(data)} bytes, over the limit of {MAX_BYTES}")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise DataError(f"image has more than {MAX_SCANS} scans")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            kind, (width, height), mode = str(image.format), image.size, image.mode
        kind = kind.replace("MPO", "JPEG")  # several JPEGs in a file, as phones write them: the first is the image
    except Image.DecompressionBombError as error:
        raise DataError(f"image is over the limit of {MAX_PIXELS} pixels: {error}") from error
    except _BROKEN as error:
        raise DataError(f"image is not a readable {', '.join(formats[:-1])} or {formats[-1]}") from error
    if width * height > MAX_PIXELS:
        raise DataError(f"image has {width}x{height} pixels, over the limit of {MAX_PIXELS}")
    if mode not in _MODES:
        raise DataError(f"image has mode {mode!r}; known: {', '.join(_MODES)}")
    return kind, width, height


def decode(data: bytes, formats: tuple[str, ...] = STORED) -> torch.Tensor:
    """uint8 RGB [3, H, W]. Grey, palette and CMYK become RGB, alpha is dropped, EXIF's orientation is not applied (see
    `schema`). Raises `DataError` if the image is refused or cannot be decoded to its end."""
    kind, _, _ = probe(data, formats)
    if kind == "PNG":
        return _decode_png(data)
    try:
        if kind == "JPEG":
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        pass  # a colour space or coding that libjpeg's RGB path lacks: PIL has the last word
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            pixels_HWC = np.array(image.convert("RGB"))
    except _BROKEN as error:
        raise DataError(f"image cannot be decoded: {error}") from error
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


def _decode_png(data: bytes) -> torch.Tensor:
    """By OpenCV: PIL makes black rows of those that are missing, torchvision's decoder dies of a broken palette."""
    pixels_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels_HWC is None:
        raise DataError("image cannot be decoded: it is a broken PNG")
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


def orientation(data: bytes) -> int:
    """EXIF's orientation, 1 to 8 (1: as stored); 1 for an image that has none, or none that can be read."""
    if not any(mark in data for mark in (b"Exif", b"eXIf", b"EXIF")):  # of a JPEG, PNG, WebP
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=READ) as image:
            found = image.getexif().get(_ORIENTATION)
    except (*_BROKEN, KeyError, OverflowError, TypeError, struct.error):
        return 1
    return found if found in _TURNS else 1


def oriented(size_wh: tuple[int, int], turn: int) -> tuple[int, int]:
    """Width and height of an image once it is turned as EXIF's orientation `turn` says."""
    return size_wh[::-1] if turn >= 5 else size_wh


def upright(image_CHW: torch.Tensor, turn: int, kind: str) -> bytes:
    """The image turned as EXIF's orientation `turn` says, encoded anew: of kind "JPEG" as a JPEG, else as a PNG."""
    image = Image.fromarray(image_CHW.permute(1, 2, 0).numpy())
    turned, sink = image.transpose(_TURNS[turn]) if turn in _TURNS else image, io.BytesIO()
    if kind == "JPEG":
        turned.save(sink, "JPEG", quality=95, subsampling=0)  # 48 dB on photos: far finer than what resizing leaves
    else:
        turned.save(sink, "PNG")
    return sink.getvalue()


def resize(images: torch.Tensor, size: int, keep_aspect: bool = False) -> torch.Tensor:
    """uint8 [..., 3, size, size]: bilinear with antialiasing, the aspect ratio ignored, as most of the field has it.

    keep_aspect: only the short side becomes `size`.
    """
    sides = images.shape[-2:]
    return resize_to(images, [int(size * side / min(sides)) if keep_aspect else size for side in sides])


def resize_to(images: torch.Tensor, shape_HW: Sequence[int]) -> torch.Tensor:
    """uint8 [..., 3, *shape_HW], as `resize` does it: the same pixels on every CPU.

    torchvision's own goes by way of floats where a CPU has no AVX2, and rounds otherwise there.
    """
    planes_BCHW = images.reshape(-1, *images.shape[-3:])
    resized = functional.interpolate(planes_BCHW, list(shape_HW), mode="bilinear", antialias=True)
    return resized.reshape(*images.shape[:-2], *shape_HW)


def shrunk(images: torch.Tensor) -> torch.Tensor:
    """uint8 images [..., H, W] as they are; of over `STORED_PIXELS` each, bilinear to at most that, the aspect kept."""
    height, width = images.shape[-2:]
    if height * width <= STORED_PIXELS:
        return images
    scale = math.sqrt(STORED_PIXELS / (height * width))
    return resize_to(images, [max(1, int(scale * side)) for side in (height, width)])


def label_mask(
    mask: bytes | None, ignore: bytes | None, size_wh: tuple[int, int], classes: bool = False
) -> NDArray[np.uint8]:
    """uint8 [H, W] from PNGs: 1 where `mask` is not black, 255 where `ignore` is not and `mask` is, else 0.

    As wsolevaluation: grey, nearest neighbour first, cut second. All 255 for an image without a mask. With `classes`
    the values of `mask`, a palette or grey PNG, are labels themselves (VOC: 0 background, k + 1 class k, 255 void).
    """
    if mask is None:
        return np.full(size_wh[::-1], IGNORED, np.uint8)
    labels_HW = _nearest(_grey(mask, classes), size_wh)
    if not classes:
        labels_HW = (labels_HW > 0).astype(np.uint8)
    if ignore is not None:
        labels_HW[(_nearest(_grey(ignore), size_wh) > 0) & (labels_HW == 0)] = IGNORED
    return labels_HW


def _grey(data: bytes, palette: bool = False) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image if palette and image.mode == "P" else image.convert("L"))


def _nearest(labels_HW: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """To another size as OpenCV's INTER_NEAREST: pixel i is floor(i * old / new) of the old ones."""
    sides = zip(labels_HW.shape, size_wh[::-1], strict=True)
    rows, columns = (np.minimum(np.arange(new) * (1 / (new / old)), old - 1).astype(int) for old, new in sides)
    return labels_HW[rows[:, None], columns]


@contextmanager
def decoder(threads: int) -> Any:
    """A thread pool for `decode_resize`. Decoding releases the GIL; one image stays on one thread."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # the pool's setting is the default of threads that torch starts later


def decode_resize(
    named: Iterable[tuple[str, bytes]], size: int | None, pool: ThreadPoolExecutor | None = None
) -> Iterator[np.ndarray]:
    """Decode and `resize` `(id, bytes)` pairs, one after the other (ahead in threads if there is a `pool`), to uint8
    [3, size, size] each; as they are without a size. Raises `DataError` that names the id."""

    def one(pair: tuple[str, bytes]) -> np.ndarray:
        try:
            image_CHW = decode(pair[1])
            return (image_CHW if size is None else resize(image_CHW, size)).numpy()
        except DataError as error:
            raise DataError(f"Row {pair[0]!r}: {error}.") from error

    return pool.map(one, named) if pool else map(one, named)
