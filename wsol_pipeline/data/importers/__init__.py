"""Importers: one file for each dataset layout, found by its name.

Such a module has `Options`, a frozen dataclass whose documented fields become command line options, and
`read(source: Path, options: Options) -> Source`. That is all it takes to add a layout.
"""

import importlib
import os
import pkgutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from types import ModuleType
from typing import Any
from unicodedata import normalize

from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.schema import HELD_OUT, Fault, Kind, Row, RowError, Rules
from wsol_pipeline.errors import DataError, unknown
from wsol_pipeline.protocol import Role

IMAGE_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"}
# Folders and files that systems and programs leave beside what a user put there, with those that begin with a dot.
LEFT_BY_SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
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
    folders: tuple[Path, ...] = ()  # all that is below them is of the layout; by default the folders of the images
    beside: tuple[Path, ...] = ()  # what systems put beside the source
    aside: Collection[Path] = ()  # files that are known, and not of a row: images that `left_out` counts, tables
    benchmark: bool = True  # published, so that each bad row matters; among your own files a few may be broken
    located: tuple[Role, ...] = HELD_OUT  # whose images have boxes or masks
    scaled_masks: bool = False  # as in `Rules`

    def __post_init__(self) -> None:
        if odd := [name for name in self.classes if not name.isprintable() or not name.strip()]:
            raise DataError(f"Class name {odd[0]!a} must have characters that can be printed, and those alone.")

    @property
    def rules(self) -> Rules:
        return Rules(len(self.classes), self.multilabel, self.box_convention, self.located, self.scaled_masks)


def names() -> list[str]:
    """The known importers."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def importer(name: str) -> ModuleType:
    """The importer module of that name; an unknown one is answered with the known ones."""
    if name not in names():
        raise unknown("dataset layout", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of any dataset."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def nfc(name: str) -> str:
    """A name in one Unicode form: disks that macOS has written spell é as e and an accent, lists and tables do not.

    Where the locale is ASCII, Python keeps a name's other bytes as surrogates: they are UTF-8 there as elsewhere.
    """
    return normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))


def _as_on_disk(root: Path, name: str) -> Path:
    """`root / name`, of which each part is in the Unicode form that is there."""
    path = root
    for part in PurePosixPath(name).parts:
        same = path / part
        path = (
            same
            if same.exists() or not path.is_dir()
            else path / _names(path, path.stat().st_mtime_ns).get(nfc(part), part)
        )
    return path


@lru_cache(maxsize=1024)
def _names(folder: Path, changed: int) -> dict[str, str]:
    """The names in a folder by their NFC; `changed` tells one state of it from another."""
    return {nfc(path.name): path.name for path in folder.iterdir()}


def below(root: Path, name: str) -> Path:
    """`name` under `root` in whatever Unicode form, links resolved.

    Raises `RowError` if it leads out of it, or is no name of a file.
    """
    try:
        path = (root / name if name.isascii() else _as_on_disk(root, name)).resolve()
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
    return [line for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without the mark that Windows begins it with. Raises `DataError` for another."""
    try:
        return read_file(path, MAX_LIST_BYTES).decode("utf-8-sig")
    except (RowError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error


def faulty(role: Role, name: str, fault: Fault) -> Row:
    """A row of which nothing else is known."""
    return Row(role, name, (), b"", fault=fault)


def folders_in(folder: Path, faults: list[str]) -> list[Path]:
    """The visible folders in a folder, sorted; links to folders elsewhere become `faults`."""
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    faults += [_not_followed(path) for path in found if path.is_symlink()]
    return [path for path in found if not path.is_symlink()]


def images_below(folder: Path, faults: list[str]) -> list[Path]:
    """Visible files with an image's ending anywhere below `folder`, sorted; links to folders become `faults`."""
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        faults += [_not_followed(path) for path in (Path(here, name) for name in sorted(folders)) if path.is_symlink()]
        found += [Path(here, name) for name in names if not is_hidden(name) and is_image(name)]
    return sorted(found)


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS


def _not_followed(link: Path) -> str:
    return f"{link} is a link to the folder {link.resolve()}, and links are not followed: copy what is there (cp -rL)."


def by_class_and_hash(class_of: Mapping[str, Any], salt: str = "") -> list[list[str]]:
    """The ids of each class, in the order of a hash: to draw the first ones is a draw that no order of rows changes."""
    groups = defaultdict(list)
    for name, label in class_of.items():
        groups[label].append(name)
    return [sorted(members, key=lambda name: int(hash_ids([salt + name])[0])) for _, members in sorted(groups.items())]


def hold_out(rows: list[Row], held: Iterable[Row], share: float, salt: str = "") -> list[Row]:
    """`rows` with `share` of the training images, alike for all classes, as the rows that they are in `held`.

    An image of several classes counts for the rarest of them, of which one image stays; one without any stays. Another
    `salt` is another draw.
    """
    candidates = {row.id: row for row in held if row.labels}
    count = Counter(label for row in candidates.values() for label in row.labels)
    rarest = {name: min(row.labels, key=lambda label: (count[label], label)) for name, row in candidates.items()}
    drawn: set[str] = set()
    due = 0.0  # carried from class to class: many rare ones give their share together
    for members in by_class_and_hash(rarest, salt):
        due += share * len(members)
        number = min(int(due), len(members) - 1)
        drawn.update(members[:number])
        due -= number
    return [candidates[row.id] if row.role is Role.TRAIN and row.id in drawn else row for row in rows]
