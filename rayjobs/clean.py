r"""Show what takes space in a storage, free what nothing needs any more, delete a study.

    wsol clean --storage runs
    wsol clean --storage runs --free states ray caches
    wsol clean --storage runs --delete bas-old

states: checkpoints of trials that have ended, which a killed driver left; models, curves and all that a study needs to
go on or to be judged stay. ray: Ray's own files. caches: decoded pixels and copies of shards on this machine, which are
made again. A study that is driven is left alone. --delete asks before it removes a study's files, trials and MLflow
runs, whatever their experiment; models that it registered stay. Give MLFLOW_TRACKING_URI and --study-db as the study
had them: where its trials or runs are not found, --yes removes nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.training.config import check_name, require
from wsol_pipeline.training.options import store_at

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store


@dataclass(frozen=True)
class Options:
    """What to free, and where."""

    storage: str = "runs"
    """The --storage of studies."""
    free: tuple[Literal["states", "ray", "caches"], ...] = ()
    """What to remove. By default nothing: it is only shown."""
    study: tuple[str, ...] = ()
    """Studies whose states and Ray's files are removed. By default all."""
    delete: tuple[str, ...] = ()
    """Studies to delete."""
    yes: bool = False
    """Delete without asking."""
    study_db: str | None = None
    """SQLAlchemy URL of the studies' database, if they were given one."""
    cache_dir: str | None = None
    """Where this machine keeps decoded pixels; by default below the user's cache folder."""

    def __post_init__(self) -> None:
        for name in (*self.study, *self.delete):
            check_name("study", name)
        require(not (self.delete and self.free), "--delete removes studies, --free parts of them: give one", self.free)

    @property
    def store(self) -> "Store":
        """Where all studies are kept."""
        return store_at(self.storage)


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.space import delete_studies, free_space, print_space

    if options.delete:
        delete_studies(options.store, options.delete, options.study_db, options.yes)
    for kind in dict.fromkeys(options.free):
        free_space(options.store, kind, options.study, options.study_db, options.cache_dir)
    print_space(options.store, options.study_db, options.cache_dir)
    return 0


if __name__ == "__main__":
    run_main(main)
