"""Who may see which split.

`train` gives labels only; `val` is held out, with boxes or masks, and every choice is made on it; `test` is opened by
`evaluate` alone, once a model is chosen. Whatever searches, selects or stops calls `require_searchable` on the rows it
is handed, so that a test split raises there instead of flattering a result.
"""

import enum
from typing import Protocol as TypingProtocol

from wsol_pipeline.errors import ProtocolError


class Role(enum.StrEnum):
    """The role of a split in the protocol."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class HasRole(TypingProtocol):
    """Anything that yields rows of one split."""

    @property
    def role(self) -> Role: ...


def require_searchable(rows: HasRole, purpose: str) -> None:
    """Raise `ProtocolError` unless `rows` are of the validation split. `purpose` is what was about to be chosen."""
    if rows.role is not Role.VAL:
        raise ProtocolError(
            f"{purpose} needs the 'val' split but was handed {rows.role.value!r}: every choice is made on held-out "
            "validation rows; only rayjobs/evaluate.py opens 'test', after all choices."
        )
