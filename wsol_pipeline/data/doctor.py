"""What is wrong with a source, told before it is imported: counts, files, boxes, and images that two splits share."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from wsol_pipeline.data.importers import IMAGE_ENDINGS, Source
from wsol_pipeline.data.ingest import checked
from wsol_pipeline.data.schema import Fault, Kind, Row, RowError
from wsol_pipeline.protocol import Role

# Why an import leaves an image out -> what is wrong, how it is mended.
KINDS = {
    Kind.NAME: ("images have a name that cannot be used", "Rename these, inside of the source and without odd signs."),
    Kind.FILE: ("files are missing", "Unpack or download these again, or take them out of the lists."),
    Kind.IMAGE: (
        "images cannot be decoded",
        "Download these again; --max-bad leaves out a few that are broken at their source.",
    ),
    Kind.ANNOTATION: ("images have no sound annotation", "Annotate these, or take them out of the lists."),
    Kind.SIZE: (
        "images have another size than their annotation",
        "Get the images that were annotated: boxes of another size are wrong.",
    ),
    Kind.LABEL: ("images have a label that is no class", "Correct these, or the list of classes."),
    Kind.BOX: ("images have a wrong box", "Boxes are x0, y0, x1, y1 in pixels of the stored image: correct these."),
    Kind.MASK: ("images have a wrong mask", "Masks are PNGs of the image's size: correct or remove these."),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `items` are ids, classes or files, each with what is to be said of it."""

    what: str
    items: tuple[str, ...]
    mend: str
    is_note: bool = False  # worth knowing, but the source can be imported

    def lines(self, at_most: int = 10) -> list[str]:
        """The finding in words, `at_most` of its items by name."""
        rest = len(self.items) - at_most
        more = [f"  ... and {rest} more"] if rest > 0 else []
        head = f"{'note' if self.is_note else 'problem'}: {len(self.items)} {self.what}"
        items = (item if item.isprintable() else ascii(item) for item in self.items[:at_most])
        return [head, *(f"  {item}" for item in items), *more, f"  -> {self.mend}"]


def examine(
    source: Source, threads: int = 1, on_row: Callable[[int, int], None] = lambda done, total: None
) -> list[Finding]:
    """Read everything that an import would read, and write nothing. `on_row` hears (done, total) after each image."""
    rows = list(source.rows)
    reasons: dict[Kind, list[str]] = defaultdict(list)
    twins: dict[str, list[Row]] = defaultdict(list)
    for done, (row, found) in enumerate(_looks(source, rows, threads), 1):
        if isinstance(found, Fault):
            reasons[found.kind].append(f"{row.id}: {found.reason}")
        else:
            twins[found].append(row)
        on_row(done, len(rows))
    wrong = [Finding(what, tuple(reasons[kind]), mend) for kind, (what, mend) in KINDS.items() if reasons[kind]]
    whole = [*_structure(source), *_empty(source, rows), *_counts(source, rows), *_repeated(rows), *_shared(twins)]
    return [*whole, *_misplaced(source, rows), *_order(rows), *wrong, *_unlisted(rows)]


def _looks(source: Source, rows: list[Row], threads: int) -> Iterator[tuple[Row, Fault | str]]:
    """Each row with what is wrong with it, or with the SHA-256 of its image."""

    def look(row: Row) -> tuple[Row, Fault | str]:
        try:
            image = checked(row, len(source.classes), source.multilabel)["image"]
        except RowError as error:
            return row, error.fault
        return row, hashlib.sha256(image).hexdigest()

    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(rows), 1024):  # a pool queues all that it is given: a million rows are much
            yield from pool.map(look, rows[first : first + 1024])


def _structure(source: Source) -> Iterator[Finding]:
    if source.faults:
        yield Finding("faults beside single images", source.faults, "Correct these: an import refuses the source.")


