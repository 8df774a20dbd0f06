"""What lies beside the images of a dataset and is passed over, and what was taken: no file vanishes without a word."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from wsol_pipeline.data.importers import Source, is_hidden, is_image
from wsol_pipeline.data.schema import Note, Row
from wsol_pipeline.protocol import Role

HIDDEN = "hidden files, or files that a system left"
UNLISTED = "image files that no split has"
UNREAD = "pictures of a kind that is not read (JPEG, PNG, WebP and BMP are)"
OTHER = "files that are no images"
PICTURES = {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".nef"}
FEW = 12  # classes, or endings, that are told one by one
MANY = 100_000  # files of a folder that is none of the layout's: more are not counted
LOST = (Note.RING, Note.CLIPPED)  # notes of images of whose annotation something is not in the dataset


def passed_over(source: Source, rows: Iterable[Row]) -> dict[str, list[Path]]:
    """The files beside those of `rows`, by the reason for which an import does not read them."""
    rows = list(rows)
    images = {row.image for row in rows if isinstance(row.image, Path)} | set(source.aside)
    used = images | {mask for row in rows for mask in (*row.masks, row.ignore) if mask}
    faulty = {Path(row.id).stem for row in rows if row.fault}  # listed, and told of elsewhere
    found: dict[str, list[Path]] = {}
    around = _below(folder.resolve() for folder in source.folders) if source.folders else _beside(images)
    for path, hidden in (*around, *_below(source.beside, hidden=True)):
        if hidden or not (path in used or (path.is_symlink() and path.resolve() in used) or path.stem in faulty):
            found.setdefault(_reason(path, hidden), []).append(path)
    return found


def _reason(path: Path, hidden: bool) -> str:
    if hidden:
        return HIDDEN
    if is_image(path.name):
        return UNLISTED
    return UNREAD if path.suffix.lower() in PICTURES else OTHER


def _below(folders: Iterable[Path], hidden: bool = False) -> Iterator[tuple[Path, bool]]:
    """All files below the folders, each with whether it, or a folder of it, is hidden."""
    for folder in folders:
        if folder.is_file():
            yield folder, hidden
        for here, inner, names in os.walk(folder):
            inner.sort()
            above = hidden or any(map(is_hidden, Path(here).relative_to(folder).parts))
            yield from ((Path(here, name), above or is_hidden(name)) for name in sorted(names))


def _beside(images: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """All files in the folders of the images, and those below hidden folders there."""
    for folder in sorted({image.parent for image in images}):
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        yield from ((path, is_hidden(path.name)) for path in entries if not path.is_dir())
        yield from _below((path for path in entries if is_hidden(path.name) and path.is_dir()), hidden=True)


def by_ending(files: Iterable[Path]) -> dict[str, int]:
    """How many files there are of each ending; those without one go by name."""
    return dict(Counter(path.suffix.lower() or path.name for path in files))


def holds(folder: Path) -> str:
    """What is in a folder of which nothing could be read: another folder may have been meant."""
    files = [path for path, hidden in islice(_below([folder]), MANY) if not hidden]
    endings = f" ({_listed(dict(Counter(by_ending(files)).most_common(FEW)))})" if files else ""
    return f"nothing was taken; {folder} holds {len(files)} files{endings}"


@dataclass(frozen=True)
class Tally:
    """What was taken of a source, and what was not."""

    classes: tuple[str, ...]
    rows: Mapping[Role, int]
    per_class: Mapping[Role, tuple[int, ...]]
    passed_over: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # reason -> ending -> files
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def vanished(self) -> int:
        """Files and images of the source that are not in the dataset, or not whole, for a reason that is no fault."""
        beside = sum(sum(endings.values()) for endings in self.passed_over.values())
        return beside + sum(self.left_out.values()) + sum(self.notes.get(note, 0) for note in LOST)

    def lines(self, head: str = "taken") -> list[str]:
        """The tally in words, `head` before the images."""
        taken = [f"{role.value} {count} ({self._classes(self.per_class[role])})" for role, count in self.rows.items()]
        beside = [
            f"passed over: {sum(endings.values())} {reason}: {_listed(endings)}"
            for reason, endings in self.passed_over.items()
        ]
        kept = [f"not offered: {count} {what}" for what, count in self.left_out.items()]
        return [f"{head}: {', '.join(taken)}", *kept, *beside, *(f"note: {n} {what}" for what, n in self.notes.items())]

    def _classes(self, counts: tuple[int, ...]) -> str:
        if len(counts) > FEW:
            return f"{min(counts)} to {max(counts)} of each of {len(counts)} classes"
        return ", ".join(f"{name} {count}" for name, count in zip(self.classes, counts, strict=True))


def tally(
    source: Source, rows: list[Row], beside: Mapping[str, list[Path]], notes: Mapping[str, int] | None = None
) -> Tally:
    """Of `rows`, which were taken or could be, and of the files `beside` those of the source."""
    counts = {role: Counter(label for row in rows if row.role is role for label in row.labels) for role in Role}
    return Tally(
        source.classes,
        {role: sum(row.role is role for row in rows) for role in Role},
        {role: tuple(counts[role][label] for label in range(len(source.classes))) for role in Role},
        {reason: by_ending(files) for reason, files in beside.items()},
        source.left_out,
        notes or {},
    )


def _listed(endings: Mapping[str, int]) -> str:
    """The most frequent first."""
    counts = sorted((-count, ending if ending.isprintable() else ascii(ending)) for ending, count in endings.items())
    return ", ".join(f"{ending} {-count}" for count, ending in counts)
