"""Studies of several objectives: which settings no other beats, and the rule that picks a winner among them.

A setting is on the Pareto front if no other is at least as good in every objective and better in one. Most studies have
several such settings; the rule that picks one is written down before the study begins, so that nobody picks the trial
that flatters most.
"""

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from optuna.study import StudyDirection

COST = "device_hours"  # of a trial's training and validation: less is better; of every other objective more is
ROUNDING = 1e-9  # a share of images is no exact binary number: 61 - 60 may come out above 1


@dataclass(frozen=True)
class Rule:
    """Lexicographic with a tolerance, on the Pareto front alone.

    Of the settings on the front those stay that are within `tolerance` (percentage points) of the best of the first
    objective; of these, those within it of the best of the second, and so on; the last objective decides. So the winner
    is never beaten in everything by another. Cost has no tolerance and stands last.
    """

    objectives: tuple[str, ...]
    tolerance: float

    @property
    def directions(self) -> list[StudyDirection]:
        return [StudyDirection.MINIMIZE if name == COST else StudyDirection.MAXIMIZE for name in self.objectives]

    def front(self, values_NK: ArrayLike) -> list[int]:
        """The rows that no other beats; equal rows are on it together."""
        return np.flatnonzero(~_beaten(self._gains(values_NK)).any(0)).tolist()

    def pick(self, values_NK: ArrayLike) -> int:
        """The row that wins; of equal ones the first."""
        gains_NK = self._gains(values_NK)
        return self._winner(gains_NK, np.flatnonzero(~_beaten(gains_NK).any(0)))

    def order(self, values_NK: ArrayLike) -> list[int]:
        """All rows, best first: each is the one that would win without those before it."""
        gains_NK = self._gains(values_NK)
        beaten_NN, left_N, found = _beaten(gains_NK), np.ones(len(gains_NK), bool), []
        rivals_N = beaten_NN.sum(0)
        while left_N.any():
            best = self._winner(gains_NK, np.flatnonzero(left_N & (rivals_N == 0)))
            left_N[best] = False
            rivals_N = rivals_N - beaten_NN[best]
            found.append(best)
        return found

    def sentence(self, values: Mapping[int, Sequence[float]], kind: str = "settings") -> str:
        """The rule with its numbers, for the settings' `values` by trial; `kind`: what they are."""
        values_NK = np.array(list(values.values()))
        winner = list(values)[self.pick(values_NK)]
        left = np.array(self.front(values_NK))
        if len(left) == 1:
            return f"Trial {winner} wins: of {len(values)} {kind} none is better in any objective."
        told = f"{len(left)} of {len(values)} {kind} are on the Pareto front"
        steps, points = self._steps(self._gains(values_NK), left), "point" if self.tolerance == 1 else "points"
        for k, name in enumerate(self.objectives[:-1]):
            best = cell(name, [values_NK[left, k].max()])
            left = steps[k]
            told += f"; {len(left)} of them at most {self.tolerance:g} {points} below the best {name} ({best})"
            if len(left) == 1:
                return f"{told}: trial {winner} wins."
        last = self.objectives[-1]
        decides = f"{'least' if last == COST else 'best'} {last} ({cell(last, [values[winner][-1]])})"
        return f"{told}; of these trial {winner} has the {decides} and wins."

    def _gains(self, values_NK: ArrayLike) -> NDArray[np.float64]:
        """Values with their signs such that more is better."""
        return np.asarray(values_NK, np.float64) * [-1 if name == COST else 1 for name in self.objectives]

    def _steps(self, gains_NK: NDArray[np.float64], front: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Who is left of the front after each objective."""
        steps = []
        for k in range(len(self.objectives)):
            slack = self.tolerance if k + 1 < len(self.objectives) else 0.0
            front = front[gains_NK[front, k] >= gains_NK[front, k].max() - slack - ROUNDING]
            steps.append(front)
        return steps

    def _winner(self, gains_NK: NDArray[np.float64], front: NDArray[np.int64]) -> int:
        """Of several left at the end the best in the first objective that tells them apart, else the first."""
        left = self._steps(gains_NK, front)[-1].tolist()
        return max(left, key=lambda n: (*gains_NK[n], -n))


def _beaten(gains_NK: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether row i beats row j: at least as good in every column and better in one, [i, j]."""
    pairs = [(column[:, None], column[None]) for column in gains_NK.T]
    never_worse = functools.reduce(np.logical_and, (i >= j for i, j in pairs))
    return never_worse & functools.reduce(np.logical_or, (i > j for i, j in pairs))


def deviation(values: Sequence[float]) -> float:
    """The standard deviation over seeds (n - 1); 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def cell(name: str, values: Sequence[float]) -> str:
    """An objective's value as tables show it: `61.25`, or `61.25 ± 0.80 (3)` of three seeds; hours as `0.0123`."""
    digits = ".3g" if name == COST else ".2f"
    if len(values) == 1:
        return f"{values[0]:{digits}}"
    return f"{np.mean(values):{digits}} ± {deviation(values):{digits}} ({len(values)})"
