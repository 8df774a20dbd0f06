"""By what a model is chosen on validation: true boxes, boxes that stand in for them, or none.

    --select-by boxes                    # true boxes of val, the default where there are any
    --select-by annotated:todo/boxes.csv # true boxes of some of its images
    --select-by evidence                 # the classifier: how much it loses with the masked part
    --select-by evidence --threshold-by otsu

Which trial and which threshold are two questions: `--threshold-by` lets another one answer the second.
"""

from dataclasses import dataclass

from wsol_pipeline.errors import UsageError, unknown


@dataclass(frozen=True)
class Kind:
    """What a selector of this name is. `score`: what it ranks trials and settings by; "" where boxes are counted."""

    argument: str  # what stands behind its colon, "" if nothing does
    score: str = ""
    ranks: bool = True  # else it finds thresholds alone: trials and settings are not its to choose
    hides: str = ""  # the supervision behind it that its name does not say


KINDS = {
    "boxes": Kind(""),
    "annotated": Kind("FILE"),
    "pseudo": Kind("FILE"),
    "proposals": Kind("FILE"),
    "detector": Kind("FILE", hides="uses boxes of COCO"),
    "evidence": Kind("", "evidence_gain"),
    "consensus": Kind("STUDY", "consensus_kappa"),
    "otsu": Kind("", "separability", ranks=False),
    "area": Kind("SHARE", "area_agreement", ranks=False),
    "vote": Kind("NAMES", "vote_agreement", ranks=False),
    "own-mask": Kind("", "masked_images", ranks=False),
}
TARGETS = ("annotated", "pseudo", "proposals", "detector")  # bring boxes, which are counted as true ones are
ADVICE = (
    "These data have labels alone, so --select-by must name what chooses in the place of boxes, in this order: "
    "(1) annotated:FILE, 30 to 50 boxes drawn by hand on images of val (wsol annotate says which): nothing else was "
    "within 2.5 points everywhere; (2) detector:FILE (wsol propose makes it) or pseudo:FILE, boxes of a machine, where "
    "the objects resemble what made it; (3) without any box: --select-by evidence, or proposals:FILE (wsol propose "
    "makes it), for trials and settings, and --threshold-by consensus:STUDY (another method's finished study), else "
    "vote:evidence,otsu, for the threshold. No rule without boxes finds thresholds reliably: docs/labels-only.md."
)


@dataclass(frozen=True)
class Selector:
    """A selector as it is named: `consensus:cam`."""

    name: str
    argument: str = ""

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def ranks(self) -> bool:
        """Whether trials and settings are its to choose."""
        return self.kind.ranks

    @property
    def recorded(self) -> str:
        """Its name in contracts, models and tables, which hold no places."""
        return self.name if self.name in TARGETS else str(self)

    @property
    def voters(self) -> tuple["Selector", ...]:
        """Those that a vote is over."""
        return tuple(map(parse, self.argument.split(",")))

    @property
    def members(self) -> tuple["Selector", ...]:
        """Itself, or those that it votes over."""
        return self.voters if self.name == "vote" else (self,)

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.argument else self.name


def parse(text: str) -> Selector:
    """A selector by its name and argument. Raises `UsageError` for a name nobody knows, or an argument that is none."""
    name, _, argument = text.partition(":")
    if name not in KINDS:
        raise unknown("selector", name, KINDS)
    wanted = KINDS[name].argument
    if bool(wanted) != bool(argument):
        example = f"{name}:{wanted}" if wanted else name
        raise UsageError(f"The selector is written {example} but got {text!r}.")
    found = Selector(name, argument)
    if name == "area":
        _check_share(argument)
    if name == "vote":
        _check_voters(found)
    return found


def said(recorded: str) -> str:
    """Selectors as they are recorded ("val/detector+otsu") as people read them: with the supervision that is hidden."""
    names = (part.partition(":")[0] for part in recorded.removeprefix("val/").split("+"))
    hidden = sorted({kind.hides for name in names if (kind := KINDS.get(name)) and kind.hides})
    return f"{recorded} ({'; '.join(hidden)})" if hidden else recorded


def parse_name(recorded: str) -> Selector:
    """A selector as it is recorded: of a file the name alone, since what was in it is recorded beside it."""
    name, _, argument = recorded.partition(":")
    return Selector(name, argument)


def _check_share(argument: str) -> None:
    try:
        good = 0 < float(argument) < 1
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"area:A takes the objects' share of the image, in 0..1, but got {argument!r}.")


def _check_voters(found: Selector) -> None:
    voters = found.voters
    fit = all(voter.kind.score and voter.name not in ("vote", "own-mask") for voter in voters)
    if len(voters) < 2 or not fit or len(set(voters)) < len(voters):
        raise UsageError(
            f"vote:NAMES takes two or more of evidence, otsu, area:A and consensus:STUDY but got {found.argument!r}."
        )
