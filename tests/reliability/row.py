"""What every row of the reliability table is: a fault, how it is injected, and what it may cost."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Injection:
    """One fault: where it struck, what was `lost` in the row's unit, and `seconds` until work went on.

    `seconds` is None where no work was left; `wrong` says what came out otherwise than undisturbed, "" if nothing did.
    """

    where: str
    lost: float = 0
    seconds: float | None = None
    wrong: str = ""


@dataclass(frozen=True)
class Row:
    """A fault of the table. It passes if `times` were injected and each cost at most `may_lose` and `within` seconds.

    `inject(times, folder)` injects them one after another; `folder` is empty and its own.
    """

    name: str
    fault: str
    times: int
    unit: str
    may_lose: float
    within: float
    inject: Callable[[int, Path], Iterator[Injection]]


@dataclass(frozen=True)
class Result:
    """What a row's injections cost."""

    row: Row
    asked: int
    injections: list[Injection] = field(default_factory=list)
    crash: str = ""  # what ended the injections early

    @property
    def reason(self) -> str:
        """Why the row did not pass; "" if it did."""
        if self.crash:
            return self.crash
        if len(self.injections) < self.asked:
            return f"only {len(self.injections)} of {self.asked} were injected"
        for injection in self.injections:
            if injection.wrong:
                return f"{injection.where}: {injection.wrong}"
            if injection.lost > self.row.may_lose:
                return f"{injection.where}: {injection.lost:g} {self.row.unit} lost"
            if (injection.seconds or 0) > self.row.within:
                return f"{injection.where}: {injection.seconds:.0f} s until work went on"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data; of the injections those with something wrong, and how many there were of each kind."""
        seconds = [injection.seconds for injection in self.injections if injection.seconds is not None]
        lost = [injection.lost for injection in self.injections]
        return {
            "fault": self.row.fault,
            "injected": len(self.injections),
            "lost": {"unit": self.row.unit, "worst": max(lost, default=0), "may_lose": self.row.may_lose},
            "seconds": {
                "median": round(statistics.median(seconds), 2) if seconds else None,
                "worst": round(max(seconds), 2) if seconds else None,
                "within": self.row.within,
            },
            "passed": not self.reason,
            "reason": self.reason,
        }
