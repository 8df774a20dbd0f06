"""Images made to do harm: each is imported as another decoder reads and turns it, or left out with a reason."""

import io
import json
import random
import struct
import time
import warnings
import zlib

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.images import decode
from wsol_pipeline.data.importers import folder
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.errors import DataError
from wsol_pipeline.storage import Store


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def sound() -> dict[str, bytes]:
    """Images of all kinds that must be stored, by name."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8))
    image = coarse.resize((23, 17), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a bird " * 9
    jpegs = {
        "exif": encoded(image, "JPEG", exif=exif),
        "progressive": encoded(image, "JPEG", progressive=True),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "grey": encoded(image.convert("L"), "JPEG"),
        "restart": encoded(image, "JPEG", restart_marker_blocks=1),
        "one-pixel": encoded(Image.new("RGB", (1, 1)), "JPEG"),
        "several": encoded(image, "MPO", save_all=True, append_images=[image]),
    }
    pngs = {
        "png": encoded(image, "PNG"),
        "palette": encoded(image.quantize(16), "PNG"),
        "palette-alpha": encoded(image.quantize(4), "PNG", transparency=b"\x00\x10"),
        "bits": encoded(image.convert("1"), "PNG"),
        "grey-alpha": encoded(image.convert("LA"), "PNG"),
        "alpha": encoded(image.convert("RGBA"), "PNG"),
        "one-pixel-png": encoded(Image.new("L", (1, 1)), "PNG"),
    }
    others = {
        "webp": encoded(image, "WEBP"),
        "webp-exact": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "bmp": encoded(image, "BMP"),
        "bmp-palette": encoded(image.quantize(16), "BMP"),
    }
    return jpegs | pngs | others


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def refused() -> dict[str, bytes]:
    """Images that must be left out, by name."""
    jpeg, png = SOUND["exif"], SOUND["png"]
    size = jpeg.index(b"\xff\xc0") + 5
    scan = SOUND["progressive"]
    scan = scan[scan.rindex(b"\xff\xda") : -2]
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    return {
        "empty": b"",
        "marker-alone": b"\xff\xd8",
        "signature-alone": png[:8],
        "16-bit": encoded(Image.new("I;16", (9, 7)), "PNG"),
        "huge-jpeg": jpeg[:size] + b"\xff\xdc\xff\xdc" + jpeg[size + 4 :],
        "no-width": jpeg[:size] + b"\0\0\0\0" + jpeg[size + 4 :],
        "missing-rows": png[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 23, 18, 8, 2, 0, 0, 0)) + png[33:],
        "wide-png": png[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 1_500_000, 9, 8, 2, 0, 0, 0)) + png[33:],
        "huge-png": header + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "text-bomb": png[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26))) + png[33:],
        "many-scans": SOUND["progressive"][:-2] + scan * 5000 + b"\xff\xd9",
        **{kind: encoded(Image.new("RGB", (9, 7)), kind) for kind in ("GIF", "TIFF", "PPM")},
    }


SOUND = sound()
REFUSED = refused()


def mutated(rng: random.Random) -> bytes:
    """A sound image with a wrong size, marker, chunk or EXIF, cut off, or with other bytes somewhere."""
    data = bytearray(rng.choice(list(SOUND.values())))
    match rng.randrange(7):
        case 0:
            return bytes(data[: rng.randrange(len(data))])
        case 1:  # a marker, or part of a chunk's name or length
            at = rng.randrange(len(data))
            data[at : at + 2] = bytes((255, rng.choice((0xC0, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xE1, 0xFE, 0))))
        case 2:  # the header of a PNG, with the right sum
            if data.startswith(b"\x89PNG"):
                header = bytearray(data[16:29])
                header[rng.randrange(13)] = rng.randrange(256)
                return bytes(data[:8] + chunk(b"IHDR", bytes(header)) + data[33:])
            at = data.find(b"\xff\xc0")
            data[at + 5 + rng.randrange(12)] = rng.randrange(256)
        case 3:  # where EXIF and the table of pictures stand
            for _ in range(3):
                data[rng.randrange(min(len(data), 250))] = rng.randrange(256)
        case 4:
            at = rng.randrange(len(data))
            data[at:at] = rng.randbytes(rng.randrange(1, 40))
        case 5:
            at = rng.randrange(len(data))
            del data[at : at + rng.randrange(1, 40)]
        case 6:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def another_decoder(data: bytes) -> np.ndarray | None:
    """uint8 RGB [H, W, 3]: a JPEG by OpenCV, others and CMYK, which OpenCV turns otherwise, by PIL."""
    image = Image.open(io.BytesIO(data))
    if image.format in ("PNG", "WEBP", "BMP") or image.mode == "CMYK":
        return np.array(image.convert("RGB"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


@pytest.fixture
def imported(tmp_path, jpeg):
    """`imported(cases)`: stored images and the quarantine, by name, of images that a folder has for training."""

    def make(cases: dict[str, bytes], max_bad: float = 1.0):
        for role, own in {"train": cases, "val": {"v": jpeg(1)}, "test": {"t": jpeg(2)}}.items():
            place = tmp_path / "in" / role / "cat"
            place.mkdir(parents=True, exist_ok=True)
            for name, data in own.items():
                (place / f"{name}.jpg").write_bytes(data)
        lines = (f"{name},1,2,9,9\n" for name in ("val/cat/v.jpg", "test/cat/t.jpg"))
        (tmp_path / "in/boxes.csv").write_text("path,x0,y0,x1,y1\n" + "".join(lines))
        source = folder.read(tmp_path / "in", folder.Options())
        out = Store.at(tmp_path / f"out-{max_bad:g}")
        import_dataset(source, out, name="fuzz", origin={}, max_bad=max_bad)
        tables = [pq.read_table(out.path(shard.name)) for shard in open_dataset(out.uri).train.shards]
        stored = {row["id"]: row["image"] for table in tables for row in table.select(["id", "image"]).to_pylist()}
        bad = {row["id"]: row for row in json.loads(out.read("quarantine.json"))}
        assert {path.name for path in tmp_path.iterdir()} == {"in", f"out-{max_bad:g}"}
        return (
            {key.split("/")[-1].removesuffix(".jpg"): value for key, value in part.items()} for part in (stored, bad)
        )

    return make


def check(cases: dict[str, bytes], stored: dict[str, bytes], bad: dict[str, dict]) -> None:
    """Each case is in one of both; what is stored is what came, or as others decode and turn it."""
    assert not stored.keys() & bad.keys()
    assert stored.keys() | bad.keys() == cases.keys()
    for name, row in bad.items():
        assert row["kind"] == "image", name
        assert row["reason"].startswith("image "), name
    for name, data in stored.items():
        before = time.process_time()  # a busy machine does not count
        pixels_HWC = decode(data).permute(1, 2, 0).numpy()
        assert time.process_time() - before < 5, name
        other_HWC = another_decoder(cases[name])
        assert other_HWC is not None, name
        as_it_came = data == cases[name]
        if not as_it_came:
            other_HWC = upright(cases[name], other_HWC)
        assert other_HWC.shape == pixels_HWC.shape, name
        off_HWC = np.abs(other_HWC.astype(int) - pixels_HWC)
        if as_it_came or data.startswith(b"\x89PNG"):
            assert off_HWC.max() <= 1, name
        assert off_HWC.mean() <= 4, name  # of a JPEG that was encoded anew


def upright(data: bytes, pixels_HWC: np.ndarray) -> np.ndarray:
    """The pixels of an image that is not stored as it came: turned by PIL, if it is not only of another kind."""
    exif = Image.Exif()
    exif[0x0112] = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    image = Image.open(io.BytesIO(encoded(Image.fromarray(pixels_HWC), "PNG", exif=exif)))
    return np.array(ImageOps.exif_transpose(image))


def test_images_of_all_kinds(imported):
    stored, bad = imported(SOUND | REFUSED)
    check(SOUND | REFUSED, stored, bad)
    assert bad.keys() == REFUSED.keys()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_images(imported, count):
    rng = random.Random(count)
    cases = {f"{number:05d}": mutated(rng) for number in range(count)}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        stored, bad = imported(cases)
    assert {warning.category for warning in heard if "/PIL/" not in warning.filename} <= {DeprecationWarning}
    check(cases, stored, bad)
    assert count // 10 < len(stored) < count * 9 // 10  # the mutations are neither all harmless nor all fatal


def test_too_many_bad_images_are_refused(imported):
    with pytest.raises(DataError, match=r"1 of 21 rows are bad, over --max-bad 0.04.*'train/cat/empty.jpg'"):
        imported(SOUND | {"empty": b""}, max_bad=0.04)
