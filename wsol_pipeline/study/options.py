"""What a study can be told, beside what every training can."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from wsol_pipeline.errors import unknown
from wsol_pipeline.study.budget import Budget
from wsol_pipeline.training.config import require
from wsol_pipeline.training.options import RunOptions

CONFIG = "config.yaml"  # a study's options, in its folder
# Optuna's, by the names of `samplers.py`, which imports Optuna.
SAMPLERS = ("tpe", "gp", "cma-es", "qmc", "random", "nsga2")
FOR_ONE, FOR_SEVERAL = ("cma-es",), ("nsga2",)  # samplers of studies with one objective, with several
PRUNERS = ("successive-halving", "hyperband", "median", "none")


@dataclass(frozen=True)
class SearchOptions:
    """Which parameters are tried, how often, and what is stopped early."""

    trials: Annotated[int, tyro.conf.arg(aliases=("--max-trials",))] = 8
    """Trials in all, published settings included; a larger number later continues the study."""
    also: tuple[str, ...] = ()
    """Further objectives beside --objective, for which readout and thresholds are solved: any metric of validation,
    e.g. cls_top1, and device_hours, what a trial's training and validation cost. The study then seeks the Pareto front.
    By default none."""
    tolerance: float = 1.0
    """With --also: of the front, settings within so many percentage points of the best of an objective go on to the
    next one; the last decides. device_hours always is the last."""
    sampler: str = "tpe"
    """What proposes parameters, by Optuna's names: tpe, gp (Gaussian process), qmc (an even cover of the space) or
    random; cma-es for one objective, nsga2 for several."""
    startup_trials: int = 4
    """Trials before the tpe, gp or cma-es sampler takes over from random proposals; nsga2: its population."""
    published: int = 2
    """Settings tried before any is proposed: the run's own (the preset's), then other published ones."""
    pruner: str = "auto"
    """What stops trials early that are poor in --objective at the rungs, by Optuna's names: successive-halving (auto),
    hyperband, median or none. With --also nothing does: what is poor in one objective may be the best of another."""
    rungs: tuple[int, ...] | None = None
    """Epochs after which the whole readout is searched and the pruner asked. By default a half of the epochs."""
    confirm: int = 0
    """How many of the best settings are trained again with further seeds, once all trials have ended: a winner is then
    the best mean."""
    confirm_seeds: int = 2
    """Further seeds for each setting that is confirmed."""
    study_db: str | None = None
    """SQLAlchemy URL of the study's database (PostgreSQL for teams). By default SQLite in a local --storage, or a
    journal of objects in an s3:// one."""


@dataclass(frozen=True)
class LimitsOptions:
    """What a study may spend. What runs when a limit is reached is finished."""

    max_device_hours: float | None = None
    """Start no more trials once the study has spent this: hours of training and validation x workers, over all runs of
    the command. What runs is finished."""
    time_budget: float | None = None
    """Hours after which this run of the command starts no more trials. What runs is finished."""
    concurrent: int | None = None
    """Trials at once; by default as many as the cluster holds."""


@dataclass(frozen=True)
class StudyOptions(LimitsOptions, SearchOptions, RunOptions):
    """Options of every tuning job."""

    name: str = "study"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trials >= 1, "trials must be at least 1", self.trials)
        require(self.concurrent is None or self.concurrent >= 1, "concurrent must be at least 1", self.concurrent)
        require(self.published >= 0, "published cannot be negative", self.published)
        require(self.startup_trials >= 0, "startup_trials cannot be negative", self.startup_trials)
        require(self.confirm >= 0, "confirm cannot be negative", self.confirm)
        require(self.confirm_seeds >= 1, "confirm_seeds must be at least 1", self.confirm_seeds)
        require(self.tolerance >= 0, "tolerance cannot be negative", self.tolerance)
        self.budget()  # refuses limits that are not positive
        for option, value, known in (("sampler", self.sampler, SAMPLERS), ("pruner", self.pruner, ("auto", *PRUNERS))):
            if value not in known:
                raise unknown(option, value, known)
        unfit = FOR_ONE if self.also else FOR_SEVERAL
        rule = f"with --also the sampler cannot be {unfit[0]}" if self.also else f"{unfit[0]} needs --also"
        require(self.sampler not in unfit, rule, self.sampler)
        require(
            not self.also or self.pruning == "none",
            "pruners compare one value, so with --also the pruner must be none or auto",
            self.pruner,
        )

    @property
    def pruning(self) -> str:
        """The pruner's name."""
        by_default = "none" if self.also else "successive-halving"
        return by_default if self.pruner == "auto" else self.pruner

    def budget(self) -> Budget:
        """The limits, with a clock that starts now."""
        return Budget(self.max_device_hours, self.time_budget)
