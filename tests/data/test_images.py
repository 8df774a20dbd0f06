"""Decoding: what is refused, and what it becomes when it is not."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from wsol_pipeline.data.headers import probe
from wsol_pipeline.data.images import decode, decode_resize, decoder, label_mask, resize
from wsol_pipeline.errors import DataError

RED = (200, 30, 40)  # a flat image decodes to its colour whatever the coding


def encode(image: Image.Image, kind: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def flat(mode: str) -> Image.Image:
    return Image.new("RGB", (40, 30), RED).convert(mode)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encode(flat("RGB"), "JPEG", quality=95), RED),
        (encode(flat("RGB"), "JPEG", quality=95, progressive=True), RED),
        (encode(flat("CMYK"), "JPEG", quality=95), RED),
        (encode(flat("L"), "JPEG", quality=95), (82, 82, 82)),  # .299 200 + .587 30 + .114 40
        (encode(flat("RGB"), "PNG"), RED),
        (encode(flat("RGB").quantize(4), "PNG"), RED),
        (encode(flat("RGBA"), "PNG"), RED),
        (encode(flat("LA"), "PNG"), (82, 82, 82)),
    ],
    ids=["rgb", "progressive", "cmyk", "grey", "png", "palette", "alpha", "grey-alpha"],
)
def test_every_colour_space_becomes_rgb(data, colour):
    image = decode(data)
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.uint8
    assert np.allclose(image.float().mean((1, 2)), colour, atol=4)  # chroma is quantised


def test_a_cpu_without_avx2_resizes_to_the_same_pixels(monkeypatch):
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = functional.resize(image, [17, 17], antialias=True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not torch.equal(functional.resize(image, [17, 17], antialias=True), expected)
    assert torch.equal(resize(image, 17), expected)
    assert resize(image, 17, keep_aspect=True).shape == (3, 17, 22)


def huge_png() -> bytes:
    """A PNG of 9000x9000 pixels that never come: 81 megapixels in some 50 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image at all", "not a readable JPEG or PNG"),
        (b"", "not a readable JPEG or PNG"),
        (encode(flat("RGB"), "GIF"), "not a readable JPEG or PNG"),
        (encode(flat("RGB"), "JPEG")[:-20], "cannot be decoded"),
        (encode(flat("RGB"), "PNG")[:-40], "cannot be decoded"),
        (huge_png(), "over the limit"),
        (encode(Image.new("I;16", (4, 4)), "PNG"), "mode 'I;16'"),
        (b"\xff\xd8" + bytes(64 * 2**20), "over the limit"),
    ],
    ids=["text", "empty", "gif", "truncated-jpeg", "truncated-png", "huge-header", "16-bit", "too-many-bytes"],
)
def test_what_cannot_be_trusted_is_refused_with_a_reason(data, reason):
    with pytest.raises(DataError, match=reason):
        decode(data)


def test_the_pixel_limit_is_read_from_the_header(monkeypatch):
    data = encode(flat("RGB"), "JPEG")
    assert probe(data) == ("JPEG", 40, 30)
    monkeypatch.setattr("wsol_pipeline.data.headers.MAX_PIXELS", 1199)
    with pytest.raises(DataError, match=r"40x30 pixels, over the limit of 1199"):
        probe(data)


def test_exif_rotation_is_not_applied():
    """Boxes are in stored pixels, so the image must stay in them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to display
    assert decode(encode(flat("RGB"), "JPEG", exif=exif)).shape == (3, 30, 40)


def test_resize_ignores_the_aspect_ratio_and_averages():
    ramp = torch.arange(0, 240, 30, dtype=torch.uint8).repeat(3, 4, 1)  # 4 rows of 0, 30, ... 210
    small = resize(ramp, 2)
    # Antialiased bilinear by a factor of 4: triangle of half-width 4 around x = 2 and 6 (pixel edges). Weights of the
    # pixels 0..5 are 5 7 7 5 3 1 (in eighths), the sum of products 5*0+7*30+7*60+5*90+3*120+1*150 = 1590, / 28 = 56.8.
    assert small.tolist() == [[[57, 153]] * 2] * 3


def test_a_pool_decodes_the_same_and_gives_torch_its_threads_back(jpeg):
    pairs = [(str(i), jpeg(i)) for i in range(5)]
    before = torch.get_num_threads()
    with decoder(2) as pool:
        pooled = list(decode_resize(pairs, 16, pool))
    assert np.array_equal(pooled, list(decode_resize(pairs, 16)))
    assert torch.get_num_threads() == before


def test_the_row_of_a_bad_image_is_named(jpeg):
    with pytest.raises(DataError, match="Row 'second': image is not"):
        list(decode_resize([("first", jpeg(0)), ("second", b"x")], 16))


def png(array) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("size", [(224, 224), (100, 75), (333, 500), (500, 223), (17, 19)])
def test_masks_are_resized_as_opencv_does(size):
    rng = np.random.default_rng(size[0])
    mask, ignore = (((rng.random(size) < 0.5) * rng.integers(0, 256, size)).astype(np.uint8) for _ in range(2))
    inside, skip = (cv2.resize(a, (224, 224), interpolation=cv2.INTER_NEAREST) > 0.5 for a in (mask, ignore))
    want = np.where(inside, 1, np.where(skip, 255, 0))
    np.testing.assert_array_equal(label_mask(png(mask), png(ignore), (224, 224)), want)
    np.testing.assert_array_equal(label_mask(png(mask), None, (224, 224)), inside)


def test_an_image_without_a_mask_counts_neither_way():
    assert (label_mask(None, None, (8, 6)) == 255).all()


def test_a_class_mask_keeps_its_labels():
    labels = np.array([[0, 3, 20], [255, 1, 2]], np.uint8)
    palette = Image.fromarray(labels, "L").convert("P")
    palette.putdata(labels.ravel().tolist())
    palette.putpalette(list(range(256)) * 3)
    sink = io.BytesIO()
    palette.save(sink, "PNG")
    for data in (png(labels), sink.getvalue()):
        np.testing.assert_array_equal(label_mask(data, None, (3, 2), classes=True), labels)
    np.testing.assert_array_equal(label_mask(png(labels), None, (6, 4), classes=True), labels.repeat(2, 0).repeat(2, 1))
