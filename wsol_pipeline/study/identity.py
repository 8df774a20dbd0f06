"""Which study this is: an id of its own, made once, kept with its files, in its database and on its MLflow runs.

A name says nothing: others may give the same one, a folder may be copied, a database may come back from a backup. What
was computed bears the study's id, the data's fingerprint and its whole configuration, and where it is handed over (a
trial adopted or told, a winner named, registered, judged, shown) they are compared.
"""

import json
import re
import uuid
from dataclasses import dataclass

from wsol_pipeline.errors import DataError, MismatchError
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.config import Job, differences, to_dict
from wsol_pipeline.training.model import DESCRIPTION

IDENTITY = "study.json"
WINNER = "winner.json"  # what the final evaluation needs to know of a finished study
_TRIAL = re.compile(r"trials/(\d{4,})/.+")


@dataclass(frozen=True)
class Home:
    """A study's id, and the folder that holds its files."""

    id: str
    storage: str

    def __str__(self) -> str:
        return f"{self.storage} (id {self.id[:12]})"


def home(folder: Store) -> Home:
    """The home that `folder` is, made if it is none yet. Of several drivers that make one at once all get the same."""
    if not folder.exists(IDENTITY):
        folder.create(IDENTITY, json.dumps({"id": uuid.uuid4().hex}).encode())
    try:
        return Home(json.loads(folder.read(IDENTITY))["id"], folder.uri)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder.path(IDENTITY)} is damaged: it says which study lies here. Bring it back.") from error


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
    if told := differences(made, {"study": job.study, "data": job.fingerprint, "train": to_dict(job.train)}):
        raise MismatchError(
            f"The model in {final.uri} is not of this trial ({told}): bring back what belongs together, or give "
            "another --name."
        )
