"""Annotation files in the XML of PASCAL VOC, which ILSVRC took over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from wsol_pipeline.data.importers import read_file
from wsol_pipeline.data.schema import Box, Kind, RowError

MAX_XML_BYTES = 2**20
_BROKEN = (
    ElementTree.ParseError,
    DefusedXmlException,
    LookupError,  # an encoding that nobody knows
    AttributeError,  # a box or size that is missing
    TypeError,
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

    size: tuple[int, int] | None
    objects: tuple[Object, ...]


def read_annotation(path: Path) -> Annotation:
    """One annotation file. Raises `RowError` if it is missing, too large or not as it should be."""
    try:
        tree = ElementTree.fromstring(read_file(path, MAX_XML_BYTES))
        width, height = (int(tree.findtext(f"size/{side}")) for side in ("width", "height"))
        objects = tuple(_object(node) for node in tree.iter("object"))
    except RowError as error:
        raise RowError(Kind.ANNOTATION, f"annotation {path}: {error}") from error
    except _BROKEN as error:
        reason = f"annotation {path} cannot be read: {type(error).__name__}: {error}"
        raise RowError(Kind.ANNOTATION, reason) from error
    return Annotation((width, height), objects)


def _object(node: Any) -> Object:  # an XML element
    corners = (node.find("bndbox").findtext(side) for side in ("xmin", "ymin", "xmax", "ymax"))
    x0, y0, x1, y1 = map(float, corners)
    return Object(str(node.findtext("name")).strip(), (x0, y0, x1, y1), node.findtext("difficult") == "1")
