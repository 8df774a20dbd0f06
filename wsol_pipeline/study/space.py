"""What a storage holds of each study, and what of it nothing needs any more."""

import re
from collections import Counter, defaultdict
from collections.abc import Container
from dataclasses import dataclass

import optuna

from wsol_pipeline.errors import UsageError, unknown
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.identity import IDENTITY, home
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.study.tuner import final_files
from wsol_pipeline.tracking.connect import existing_mlflow, sqlite_file
from wsol_pipeline.tracking.runs import Kept, kept_of

STATES, RUNNING, MODELS, RAY, REST = KINDS = ("states", "of running trials", "models", "ray", "rest")
FREED = (STATES, RAY)  # kinds that nothing needs
_STATE = re.compile(r"trials/(\d{4,})/.*/state\.pt")
_MODEL = re.compile(r"trials/\d{4,}/.*/(final|last)/.*")


@dataclass(frozen=True)
class Space:
    """Bytes of each study by kind, and of what else is in the storage by its first name."""

    studies: dict[str, Counter[str]]
    others: dict[str, int]


def survey(store: Store, study_db: str | None = None) -> Space:
    """What is in `store`, in one listing."""
    sizes: dict[str, dict[str, int]] = defaultdict(dict)
    for name, size in store.sizes().items():
        first, _, rest = name.partition("/")
        sizes[first][rest] = size
    studies = {name: files for name, files in sizes.items() if IDENTITY in files}
    return Space(
        {name: _by_kind(files, ended(store / name, name, study_db)) for name, files in studies.items()},
        {name: sum(files.values()) for name, files in sizes.items() if name not in studies},
    )


def ended(folder: Store, name: str, study_db: str | None = None) -> set[int]:
    """Numbers of the trials that have ended; without a database those that have a finished model."""
    study = _study(folder, name, study_db)
    if study is None:
        return set(final_files(folder, "seal.json"))
    return {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}


def free(store: Store, study: str, kind: str, study_db: str | None = None) -> None:
    """Remove what a study has of one kind of `FREED`. Raises `ResourceError` while somebody drives it."""
    folder = store / study
    with acquire(folder / "lease") as lease:
        if kind == RAY:
            folder.remove_all("ray")
            return
        over = ended(folder, study, study_db)
        for name in folder.list("trials"):
            if _kind(name, over) == STATES:
                lease.check()
                folder.remove(name)


@dataclass(frozen=True)
class Ties:
    """What a study has beside its files: trials in a database, runs in MLflow; `missing` are those not found here."""

    trials: int
    runs: Kept
    missing: tuple[str, ...]


def ties(store: Store, name: str, study_db: str | None = None) -> Ties:
    """What study `name` has beside its files. Nothing is made where there is nothing, no database and no experiment."""
    folder = store / name
    study, own = _study(folder, name, study_db), home(folder)
    with existing_mlflow(store) as client:
        runs = kept_of(client, own.id, (own.storage, *own.before)) if client else Kept()
    trials = len(study.get_trials(deepcopy=False)) if study else 0
    places = {"trials (--study-db says where)": trials, "MLflow runs (MLFLOW_TRACKING_URI says where)": len(runs.runs)}
    tried = bool(folder.list("trials"))
    return Ties(trials, runs, tuple(what for what, count in places.items() if tried and not count))


def delete(store: Store, name: str, found: Ties, study_db: str | None = None) -> None:
    """Remove a study: what was `found` of it in MLflow and in its database, its files; models that it registered stay.

    What is interrupted is done by the same call again. Raises `ResourceError` while somebody drives the study.
    """
    folder = store / name
    with acquire(folder / "lease"), existing_mlflow(store) as client:
        if client:
            for run in found.runs.deletable:
                client.delete_run(run)  # MLflow hides it; `mlflow gc` removes it
    for file in folder.list():
        if file != IDENTITY:
            folder.remove(file)
    if study_db and (known := _study(folder, name, study_db)):
        optuna.delete_study(study_name=name, storage=known._storage)
    folder.remove_all()  # its id last


def require_known(space: Space, studies: tuple[str, ...]) -> None:
    """Raise `UsageError` for a name that is no study's."""
    if studies and not space.studies:
        raise UsageError(f"Unknown study {studies[0]!r}: there is no study in this --storage.")
    for name in studies:
        if name not in space.studies:
            raise unknown("study", name, space.studies)


def _study(folder: Store, name: str, study_db: str | None) -> optuna.Study | None:
    file = sqlite_file(study_db)
    if file and not file.exists():  # opened, it would be made
        return None
    if study_db is None and not folder.exists("study.db") and not folder.list("journal"):
        return None
    try:
        return optuna.load_study(study_name=name, storage=open_storage(folder, study_db))
    except KeyError:
        return None


def _by_kind(files: dict[str, int], over: Container[int]) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for name, size in files.items():
        kinds[_kind(name, over)] += size
    return kinds


def _kind(name: str, over: Container[int]) -> str:
    if found := _STATE.fullmatch(name):
        return STATES if int(found[1]) in over else RUNNING
    return RAY if name.startswith("ray/") else MODELS if _MODEL.fullmatch(name) else REST
