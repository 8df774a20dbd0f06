"""Importers: one file for each dataset layout, found by its name.

Such a module has `Options`, a frozen dataclass whose documented fields become command line options, and
`read(source: Path, options: Options) -> Source`. That is all it takes to add a layout.
"""

import importlib
import os
import pkgutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from types import ModuleType
from typing import Any

from wsol_pipeline.data.augment import hash_ids
from wsol_pipeline.data.schema import Fault, Kind, Row, RowError
from wsol_pipeline.errors import DataError, unknown
from wsol_pipeline.protocol import Role

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png"}
MAX_LIST_BYTES = 2**30  # ImageNet's training list has 70 MB


@dataclass(frozen=True)
class Count:
    """How many images a split has in the published dataset."""

    rows: int
    of_class: tuple[int, int]  # fewest and most


@dataclass(frozen=True)
class Source:
    """What an importer found: rows that nothing has checked yet, and what holds for all of them."""

    classes: tuple[str, ...]
    box_convention: str
    rows: Iterable[Row]
    multilabel: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)  # what has nothing to learn or score -> how many of it
    counts: Mapping[Role, Count] = field(default_factory=dict)  # where they are known, for the doctor
    faults: tuple[str, ...] = ()  # what is wrong beside single rows: there is no import before it is mended

    def __post_init__(self) -> None:
        if odd := [name for name in self.classes if not name.isprintable() or not name.strip()]:
            raise DataError(f"Class name {odd[0]!a} must have characters that can be printed, and those alone.")


def names() -> list[str]:
    """The known importers."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def importer(name: str) -> ModuleType:
    """The importer module of that name; an unknown one is answered with the known ones."""
    if name not in names():
        raise unknown("dataset layout", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def below(root: Path, name: str) -> Path:
    """`name` under `root`, links resolved. Raises `RowError` if it leads out of it, or is no name of a file."""
    try:
        path = (root / name).resolve()
        if max(map(len, map(os.fsencode, path.parts))) > 255 or len(os.fsencode(path)) > 4095:
            raise ValueError("names have 255 bytes at most, paths 4095")
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a zero byte
        raise RowError(Kind.NAME, f"Path {name!a} below {root} leads nowhere: {error}.") from error
    if not path.is_relative_to(root.resolve()):
        raise RowError(Kind.NAME, f"Path {name!a} leads out of {root}.")
    return path


def read_file(path: Path, limit: int) -> bytes:
    """A file of `limit` bytes at most. Raises `RowError` for others, and for what is no file: pipes wait for ever."""
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            raise RowError(Kind.FILE, "file cannot be read: it is a folder, pipe or device")
        if stat.st_size > limit:
            raise RowError(Kind.FILE, f"file cannot be read: {stat.st_size} bytes, over the limit of {limit}")
        return path.read_bytes()
    except OSError as error:
        raise RowError(Kind.FILE, f"file cannot be read: {error.strerror}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without empty ones. Raises `DataError` if it is missing or no text."""
    try:
        text = read_file(path, MAX_LIST_BYTES).decode()
    except (RowError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    return [line for line in text.splitlines() if line.strip()]


def faulty(role: Role, name: str, fault: Fault) -> Row:
    """A row of which nothing else is known."""
    return Row(role, name, (), b"", fault=fault)


def images_below(folder: Path) -> list[Path]:
    """Files with an image's ending anywhere below `folder`, sorted; others are not looked at."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)


def by_class_and_hash(class_of: Mapping[str, Any]) -> list[list[str]]:
    """The ids of each class, in the order of a hash: to draw the first ones is a draw that no order of rows changes."""
    groups = defaultdict(list)
    for name, label in class_of.items():
        groups[label].append(name)
    return [sorted(members, key=lambda name: int(hash_ids([name])[0])) for _, members in sorted(groups.items())]


def hold_out(rows: list[Row], as_val: Iterable[Row], share: float) -> list[Row]:
    """`rows` with `share` of the training images, alike for all classes, as the rows that they are in `as_val`.

    An image of several classes counts for the rarest of them, of which one image stays; one without any stays.
    """
    candidates = {row.id: row for row in as_val if row.labels}
    count = Counter(label for row in candidates.values() for label in row.labels)
    rarest = {name: min(row.labels, key=lambda label: (count[label], label)) for name, row in candidates.items()}
    drawn: set[str] = set()
    due = 0.0  # carried from class to class: many rare ones give their share together
    for members in by_class_and_hash(rarest):
        due += share * len(members)
        number = min(int(due), len(members) - 1)
        drawn.update(members[:number])
        due -= number
    return [candidates[row.id] if row.role is Role.TRAIN and row.id in drawn else row for row in rows]
