"""Failures that repeat: what would burn one trial after the other ends the study early, and says what to look at."""

import re
from collections.abc import Mapping

ABSTAINED = "abstained"  # the kind of a trial whose selector could not tell anything of it
# How many in a row are no accident of single settings, and where to look. Faults of the environment need few: trials
# have no part in them. A setting may well overflow, and its neighbours too.
LIMITS = {
    "mismatch": (1, ""),
    "data": (3, "Look at the dataset's files, and at its caches on the machines."),
    "storage": (3, "Look at room, rights and network of the places it names."),
    "configuration": (3, "Look at the options and at the space."),
    "infrastructure": (3, "Look at Ray's logs, and at the memory of the machines."),
    ABSTAINED: (10, "Look at the classifier's accuracy, or choose by another --select-by."),
    "out_of_memory": (5, "Look at --batch-size and --image-size, and at what else uses the memory."),
    "nan": (10, "Look at the learning rate and at --clip-norm."),
}
FAULTS = ("mismatch", "data", "storage")  # of the environment: the next trial may meet them at another file
_NUMBER = re.compile(r"[-+]?\d[\d.]*(?:e[-+]?\d+)?|nan|inf")


class Streak:
    """Counts failures of one kind in a row; of the trial's own those with the same words, whatever their numbers."""

    def __init__(self) -> None:
        self.alike, self.trials = "", list[int]()

    def further(self, number: int) -> None:
        """Trial `number` has ended another epoch: if it was among those that could not go on, now it can."""
        if number in self.trials:
            self.trials.clear()

    def add(self, number: int, failure: Mapping[str, str] | None) -> str:
        """Note how a trial ended, None: well. Returns what to look at once too many in a row were alike, else ""."""
        if failure is None:
            self.trials.clear()
            return ""
        kind, message = failure["kind"], failure["message"]
        limit, look = LIMITS[kind]
        alike = kind if kind in FAULTS else f"{kind}: {_NUMBER.sub('#', message)}"
        if alike != self.alike:
            self.trials.clear()
        self.alike = alike
        self.trials.append(number)
        if len(self.trials) < limit:
            return ""
        told = f"{limit} times in a row a trial failed alike ({kind}: {message.rstrip('.')}). {look}"
        return told if limit > 1 else message
