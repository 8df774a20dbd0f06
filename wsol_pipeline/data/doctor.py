"""What is wrong with a source, told before it is imported: counts, files, boxes, and images that two splits share."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from wsol_pipeline.data.checks import looks
from wsol_pipeline.data.findings import LEFT_OUT, NOTE, PROBLEM, Finding, allowed, of_rows, of_source
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.schema import Fault, Note, Row
from wsol_pipeline.data.survey import HIDDEN, OTHER, UNLISTED, UNREAD, Tally, passed_over, tally
from wsol_pipeline.protocol import Role

BESIDE = {  # why a file is passed over -> what to do about it
    UNLISTED: "List them, or leave them: they are not read.",
    UNREAD: "Convert them to JPEG or PNG, or leave them: they are not read.",
    OTHER: "Leave them, or see whether their names are right: they are not read.",
    HIDDEN: "Leave them: they are not read.",
}

NOTED = {  # what is done to an image -> what to think of
    Note.UPRIGHT: "Boxes and masks are taken to be for the upright image.",
    Note.STORED: "Boxes and masks are taken to be for the image as it is stored.",
    Note.CONVERTED: "Nothing is lost: the pixels are the same.",
    Note.CLIPPED: "See whether these are the images that were annotated.",
    Note.RING: "Nothing is lost: points and lines have no pixels.",
}


def examine(
    source: Source,
    threads: int = 1,
    on_row: Callable[[int, int], None] = lambda done, total: None,
    max_bad: float | None = None,
) -> tuple[list[Finding], Tally]:
    """Read everything that an import would read, and write nothing: what is wrong, and what would be taken.

    Rows that an import with `max_bad` leaves out are no problems. `on_row` hears (done, total) after each image.
    """
    rows = list(source.rows)
    bad: list[tuple[str, Fault]] = []
    good: list[Row] = []
    noted: dict[Note, list[str]] = defaultdict(list)
    twins: dict[str, list[Row]] = defaultdict(list)
    for done, (row, found) in enumerate(looks(rows, source.rules, threads), 1):
        if isinstance(found, Fault):
            bad.append((row.id, found))
        else:
            good.append(row)
            twins[hashlib.sha256(found.columns["image"]).hexdigest()].append(row)
            for note in found.notes:
                noted[note].append(row.id)
        on_row(done, len(rows))
    beside = passed_over(source, rows)
    weight = LEFT_OUT if len(bad) <= allowed(source, max_bad, len(rows)) else PROBLEM
    stay = good if weight == LEFT_OUT else rows  # what bad ones leave empty is their fault, and told with them
    problems = [*of_source(source, rows, sound=stay), *_counts(source, rows)]
    problems += [*_shared(twins), *_misplaced(source, rows)]
    counts = {note.value: len(ids) for note, ids in noted.items()}
    notes = [*_order(rows), *_noted(noted), *_beside(beside)]
    return [*problems, *of_rows(bad, weight), *notes], tally(source, good, beside, counts)


def _noted(noted: dict[Note, list[str]]) -> Iterator[Finding]:
    for note, names in noted.items():
        yield Finding(note.value, tuple(names), NOTED[note], NOTE)


def _beside(beside: dict[str, list[Path]]) -> Iterator[Finding]:
    for reason, files in beside.items():
        yield Finding(f"{reason}, passed over", tuple(map(str, files)), BESIDE[reason], NOTE)


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
        yield Finding("folders of training images are not in the order of their labels", items, mend, NOTE)
