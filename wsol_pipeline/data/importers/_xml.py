"""Annotation files in the XML of PASCAL VOC, which ILSVRC took over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from wsol_pipeline.data.importers import read_file
from wsol_pipeline.data.schema import Box, Kind, RowError, Size

MAX_XML_BYTES = 2**20
_BROKEN = (
    ElementTree.ParseError,
    DefusedXmlException,
    LookupError,  # an encoding that nobody knows
    ValueError,
)


class Object(NamedTuple):
    """One object: its class, its box as the file has it, and whether its annotators found it too hard to ask for."""

    name: str
    box: Box
    difficult: bool = False


@dataclass(frozen=True)
class Annotation:
    """What is known of one image: its objects, and its width and height if the source says them."""

    size: Size | None
    objects: tuple[Object, ...]


def read_annotation(path: Path) -> Annotation:
    """One annotation file. Raises `RowError` that names it and the rule if it is missing, too large or not as it should
    be."""
    try:
        tree = ElementTree.fromstring(read_file(path, MAX_XML_BYTES))
        objects = tuple(_object(node, number) for number, node in enumerate(tree.iter("object"), 1))
        return Annotation(_size(tree), objects)
    except RowError as error:
        raise RowError(Kind.ANNOTATION, f"annotation {path}: {error}") from error
    except _BROKEN as error:
        reason = f"annotation {path} cannot be read: {type(error).__name__}: {error}"
        raise RowError(Kind.ANNOTATION, reason) from error


def _size(tree: Any) -> Size | None:
    """Width and height; None where a tool that did not know them has left them out, or wrote zeros."""
    if tree.find("size") is None:
        return None
    width, height = (_number(tree.find("size"), side, "size") for side in ("width", "height"))
    if width != int(width) or height != int(height):
        raise RowError(Kind.ANNOTATION, f"size {width}x{height} is not of whole pixels")
    return (int(width), int(height)) if width and height else None


def _object(node: Any, number: int) -> Object:  # an XML element
    name, of = (node.findtext("name") or "").strip(), f"object {number}"
    if not name:
        raise RowError(Kind.ANNOTATION, f"{of} has no name")
    if (box := node.find("bndbox")) is None:
        raise RowError(Kind.ANNOTATION, f"{of}, a {name!r:.80}, has no bndbox")
    x0, y0, x1, y1 = (_number(box, side, f"the bndbox of {of}") for side in ("xmin", "ymin", "xmax", "ymax"))
    return Object(name, (x0, y0, x1, y1), (node.findtext("difficult") or "").strip() == "1")


def _number(node: Any, tag: str, of: str) -> float:
    text = node.findtext(tag)
    try:
        number = float(text or "")
    except ValueError:
        said = "no" if text is None else f"{text.strip()!r:.40} as"
        raise RowError(Kind.ANNOTATION, f"{of} has {said} {tag}, which must be a number") from None
    if tag in ("width", "height") and not 0 <= number < 2**31:
        raise RowError(Kind.ANNOTATION, f"{of} has {number} as {tag}, which must be a number of pixels")
    return number
