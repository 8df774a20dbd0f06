"""What can go wrong for a user, one class per exit code.

A message says the rule, the value that broke it and the known choices. Programmer errors stay plain exceptions with
their traceback.
"""

import difflib
from collections.abc import Iterable


class WsolError(Exception):
    """A failure a user can act on. `exit_code`: 1 run failed (docs: README, "Exit codes")."""

    exit_code = 1


class UsageError(WsolError):
    """An option, name or configuration is wrong."""

    exit_code = 2


class DataError(WsolError):
    """A dataset, shard, image, annotation or checkpoint is missing, broken or not what it says it is."""

    exit_code = 3


class MismatchError(DataError):
    """What was computed is of another study, other data or other parameters than what it is asked for."""


class ResourceError(WsolError):
    """Something outside is not available: devices, storage, a server, the lease of a study."""

    exit_code = 4


class LeaseLostError(ResourceError):
    """Another driver has taken over, or may have: this one writes nothing more."""


class PartialError(WsolError):
    """The work ended, but some of it failed."""

    exit_code = 5


class ProtocolError(WsolError):
    """Something that searches, selects or stops was handed a split that it must not see."""

    exit_code = 2


def unknown(kind: str, name: object, known: Iterable[object]) -> UsageError:
    """The error for a name nobody knows: says the nearest one and all that there are."""
    names = sorted(str(k) for k in known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(f"Unknown {kind} {str(name)!r}.{hint} Known: {', '.join(names)}.")
