"""A generated dataset that makes weakly supervised localization visible in a minute, without a download.

Each image has one object on a cluttered background: a textured body with one bright emblem of its class and three
small pale ones towards its other ends. A classifier is content with the bright one, its class activation map covers a
part of the object, and a method that looks for all the evidence has something to gain. Boxes are exact.

With `--objects` the dataset is multi-label: images of one object and more, side by side and each of another class, with
class masks.
"""

import colorsys
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.schema import Row
from wsol_pipeline.errors import UsageError
from wsol_pipeline.protocol import Role

EMBLEMS = ("cross", "ring", "triangle", "square", "bars", "dots")
MOST_CLASSES = 4 * len(EMBLEMS)  # further colours of one emblem would hardly differ


@dataclass(frozen=True)
class Options:
    """Options of the generated dataset."""

    train: int = 1200
    """Training images."""
    val: int = 300
    """Validation images."""
    test: int = 400
    """Test images."""
    classes: int = 5
    """Classes, 2 to 24: from the seventh on the emblems come again, in other colours."""
    objects: int = 1
    """Largest number of objects in an image, each of another class. From 2 on the dataset is multi-label and has class
    masks."""
    size: int = 80
    """Side of an image in pixels, at least 32."""
    seed: int = 0
    """Another seed draws other images."""

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= MOST_CLASSES:
            raise UsageError(f"classes must be in 2..{MOST_CLASSES} but got {self.classes}.")
        if not 1 <= self.objects <= self.classes:
            raise UsageError(f"objects must be in 1..{self.classes}, the classes, but got {self.objects}.")
        if self.size < 32:
            raise UsageError(f"size must be at least 32 pixels but got {self.size}.")
        for role in Role:
            if getattr(self, role) < self.classes:
                raise UsageError(f"{role.value} must be at least the number of classes but got {getattr(self, role)}.")


def read(source: Path, options: Options) -> Source:
    """Generate the images; `source` is not looked at."""
    return Source(class_names(options.classes), "exclusive0", _rows(options), multilabel=options.objects > 1)


def class_names(classes: int) -> tuple[str, ...]:
    """Emblems; those that come again with a number: cross, ..., dots, cross-2, ..."""
    rounds = (divmod(label, len(EMBLEMS)) for label in range(classes))
    return tuple(EMBLEMS[emblem] + (f"-{turn + 1}" if turn else "") for turn, emblem in rounds)


def _rows(options: Options) -> Iterator[Row]:
    for part, role in enumerate(Role):
        for number in range(getattr(options, role)):
            rng = np.random.default_rng([options.seed, part, number])
            count = 1 + number // options.classes % options.objects
            labels = tuple((number + i) % options.classes for i in range(count))
            image, bodies = draw(rng, labels, options)
            own = _annotation(labels, bodies, options)  # of a training row for `data/audit.py` alone
            yield Row(role, f"{role.value}/{number:06d}", labels, _jpeg(image), **own)


def _annotation(labels: tuple[int, ...], bodies: list[Image.Image], options: Options) -> dict[str, Any]:
    """Boxes (x0, y0, x1, y1; x1 and y1 are outside) and, where images have several objects, the class mask."""
    boxes = tuple(tuple(map(float, body.getbbox() or ())) for body in bodies)
    if options.objects == 1:
        return {"boxes": boxes, "box_labels": labels}
    classes = Image.new("L", bodies[0].size)
    for label, body in zip(labels, bodies, strict=True):
        classes.paste(label + 1, mask=body)
    return {"boxes": boxes, "box_labels": labels, "masks": (_encoded(classes, "PNG"),)}


