"""Which study this is: an id of its own, made once, kept with its files, in its database and on its MLflow runs.

Its files may be moved, and say where they have been: what names an earlier place of theirs belongs to them still. A
name says nothing: others may give the same one, a folder may be copied, a database may come back from a backup. What
was computed bears the study's id, the data's fingerprint and its whole configuration, and where it is handed over (a
trial adopted or told, a winner named, registered, judged, shown) they are compared.
"""

import contextlib
import json
import logging
import re
import uuid
from dataclasses import dataclass

from wsol_pipeline.errors import DataError, MismatchError, ResourceError, UsageError
from wsol_pipeline.storage import STORAGE_ERRORS, Store
from wsol_pipeline.study.lease import Lease, living, released
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.config import Job, as_kept, differences
from wsol_pipeline.training.model import DESCRIPTION

logger = logging.getLogger(__name__)

IDENTITY = "study.json"
WINNER = "winner.json"  # what the final evaluation needs to know of a finished study
_TRIAL = re.compile(r"trials/(\d{4,})/.+")


@dataclass(frozen=True)
class Home:
    """A study's id, the folder that holds its files, and the folders that held them `before`, the first one first."""

    id: str
    storage: str
    before: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, str]:
        """What the study's database says of it."""
        return {"id": self.id, "storage": self.storage}

    def __str__(self) -> str:
        return f"{self.storage} (id {self.id[:12]})"


def home(folder: Store) -> Home:
    """The home that `folder` is, made if it is none yet. Of several drivers that make one at once all get the same."""
    if not folder.exists(IDENTITY):
        folder.create(IDENTITY, json.dumps({"id": uuid.uuid4().hex, "places": [folder.uri]}).encode())
    try:
        found = json.loads(folder.read(IDENTITY))
        return Home(found["id"], folder.uri, tuple(place for place in found.get("places", []) if place != folder.uri))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder.path(IDENTITY)} is damaged: it says which study lies here. Bring it back.") from error


def settle(folder: Store, own: Home, lease: Lease) -> None:
    """Note in `folder` that it is the study's home from now on."""
    places = {"id": own.id, "places": [*own.before, own.storage]}
    folder.write(IDENTITY, json.dumps(places).encode(), lease.confirm)


def check_move(name: str, before: Store, own: Home, lease: Lease, driver: int, shared: bool) -> None:
    """Raise unless study `name`, which its database knows at `before`, may go on at `own`; say that it does.

    A database that was moved along is the copy's own. One that is `shared` by both places belongs to one of them, and
    `driver`, its last attempt, may live where it can't be seen from here.
    """
    there = _is_at(before, own.id)
    if there and (holder := living(before / "lease")):
        raise ResourceError(
            f"{holder} is driving study {name!r} at {before}, of which {own.storage} is a copy: wait for it or stop "
            "it, then copy again."
        )
    if shared and there:
        raise UsageError(
            f"Study {name!r} of this database is kept at {before}, where it still is; {own.storage} is a copy of it. "
            f"Go on there, or remove {before.path(IDENTITY)} for it to go on here."
        )
    if shared and driver >= lease.attempt:
        raise DataError(
            f"{own.storage} is an older copy of study {name!r}: its database knows attempt {driver}, the files attempt "
            f"{lease.attempt - 1}. Copy {before} again."
        )
    if shared and not lease.sure:
        raise ResourceError(
            f"Whether the driver of study {name!r} at {before} has ended cannot be seen from here: if it has, create "
            f"{released(lease.store, lease.attempt - 1)} to say so."
        )
    stays = ", which stays as it is: they go on apart" if there else f" to {own.storage}, where it goes on"
    logger.warning("study %r %s %s%s", name, "is a copy of the one at" if there else "was moved from", before, stays)


def _is_at(place: Store, id: str) -> bool:
    """Whether the files of study `id` can be seen at `place`."""
    with contextlib.suppress(ValueError, KeyError, TypeError, *STORAGE_ERRORS):
        return json.loads(place.read(IDENTITY))["id"] == id
    return False


def check_folders_are_known(folder: Store, trials: int) -> None:
    """Raise `DataError` if `folder` holds trials beyond the `trials` that the study's database knows.

    Then the database is an older copy: trials numbered anew would go on from checkpoints of others.
    """
    numbers = {int(found[1]) for found in map(_TRIAL.fullmatch, folder.list("trials")) if found}
    if unknown := sorted(number for number in numbers if number >= trials):
        raise DataError(
            f"{folder.path(f'trials/{unknown[0]:04d}')} is of a trial that the study's database, which knows {trials}, "
            "has never heard of: bring the newer database back, or move the folder away."
        )


def require_made_for(job: Job, final: Store) -> None:
    """Raise `MismatchError` unless the model in `final` is what `job` asks for: its study, its data, its parameters."""
    found = json.loads(read_sealed(final, DESCRIPTION)[DESCRIPTION])
    made = {"study": found.get("study"), "data": found.get("dataset"), "train": found.get("train")}
    if told := differences(made, {"study": job.study, "data": job.fingerprint, "train": as_kept(job.train)}):
        raise MismatchError(
            f"The model in {final.uri} is not of this trial ({told}): bring back what belongs together, or give "
            "another --name."
        )
