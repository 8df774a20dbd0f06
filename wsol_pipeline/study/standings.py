"""How a study's settings stand: values of one seed or of several, and their order."""

import copy
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from wsol_pipeline.study.pareto import Rule, cell, deviation

CONFIRMS, SEED = "confirms", "seed"  # of a confirmation: whose parameters it repeats; what is added to the study's seed


@dataclass(frozen=True)
class Standing:
    """What is known of a proposal's setting: values of its own trial, then of its completed confirmations by seed.

    `others`: of each further objective the same.
    """

    trials: tuple[int, ...]
    values: tuple[float, ...]
    others: tuple[tuple[float, ...], ...] = ()

    @property
    def number(self) -> int:
        return self.trials[0]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Over seeds (n - 1); 0 of a single one."""
        return deviation(self.values)

    @property
    def means(self) -> tuple[float, ...]:
        """Of every objective."""
        return tuple(statistics.fmean(values) for values in (self.values, *self.others))

    def cells(self, objectives: Sequence[str]) -> list[str]:
        """Of each of the study's objectives what a table shows."""
        return [cell(name, values) for name, values in zip(objectives, (self.values, *self.others), strict=True)]

    def __str__(self) -> str:
        """`61.25`, or `61.25 ± 0.80 (3)` of three seeds."""
        return cell("", self.values)


def standings(trials: Iterable[FrozenTrial], rule: Rule | None = None) -> list[Standing]:
    """The completed proposals, best first: those with confirmations by their mean, then the others by their value.

    A single value is no match for a mean: the best of many single values is mostly a lucky one. The earliest comes
    first among equals; a confirmation that failed does not count. Of several objectives `rule` says what is best.
    """
    runs: dict[int, list[tuple[int, int, list[float]]]] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            attrs = trial.user_attrs
            run = attrs.get(SEED, 0), trial.number, trial.values
            runs.setdefault(attrs.get(CONFIRMS, trial.number), []).append(run)
    found = []
    for of in map(sorted, runs.values()):
        values, *others = zip(*(values for _, _, values in of), strict=True)
        found.append(Standing(tuple(number for _, number, _ in of), values, tuple(others)))
    if rule is None:
        return sorted(found, key=lambda standing: (len(standing.values) == 1, -standing.mean, standing.number))
    found.sort(key=lambda standing: standing.number)
    confirmed, single = ([s for s in found if (len(s.values) > 1) is several] for several in (True, False))
    return [pool[n] for pool in (confirmed, single) if pool for n in rule.order([s.means for s in pool])]


def compared(ranking: Sequence[Standing]) -> list[Standing]:
    """Those of a ranking that the winner was picked from: the settings with confirmations, if there are any."""
    return [standing for standing in ranking if len(standing.values) > 1] or list(ranking)


def front(ranking: Sequence[Standing], rule: Rule) -> list[Standing]:
    """The settings on the Pareto front of those compared, in the order of `ranking`."""
    rivals = compared(ranking)
    return [rivals[n] for n in rule.front([standing.means for standing in rivals])]


def first_objective(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials as a study of their first objective would hold them, for charts of a single value."""
    copies = [copy.copy(trial) for trial in trials]
    for trial in copies:
        trial.values = trial.values[:1] if trial.values else None
    return copies


def study_of(trials: Iterable[FrozenTrial]) -> optuna.Study:
    """A study in memory of these trials alone, numbered anew, for what Optuna says of a whole study."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return study
