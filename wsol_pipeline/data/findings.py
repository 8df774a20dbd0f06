"""What is wrong with a source, in words: one finding for each kind of fault, with all that it concerns."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.schema import Fault, Kind, Row
from wsol_pipeline.data.survey import Tally
from wsol_pipeline.errors import DataError
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
    Kind.BOX: ("images have a wrong box", "Correct these: in pixels of the image, as the layout writes boxes."),
    Kind.MASK: ("images have a wrong mask", "Correct or remove these: a mask covers its whole image."),
}

BESIDE = "faults beside single images"
# There is no import before it is mended; there is one without these images; there is one as it is.
PROBLEM, LEFT_OUT, NOTE = "problem", "left out", "note"
MAX_BAD = 0.001  # share of a benchmark's rows that may be bad
OWN_BAD, OWN_BAD_SHARE = 2, 0.01  # of other sources: so many rows, or this share if that is more


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `items` are ids, classes or files, each with what is to be said of it."""

    what: str
    items: tuple[str, ...]
    mend: str
    weight: str = PROBLEM

    @property
    def is_note(self) -> bool:
        """Worth knowing, but no fault."""
        return self.weight == NOTE

    def lines(self, at_most: int = 10) -> list[str]:
        """The finding in words, `at_most` of its items by name."""
        rest = len(self.items) - at_most
        more = [f"  ... and {rest} more (--list-all names them)"] if rest > 0 else []
        head = f"{self.weight}: {len(self.items)} {self.what}"
        items = (item if item.isprintable() else ascii(item) for item in self.items[:at_most])
        return [head, *(f"  {item}" for item in items), *more, f"  -> {self.mend}"]


class Refused(DataError):
    """A source that cannot be imported: `findings` say all, the message the first; `tally` counts what is sound."""

    def __init__(self, message: str, findings: Sequence[Finding], tally: Tally) -> None:
        super().__init__(message)
        self.findings, self.tally = findings, tally


def allowed(source: Source, max_bad: float | None, rows: int) -> float:
    """How many of `rows` rows may be left out; `max_bad` is their share, None the default of such a source."""
    if max_bad is not None:
        return max_bad * rows
    return MAX_BAD * rows if source.benchmark else max(OWN_BAD, OWN_BAD_SHARE * rows)


def of_rows(faults: Iterable[tuple[str, Fault]], weight: str = PROBLEM) -> list[Finding]:
    """What is wrong with rows, given by id."""
    reasons: dict[Kind, list[str]] = defaultdict(list)
    for name, fault in faults:
        reasons[fault.kind].append(f"{name}: {fault.reason}")
    return [Finding(what, tuple(reasons[kind]), mend, weight) for kind, (what, mend) in KINDS.items() if reasons[kind]]


def of_source(
    source: Source, rows: list[Row], of_single: Sequence[Finding] = (), sound: list[Row] | None = None
) -> list[Finding]:
    """What is wrong beside single rows, for which an import is refused; what is wrong `of_single` ones goes before what
    may come of it. `sound`: the rows that there are to learn from, if not all."""
    empty = _empty(source, rows if sound is None else sound)
    return [*_structure(source), *_shares(source, rows), *_repeated(rows), *of_single, *empty]


def _structure(source: Source) -> list[Finding]:
    mend = "Correct these: an import refuses the source."
    return [Finding(BESIDE, source.faults, mend)] if source.faults else []


def _shares(source: Source, rows: list[Row]) -> list[Finding]:
    """Boxes that are shares of the image would be boxes of its first pixel."""
    boxes = [box for row in rows for box in row.boxes] if source.located else []
    if not boxes or any(corner > 1 for box in boxes for corner in box):
        return []
    what = "set of boxes has all its corners at most 1: shares of the image? This layout wants pixels"
    first = next(row for row in rows if row.boxes)
    item = f"the first is {first.boxes[0]} of {first.id}"
    return [Finding(what, (item,), "Multiply x by the width and y by the height of each image.")]


def _repeated(rows: list[Row]) -> list[Finding]:
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    return [Finding("ids come more than once", tuple(twice), "Take them out of all lists but one.")] if twice else []


def _empty(source: Source, rows: list[Row]) -> list[Finding]:
    """Splits without images, classes that nobody can learn."""
    found = []
    if missing := tuple(role.value for role in Role if not any(row.role is role for row in rows)):
        mend = "A dataset needs train, val and test: see --help of the layout."
        found.append(Finding("splits have no image", missing, mend))
    trained = {label for row in rows if row.role is Role.TRAIN for label in row.labels}
    if idle := tuple(name for label, name in enumerate(source.classes) if label not in trained):
        mend = "Add images of them, or take them out of the classes."
        found.append(Finding("classes have no training image", idle, mend))
    return found


def in_a_line(findings: Sequence[Finding]) -> str:
    """The first problem, and how many more faults there are."""
    first = next(finding for finding in findings if finding.weight == PROBLEM)
    count = sum(len(finding.items) for finding in findings)
    head = first.items[0] if first.what == BESIDE else f"{len(first.items)} {first.what}: {first.items[0]}."
    return head + (f" And {count - 1} more faults." if count > 1 else "")