def draw(rng: np.random.Generator, labels: tuple[int, ...], options: Options) -> tuple[Image.Image, list[Image.Image]]:
    """One RGB image of an object per class of `labels`, from left to right, and the mask of each."""
    image = Image.fromarray(_background(rng, options.size))
    _clutter(rng, image)
    cuts = np.linspace(0, options.size, len(labels) + 1)
    masks = []
    for label, left, right in zip(labels, cuts[:-1], cuts[1:], strict=True):
        mask, places = _body(rng, options.size, left, right)
        hue = (label / options.classes + rng.normal(0, 0.6 / options.classes)) % 1
        surface, (bright, *pale) = _fur(rng, options.size, hue), places
        _emblem(surface, label, options.classes, bright, radius=0.12 * options.size, saturation=1.0)
        for place in pale:
            _emblem(surface, label, options.classes, place, radius=0.07 * options.size, saturation=0.6)
        image.paste(surface, mask=mask)
        masks.append(mask)
    return image, masks


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth colour noise of two scales with grain, uint8 [size, size, 3]."""
    total = np.full((size, size, 3), 100.0)
    for cells, strength in ((3, 45), (12, 30)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += (np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), float) - 128) * strength / 128
    return (total + rng.normal(0, 8, total.shape)).clip(0, 255).astype(np.uint8)


def _clutter(rng: np.random.Generator, image: Image.Image) -> None:
    """Greyish shapes of all sizes, on which no class depends."""
    pen, size = ImageDraw.Draw(image), image.width
    for _ in range(rng.integers(6, 12)):
        x, y = rng.uniform(-0.1, 1, 2) * size
        width, height = rng.uniform(0.05, 0.35, 2) * size
        colour = tuple((rng.integers(50, 190) + rng.integers(-25, 26, 3)).tolist())
        shape = pen.rectangle if rng.random() < 0.5 else pen.ellipse
        shape((x, y, x + width, y + height), fill=colour)


def _body(
    rng: np.random.Generator, size: int, left: float, right: float
) -> tuple[Image.Image, list[tuple[float, float]]]:
    """Mask of a rounded body anywhere between two columns of the image, and four places on it, off its middle, a
    quarter turn apart."""
    width, height = rng.uniform(0.35, 0.75, 2) * (right - left, size)
    x, y = rng.uniform(left + 1, right - 1 - width), rng.uniform(1, size - 1 - height)
    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    if rng.random() < 0.5:
        pen.ellipse((x, y, x + width, y + height), fill=255)
    else:
        pen.rounded_rectangle((x, y, x + width, y + height), radius=0.3 * min(width, height), fill=255)
    angles = rng.uniform(0, 2 * np.pi) + np.pi / 2 * np.arange(4)
    reach = 0.62
    centres = [(x + width / 2 * (1 + reach * np.cos(a)), y + height / 2 * (1 + reach * np.sin(a))) for a in angles]
    return mask, centres


def _fur(rng: np.random.Generator, size: int, hue: float) -> Image.Image:
    """Stripes of two shades of a colour, in any direction."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.08, 0.14) * size
    rows, columns = np.mgrid[:size, :size]
    wave = np.sin(2 * np.pi * (columns * np.cos(angle) + rows * np.sin(angle)) / period + rng.uniform(0, 6.3))
    colour = np.array(colorsys.hsv_to_rgb(hue, 0.45, 1.0)) * 255
    pixels = colour * (0.72 + 0.16 * wave[..., None]) + rng.normal(0, 8, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _emblem(
    image: Image.Image, label: int, classes: int, centre: tuple[float, float], radius: float, saturation: float
) -> None:
    """A dark disc with the sign of the class in its own colour."""
    pen, (x, y), r = ImageDraw.Draw(image), centre, max(3.0, radius)
    colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(label / classes, saturation, 1.0))
    pen.ellipse((x - r, y - r, x + r, y + r), fill=(20, 20, 20))
    s = 0.72 * r
    sign = EMBLEMS[label % len(EMBLEMS)]
    if sign == "cross":
        pen.line((x - s, y, x + s, y), fill=colour, width=round(0.6 * r))
        pen.line((x, y - s, x, y + s), fill=colour, width=round(0.6 * r))
    elif sign == "ring":
        pen.ellipse((x - s, y - s, x + s, y + s), outline=colour, width=max(2, round(0.4 * r)))
    elif sign == "triangle":
        pen.polygon((x, y - s, x + s, y + 0.7 * s, x - s, y + 0.7 * s), fill=colour)
    elif sign == "square":
        pen.rectangle((x - 0.8 * s, y - 0.8 * s, x + 0.8 * s, y + 0.8 * s), fill=colour)
    elif sign == "bars":
        for shift in (-0.6, 0.3):
            pen.rectangle((x + shift * s, y - s, x + (shift + 0.4) * s, y + s), fill=colour)
    else:
        for across in (-0.5, 0.5):
            for down in (-0.5, 0.5):
                near = (x + across * s, y + down * s)
                pen.ellipse((near[0] - 0.4 * s, near[1] - 0.4 * s, near[0] + 0.4 * s, near[1] + 0.4 * s), fill=colour)


def _jpeg(image: Image.Image) -> bytes:
    return _encoded(image, "JPEG", quality=95, subsampling=0)


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()
