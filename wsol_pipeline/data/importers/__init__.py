"""Importers: one file for each dataset layout, found by its name.

Such a module has `Options`, a frozen dataclass whose documented fields become command line options, and
`read(source: Path, options: Options) -> Source`. That is all it takes to add a layout.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from wsol_pipeline.data.schema import Row
from wsol_pipeline.errors import DataError, unknown


@dataclass(frozen=True)
class Source:
    """What an importer found: rows that nothing has checked yet, and what holds for all of them."""

    classes: tuple[str, ...]
    box_convention: str
    rows: Iterable[Row]
    multilabel: bool = False


def names() -> list[str]:
    """The known importers."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def importer(name: str) -> ModuleType:
    """The importer module of that name; an unknown one is answered with the known ones."""
    if name not in names():
        raise unknown("dataset layout", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def below(root: Path, name: str) -> Path:
    """`name` under `root`, links resolved. Raises `DataError` if it leads out of it."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"Path {name!r} leads out of {root}.")
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without empty ones. Raises `DataError` if it is missing or no text."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error


def images_below(folder: Path) -> list[Path]:
    """Files with an image's ending anywhere below `folder`, sorted; others are not looked at."""
    endings = {".jpg", ".jpeg", ".png"}
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
