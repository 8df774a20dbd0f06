"""What takes space, as a table; what is freed, and what is deleted once that was asked."""

import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wsol_pipeline.data.shards import cache_root
from wsol_pipeline.errors import UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.space import KINDS, delete, free, require_known, survey, ties
from wsol_pipeline.text import format_bytes

CACHES = "caches"
CACHED = ("pixels", "shards", "unpacked")  # what is below a cache folder, which may be somebody's own


def print_space(store: Store, study_db: str | None, cache_dir: str | None) -> None:
    """Bytes of each study by kind, of what else lies in the storage, and of this machine's caches."""
    space, cache = survey(store, study_db), cache_root(cache_dir)
    table = Table("study", *KINDS, "sum", title=store.uri, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, kinds in sorted(space.studies.items(), key=lambda item: -item[1].total()):
        table.add_row(name, *(format_bytes(kinds[kind]) for kind in KINDS), format_bytes(kinds.total()))
    if space.studies:
        Console().print(table)
    else:
        print(f"no study in {store}")
    for name, size in sorted(space.others.items(), key=lambda item: -item[1]):
        print(f"{name}: {format_bytes(size)}")
    print(f"{CACHES} of this machine, {cache}: {format_bytes(_cached(cache))}")


def free_space(store: Store, kind: str, studies: tuple[str, ...], study_db: str | None, cache_dir: str | None) -> None:
    """Remove one kind of what nothing needs."""
    if kind == CACHES:
        for name in CACHED:
            shutil.rmtree(cache_root(cache_dir) / name, ignore_errors=True)
        return
    space = survey(store, study_db)
    require_known(space, studies)
    for name in studies or space.studies:
        if freed := space.studies[name][kind]:
            free(store, name, kind, study_db)
            print(f"{name}: {format_bytes(freed)} of {kind} freed", flush=True)


def delete_studies(store: Store, studies: tuple[str, ...], study_db: str | None, yes: bool) -> None:
    """Delete studies with their trials and MLflow runs, each once that was asked.

    Raises `UsageError` for one whose trials or runs are not found, unless somebody is asked: without its files nothing
    tells any more which these are.
    """
    space = survey(store, study_db)
    require_known(space, studies)
    for name in studies:
        found = ties(store, name, study_db)
        size, runs = format_bytes(space.studies[name].total()), len(found.runs.deletable)
        what = f"study {name!r} in {store}: {size}, {found.trials} trials, {runs} MLflow runs"
        if found.runs.elsewhere:
            print(f"its MLflow runs are those of its copy at {found.runs.elsewhere}, and stay")
        lack = f"not found are its {' and its '.join(found.missing)}" if found.missing else ""
        if yes and lack:
            raise UsageError(f"Study {name!r} is not deleted: {lack}. Without --yes it is asked whether they may stay.")
        if yes or _is_agreed(f"Delete {what}{f' ({lack}, and stay)' if lack else ''}? [y/N] "):
            delete(store, name, found, study_db)
            print(f"deleted {what}; models that it registered stay", flush=True)


def _is_agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("There is nobody to be asked here: say --yes to delete.")
    return input(question).strip().lower() in ("y", "yes")


def _cached(cache: Path) -> int:
    return sum(sum(Store(str(cache / name)).sizes().values()) for name in CACHED)