def _empty(source: Source, rows: list[Row]) -> Iterator[Finding]:
    """Splits without images, classes that nobody can learn: an import refuses both."""
    if missing := tuple(role.value for role in Role if not any(row.role is role for row in rows)):
        yield Finding("splits have no image", missing, "A dataset needs train, val and test: see --help of the layout.")
    trained = {label for row in rows if row.role is Role.TRAIN for label in row.labels}
    if idle := tuple(name for label, name in enumerate(source.classes) if label not in trained):
        yield Finding("classes have no training image", idle, "Add images of them, or take them out of the classes.")


def _counts(source: Source, rows: list[Row]) -> Iterator[Finding]:
    """Splits and classes that have other numbers of images than the dataset was published with."""
    mend = "The source is not complete, or another version: unpack it again and compare with its website."
    for role, count in source.counts.items():
        own = Counter(label for row in rows if row.role is role for label in row.labels)
        if (total := sum(row.role is role for row in rows)) != count.rows:
            yield Finding("split is not whole", (f"{role.value} has {total} images, published are {count.rows}",), mend)
        fewest, most = count.of_class
        odd = [label for label in range(len(source.classes)) if not fewest <= own[label] <= most]
        if odd:
            items = tuple(f"{source.classes[label]}: {own[label]} in {role.value}" for label in odd)
            yield Finding(f"classes do not have the published {fewest} to {most} images", items, mend)


def _repeated(rows: list[Row]) -> Iterator[Finding]:
    if twice := [name for name, count in Counter(row.id for row in rows).items() if count > 1]:
        yield Finding("ids come more than once", tuple(twice), "Take them out of all lists but one.")


def _shared(twins: dict[str, list[Row]]) -> Iterator[Finding]:
    """The same bytes in two splits: a model would be tuned or tested on what it has seen."""
    groups = [same for same in twins.values() if len({row.role for row in same}) > 1]
    if groups:
        items = tuple(" = ".join(f"{row.role.value} {row.id}" for row in same) for same in groups)
        yield Finding("images are in two splits, byte for byte", items, "Keep the one in test, else the one in val.")


def _misplaced(source: Source, rows: list[Row]) -> Iterator[Finding]:
    """Images in the folder, or in a folder of the folder, of a class that is none of theirs."""
    named = {name.split()[0]: label for label, name in enumerate(source.classes)}
    items = []
    for row in rows:
        above = row.image.parts[-2:-4:-1] if isinstance(row.image, Path) and row.labels else ()
        folder = next((part for part in above if part in named), None)
        if folder and named[folder] not in row.labels:
            items.append(f"{row.id}: of class {row.labels[0]}, but {folder!r} is class {named[folder]}")
    if items:
        mend = "Correct the labels or the order of the classes, or move the images."
        yield Finding("images are in the folder of another class", tuple(items), mend)


def _order(rows: list[Row]) -> Iterator[Finding]:
    """Training labels that do not count sorted folders, where each class has a folder."""
    own: dict[Path, set[int]] = defaultdict(set)
    for row in rows:
        if row.role is Role.TRAIN and isinstance(row.image, Path):
            own[row.image.parent].update(row.labels)
    labels = [tuple(own[folder]) for folder in sorted(own)]
    if len(set(labels)) == len(labels) and all(len(label) == 1 for label in labels) and labels != sorted(labels):
        items = tuple(f"{folder}: {label}" for folder, (label,) in zip(sorted(own), labels, strict=True))
        mend = "Compare with the names of the classes: most lists and weights count the classes by sorted folder."
        yield Finding("folders of training images are not in the order of their labels", items, mend, True)


def _unlisted(rows: list[Row]) -> Iterator[Finding]:
    """Images beside those of the dataset that no split has."""
    images = {row.image for row in rows if isinstance(row.image, Path)}
    used = images | {mask for row in rows for mask in (*row.masks, row.ignore) if mask}
    folders = sorted({path.parent for path in images if path.parent.is_dir()})
    beside = {path for folder in folders for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS}
    faulty = {Path(row.id).stem for row in rows if row.fault}  # listed, and told of elsewhere
    if extra := sorted(str(path) for path in beside - used if path.stem not in faulty):
        yield Finding(
            "image files belong to no split", tuple(extra), "List them, or leave them: they are not read.", True
        )
