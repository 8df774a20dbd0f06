"""Is the winner real? How often another trial would win, had the validation images and the seeds been others.

In each redraw the validation images are drawn again with replacement, the same ones for every trial; thresholds are
solved anew on them. Of a setting with confirmations its seeds are drawn again too, and averaged.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.storage import Store
from wsol_pipeline.study.pareto import COST, Rule
from wsol_pipeline.study.standings import Standing
from wsol_pipeline.study.tuner import final_files
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.model import VAL_COUNTS, VAL_IMAGES

CANDIDATES = 20  # settings that may win a redraw
HOLDS, NAMED = 0.95, 0.05  # the share of redraws from which a winner holds; above which a rival is named


@dataclass(frozen=True)
class Doubt:
    """How often each trial wins. `wins`: trial -> share of the redraws, the study's winner first.

    `lead`: points that the winner is before the next, and `noise`: the deviation that seeds alone give such a
    difference; None where nothing was trained twice, or a rule decides.
    """

    wins: dict[int, float]
    seeds: dict[int, int]  # trial -> how many were drawn from
    images: int
    redraws: int
    rule: Rule | None = None  # of several objectives
    lead: float | None = field(default=None, compare=False)
    noise: float | None = field(default=None, compare=False)

    @property
    def is_over_seeds(self) -> bool:
        return max(self.seeds.values()) > 1

    @property
    def holds(self) -> bool:
        """Whether the winner is one on other images and with other seeds; of one seed each, or where a rule weighs
        several objectives and no one lead can be compared with its noise, nobody knows."""
        ahead = self.lead is not None and self.noise is not None and self.lead > self.noise
        return self.is_over_seeds and ahead and next(iter(self.wins.values())) >= HOLDS


def doubts(
    study: Store, ranking: Sequence[Standing], metric: str, redraws: int = 1000, rule: Rule | None = None
) -> Doubt | None:
    """Redraw the best of `ranking`, whose trials lie in the folder `study`; `rule` says what wins, else `metric`.

    None where there is no rival, or a trial has kept no single images: class masks have none. Costs stay as measured.
    Raises `DataError` that names the file that was altered.
    """
    candidates = ranking[:CANDIDATES]
    images = final_files(study, VAL_IMAGES)
    trials = [number for standing in candidates for number in standing.trials]
    if len(candidates) < 2 or not images.keys() >= set(trials):
        return None
    num_images, objectives = 0, rule.objectives if rule else (metric,)
    metrics = [name for name in objectives if name != COST]
    values: dict[int, NDArray[np.float64]] = {}
    for number in trials:
        files = read_sealed(study / images[number].removesuffix(f"/{VAL_IMAGES}"), VAL_COUNTS, VAL_IMAGES)
        hits = ImageHits.from_dict(json.loads(files[VAL_IMAGES]))
        of_trial = replace(Counts.from_dict(json.loads(files[VAL_COUNTS])), image_hits=hits)
        values[number] = selection.resampled(of_trial, metrics, redraws)
        num_images = len(set(hits.ids))
    drawn = [[np.stack([values[n][k] for n in s.trials]) for s in candidates] for k in range(len(metrics))]
    if COST in objectives:
        drawn.append([np.repeat(np.array(s.others)[-1, :, None], redraws, axis=1) for s in candidates])
    won = winners(drawn[0]) if rule is None else winners_by(rule, drawn)
    wins = {standing.number: float(np.mean(won == c)) for c, standing in enumerate(candidates)}
    seeds = {standing.number: len(standing.trials) for standing in candidates}
    return Doubt(wins, seeds, num_images, redraws, rule, *((None, None) if rule else lead_and_noise(candidates)))


def winners(values: Sequence[NDArray[np.float64]], seed: int = 0) -> NDArray[np.int64]:
    """Who is best in each redraw, [R], the first among equals. `values`: [seeds, R] of each candidate."""
    return means(values, seed).argmax(0)


def winners_by(rule: Rule, values: Sequence[Sequence[NDArray[np.float64]]], seed: int = 0) -> NDArray[np.int64]:
    """Who wins by `rule` in each redraw, [R]. `values`: of each objective what `winners` takes, of the same seeds."""
    means_RCK = np.stack([means(of_objective, seed) for of_objective in values], axis=-1).swapaxes(0, 1)
    return np.array([rule.pick(means_CK) for means_CK in means_RCK])


def means(values: Sequence[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """The mean over seeds of each candidate in each redraw, [C, R]. `values`: [seeds, R] of each candidate.

    From n seeds n are drawn with replacement, and the deviation of their mean
    is widened by √(n / (n - 1)): redraws of few values spread less than the values' population by that much.
    """
    rng = np.random.default_rng(seed)
    found = []
    for values_SR in values:
        mean_R, seeds = values_SR.mean(0), len(values_SR)
        drawn_SR = rng.integers(seeds, size=values_SR.shape)
        deviation_R = np.take_along_axis(values_SR, drawn_SR, 0).mean(0) - mean_R
        found.append(mean_R + deviation_R * np.sqrt(seeds / max(seeds - 1, 1)))
    return np.stack(found)


def lead_and_noise(ranking: Sequence[Standing]) -> tuple[float, float | None]:
    """Points of the first before the best other, and the deviation of that difference by the seeds of all settings."""
    best, *others = ranking
    rival, several = max(others, key=lambda other: other.mean), [s for s in ranking if len(s.values) > 1]
    if not several:
        return best.mean - rival.mean, None
    spare = [len(s.values) - 1 for s in several]
    variance = sum(n * s.std**2 for n, s in zip(spare, several, strict=True)) / sum(spare)
    return best.mean - rival.mean, math.sqrt(variance * (1 / len(best.values) + 1 / len(rival.values)))


def sentence(doubt: Doubt) -> str:
    """What redraws say of the winner: whether it holds, else who else would win, or what makes its lead."""
    (best, share), *others = doubt.wins.items()
    confirmed = doubt.is_over_seeds
    rivals = sorted((n for n, s in others if s > NAMED), key=lambda n: -doubt.wins[n])
    one_seed = {n: " (one seed)" if confirmed and doubt.seeds[n] == 1 else "" for n in doubt.wins}
    told = f"In {doubt.redraws:,} redraws of the {doubt.images:,} validation images{' and of seeds' * confirmed}, "
    told += f"trial {best} stays first {'by the same rule ' * bool(doubt.rule)}in {share:.0%}"
    if doubt.holds:
        told += ": it holds."
    elif share >= HOLDS and confirmed and not doubt.rule:
        told += f", but by {doubt.lead:.2f} points, of which seeds alone make {doubt.noise:.2f}: not settled."
    elif share >= HOLDS:
        told += f": other images {'or seeds ' * confirmed}would hardly change that."
    elif rivals:
        told += ", " + ", ".join(f"trial {n}{one_seed[n]} would win in {doubt.wins[n]:.0%}" for n in rivals)
        told += ": the search has not settled between them."
    else:
        told += f", no other in more than {NAMED:.0%}: the search has not settled."
    told += "" if confirmed else " One seed each: training noise is not in this."
    return f"{told} Costs are as measured." if doubt.rule and COST in doubt.rule.objectives else told
