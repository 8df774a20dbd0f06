"""What an encoded image says of itself before a pixel of it is decoded, and what is refused by that."""

import io
import struct
from collections.abc import Iterator

from PIL import Image

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
_APP1, _SCAN, _FILL = 0xE1, 0xDA, 0xFF  # of a JPEG: EXIF or XMP, pixels from here on, a byte that only fills
_TOLD = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG
_BROKEN = (OSError, SyntaxError, ValueError)  # what PIL says of an image that is not as it should be
# What `convert("RGB")` turns into 8-bit colour without a choice of its own; 16-bit and float images are not among them.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def probe(data: bytes, formats: tuple[str, ...] = STORED, modes: tuple[str, ...] = ()) -> tuple[str, int, int]:
    """Format (of `formats`), width and height, from the header alone. Raises `DataError` for all that is refused.

    `modes`: of pixels that the caller makes 8-bit colour of, beside those that need no choice.
    """
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
    if mode not in (*_MODES, *modes):
        raise DataError(f"image has mode {mode!r}; known: {', '.join(_MODES)}")
    return kind, width, height


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


def without_orientation(data: bytes, kind: str) -> bytes:
    """A JPEG or PNG without the blocks that may ask viewers to turn it (EXIF, XMP, text). Pixels and colours stay."""
    return b"".join(_jpeg_parts(data) if kind == "JPEG" else _png_parts(data))


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """A JPEG but for its APP1 segments and what fills between segments, up to its first scan one by one."""
    yield data[:2]
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != _SCAN:
        if data[at + 1] == _FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] != _APP1:
            yield data[at:end]
        at = end
    yield data[at:]


def _png_parts(data: bytes) -> Iterator[bytes]:
    """A PNG but for its chunks of EXIF and text: length, name, content and checksum each."""
    yield data[:8]
    at = 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] not in _TOLD:
            yield data[at:end]
        at = end


def oriented(size_wh: tuple[int, int], turn: int) -> tuple[int, int]:
    """Width and height of an image once it is turned as EXIF's orientation `turn` says."""
    return size_wh[::-1] if turn >= 5 else size_wh
