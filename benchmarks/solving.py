"""What solving k and threshold inside a trial is worth: studies of BAS, replayed over a table of trained settings.

    python benchmarks/solving.py --table.folder runs/solving         (trains for some minutes once, then replays)

Three kinds of study search λ, α, β: with k and threshold *solved* (the best of all on validation), with *k sampled*
like a trained parameter (threshold solved), and with *both sampled*. A proposal stands for the nearest trained setting
(`solving_table.py`) and costs the seconds that this one was measured to take. The score is GT-known localization on
one half of the validation images, percent: it has one threshold. At what a study chose there, the other half is read:
the *blind* score, which nothing was chosen on. Ray, Optuna and MLflow cost nothing here, on all sides.
"""

import itertools
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optuna
import psutil
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from solving_table import METRIC, SPACE, Line, Setting, Trainings, train_table

from search_spaces import bas
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.study.samplers import sampler

SOLVED, K_SAMPLED, BOTH_SAMPLED = KINDS = ("k and threshold solved", "k sampled", "k and threshold sampled")
SAMPLERS = ("tpe", "random")
TARGETS = (0.90, 0.95, 0.99)  # quantiles, over the trained settings, of the best score on the seen half
LOOKS = (2, 5, 10, 20, 40)  # equal times to compare at, in mean solved trials
STARTUP = 4  # random trials before TPE takes over: the jobs' default
REDRAWS = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """What is replayed."""

    table: Trainings = field(default_factory=Trainings)
    seeds: int = 100
    """Studies of each kind and sampler."""
    trials: int = 80
    """Trials of a study."""
    picture: Path | None = None
    """File to draw the studies to."""
    quick: bool = False
    """Four settings of one epoch, two studies of six trials: only shows that it runs."""


@dataclass(frozen=True)
class Trained:
    """N trained settings, read at K values of k and T thresholds."""

    points_N3: Floats  # λ, α, β, each as a share of its range
    scores_N2KT: Floats  # percent, on the seen and the blind half
    solved_N: Floats  # seconds of a trial that searches its readout
    sampled_N: Floats  # seconds of a trial that reads one k


@dataclass(frozen=True)
class Trace:
    """A study after each of its trials, float64 [trials] each: seconds spent, the best score, the blind one at it."""

    seconds: Floats
    seen: Floats
    blind: Floats

    def time_to(self, target: float) -> float:
        """Seconds until the best score reached `target`; infinite if it never did."""
        reached = np.flatnonzero(self.seen >= target)
        return float(self.seconds[reached[0]]) if len(reached) else float("inf")

    def at(self, seconds: float) -> tuple[float, float]:
        """Best and blind score after the trials that had ended by then; 0 before the first."""
        ended = int(np.searchsorted(self.seconds, seconds, side="right"))
        return (float(self.seen[ended - 1]), float(self.blind[ended - 1])) if ended else (0.0, 0.0)


def arrays(lines: Sequence[Line]) -> Trained:
    """The table's trainings with the first seed."""
    lines = [line for line in lines if line["seed"] == 0]
    trial_N, searched_N, one_N = (
        np.array([line[name] for line in lines]) for name in ("trial_s", "searched_pass_s", "one_setting_pass_s")
    )
    points_N3 = np.array([shares(line["setting"]) for line in lines])
    return Trained(points_N3, np.array([surface(line) for line in lines]), trial_N, trial_N - searched_N + one_N)


def shares(setting: Setting) -> list[float]:
    """λ, α, β, each as a share of its range, so that near means near in all three."""
    return [(setting[name] - low) / (high - low) for name, (low, high) in SPACE.items()]


def surface(line: Line) -> Floats:
    """The score of each half at every k and threshold, percent [2, K, T]."""
    return np.array([selection.curves(Counts.from_dict(half), METRIC)[:, 0] for half in line["halves"]])


def look(trained: Trained, row: int, k: int | None = None, threshold: int | None = None) -> tuple[float, float]:
    """The seen score, the best over what is left open (of equal ones the first), and the blind one at that very place.

    k counts from 1, `threshold` from 0 in the grid.
    """
    ks = slice(None) if k is None else slice(k - 1, k)
    thresholds = slice(None) if threshold is None else slice(threshold, threshold + 1)
    seen_KT, blind_KT = trained.scores_N2KT[row][:, ks, thresholds]
    place = seen_KT.argmax()
    return float(seen_KT.flat[place]), float(blind_KT.flat[place])


def propose(trial: optuna.Trial, kind: str, trained: Trained) -> tuple[int, int | None, int | None]:
    """What a study of `kind` tries next: the nearest trained row, and k and threshold where they are sampled."""
    _, _, num_ks, num_thresholds = trained.scores_N2KT.shape
    distances_N = np.square(trained.points_N3 - shares(bas.space(trial))).sum(1)
    k = None if kind == SOLVED else trial.suggest_int("k", 1, num_ks)
    threshold = int(num_thresholds * trial.suggest_float("threshold", 0, 0.999)) if kind == BOTH_SAMPLED else None
    return int(distances_N.argmin()), k, threshold


def replay(trained: Trained, kind: str, sampler_name: str, seed: int, trials: int) -> Trace:
    """A study over the table, with the project's sampler."""
    study, propositions = optuna.create_study(direction="maximize"), sampler(sampler_name, seed, STARTUP)
    cost_N = trained.solved_N if kind == SOLVED else trained.sampled_N
    seconds, best, curve = 0.0, (-1.0, -1.0), []
    for number in range(trials):
        study.sampler = propositions(number)
        trial = study.ask()
        row, k, threshold = propose(trial, kind, trained)
        found = look(trained, row, k, threshold)
        study.tell(trial, found[0])
        seconds += float(cost_N[row])
        best = found if found[0] > best[0] else best
        curve.append((seconds, *best))
    return Trace(*np.array(curve).T)


def replay_all(trained: Trained, options: Options) -> dict[tuple[str, str], list[Trace]]:
    """By (kind, sampler): the studies of all seeds."""
    found = {}
    with ProcessPoolExecutor(options.table.processes, multiprocessing.get_context("spawn")) as pool:
        for key in itertools.product(KINDS, SAMPLERS):
            columns = ([value] * options.seeds for value in (trained, *key))
            seeds, trials = range(options.seeds), [options.trials] * options.seeds
            found[key] = list(pool.map(replay, *columns, seeds, trials, chunksize=5))
    return found


def quartiles(values: Sequence[float]) -> list[float]:
    """Of values that may be infinite."""
    return np.quantile(values, (0.25, 0.5, 0.75), method="inverted_cdf").tolist()


def ratio_of_medians(times: Sequence[float], solved: Sequence[float]) -> list[float]:
    """How much longer the median study takes than the median solved one: [ratio, low, high], 95 % by redrawing seeds.

    Infinite where half of the studies never arrived.
    """
    rng, (numerator_S, denominator_S) = np.random.default_rng(0), (np.array(times), np.array(solved))
    drawn_2RS = rng.integers(len(times), size=(2, REDRAWS, len(times)))
    medians = [
        np.quantile(values_S[drawn_RS], 0.5, axis=1, method="inverted_cdf")
        for values_S, drawn_RS in zip((numerator_S, denominator_S), drawn_2RS, strict=True)
    ]
    interval = np.quantile(medians[0] / medians[1], (0.025, 0.975), method="inverted_cdf")
    return [quartiles(times)[1] / quartiles(solved)[1], *interval.tolist()]


def mean_and_interval(values: Sequence[float]) -> list[float]:
    """[mean, low, high], 95 % by redrawing seeds."""
    drawn_RS = np.random.default_rng(0).choice(np.array(values), (REDRAWS, len(values)))
    return [float(np.mean(values)), *np.quantile(drawn_RS.mean(1), (0.025, 0.975)).tolist()]


def facts(trained: Trained, lines: Sequence[Line]) -> dict[str, Any]:
    """What the table says before any study: where k lies, what a fixed k loses, what seeds do, what things cost."""
    num_settings, num_ks = len(trained.points_N3), trained.scores_N2KT.shape[2]
    both_NK2 = np.array([[look(trained, n, k) for k in range(1, num_ks + 1)] for n in range(num_settings)])
    best_N, constant = both_NK2[..., 0].argmax(1), int(both_NK2[..., 0].mean(0).argmax())
    solved_N, blind_N = np.array([look(trained, n) for n in range(num_settings)]).T
    good_N = solved_N >= np.quantile(solved_N, 0.75)
    seeds: dict[int, list[float]] = {}
    for line in lines:
        seeds.setdefault(line["number"], []).append(float(surface(line)[0].max()))
    shares_N = [line["searched_pass_s"] / line["trial_s"] for line in lines]
    return {
        "settings": num_settings,
        "score_quantiles": np.quantile(solved_N, (0, 0.25, 0.5, 0.75, 1)).round(1).tolist(),
        "best_k_of_good": np.bincount(best_N[good_N] + 1, minlength=num_ks + 1)[1:].tolist(),
        "constant_k": constant + 1,
        "blind_gain_over_constant_k": round(float((blind_N - both_NK2[:, constant, 1])[good_N].mean()), 1),
        "blind_gain_over_k1": round(float((blind_N - both_NK2[:, 0, 1])[good_N].mean()), 1),
        "std_between_seeds": round(float(np.mean([np.std(v, ddof=1) for v in seeds.values() if len(v) > 1])), 1),
        "std_between_settings": round(float(solved_N.std(ddof=1)), 1),
        "trial_s": round(float(np.median(trained.solved_N)), 2),
        "sampled_trial_s": round(float(np.median(trained.sampled_N)), 2),
        "searched_pass_share": round(float(np.median(shares_N)), 2),
    }


def targets(trained: Trained) -> dict[float, float]:
    """The scores to reach, by their quantile among the trained settings."""
    best_N = trained.scores_N2KT[:, 0].max((1, 2))
    return {quantile: float(np.quantile(best_N, quantile, method="inverted_cdf")) for quantile in TARGETS}


def compare(trained: Trained, studies: Mapping[tuple[str, str], Sequence[Trace]]) -> list[dict[str, Any]]:
    """A row per target, kind and sampler: seconds to the target, beside the solved studies with the same sampler."""
    rows = []
    for (quantile, score), (kind, name) in itertools.product(targets(trained).items(), studies):
        times = [trace.time_to(score) for trace in studies[kind, name]]
        solved = [trace.time_to(score) for trace in studies[SOLVED, name]]
        row = {"target": quantile, "score": round(score, 1), "kind": kind, "sampler": name}
        row |= {"quartiles_s": finite(quartiles(times)), "reached": float(np.mean(np.isfinite(times)))}
        if kind != SOLVED:
            faster = np.mean([mine < theirs for mine, theirs in zip(solved, times, strict=True)])
            row |= {"ratio": finite(ratio_of_medians(times, solved)), "solved_faster": float(faster)}
        rows.append(row)
    return rows


def compare_at(trained: Trained, studies: Mapping[tuple[str, str], Sequence[Trace]]) -> list[dict[str, Any]]:
    """A row per equal time, kind and sampler: mean scores of both halves, and what solved ones are ahead when blind."""
    rows = []
    for trials, (kind, name) in itertools.product(LOOKS, studies):
        seconds = trials * float(trained.solved_N.mean())
        seen, blind = np.array([trace.at(seconds) for trace in studies[kind, name]]).T
        row = {"solved_trials": trials, "seconds": round(seconds), "kind": kind, "sampler": name}
        row |= {"seen": float(seen.mean()), "blind": float(blind.mean())}
        if kind != SOLVED:
            solved = np.array([trace.at(seconds)[1] for trace in studies[SOLVED, name]])
            row["blind_ahead"] = mean_and_interval(solved - blind)
        rows.append(row)
    return rows


def finite(values: Sequence[float]) -> list[float | None]:
    """Rounded, with None for what is not finite: JSON has no infinity."""
    return [round(value, 2) if np.isfinite(value) else None for value in values]


def shown(values: Sequence[float | None], digits: int) -> list[str]:
    return ["never" if value is None else f"{value:.{digits}f}" for value in values]


def interval(values: Sequence[float | None]) -> str:
    middle, low, high = shown(values, 1)
    return f"{middle} [{low}, {high}]"


def report(found: Mapping[str, Any]) -> None:
    console = Console(width=120)
    console.print_json(data=found["table"])
    table = Table("score", "sampler", "study", "seconds: quartiles", "reached", "x solved", "solved faster")
    for row in found["times"]:
        quarters = ", ".join(shown(row["quartiles_s"], 0))
        beside = (interval(row["ratio"]), f"{row['solved_faster']:.0%}") if "ratio" in row else ("", "")
        score = f"{row['score']} ({row['target']:.0%})"
        table.add_row(score, row["sampler"], row["kind"], quarters, f"{row['reached']:.0%}", *beside)
    console.print(table)
    table = Table("seconds", "sampler", "study", "seen", "blind", "solved ahead, blind")
    for row in found["scores"]:
        ahead = interval(row["blind_ahead"]) if "blind_ahead" in row else ""
        time = f"{row['seconds']} ({row['solved_trials']} trials)"
        table.add_row(time, row["sampler"], row["kind"], f"{row['seen']:.1f}", f"{row['blind']:.1f}", ahead)
    console.print(table)
    print(json.dumps({"benchmark": "solving", **found, "cores": psutil.cpu_count()}))


def draw(studies: Mapping[tuple[str, str], Sequence[Trace]], seconds: float, path: Path) -> None:
    """The best score over time, seen and blind: medians, of TPE's studies with their quartiles."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, sharey=True)
    times = np.linspace(0, seconds, 200)[1:]
    for colour, kind in zip(("tab:green", "tab:orange", "tab:red"), KINDS, strict=True):
        for name, line in zip(SAMPLERS, ("-", "--"), strict=True):
            scores_STP = np.array([[trace.at(t) for t in times] for trace in studies[kind, name]])
            for panel, scores_ST in zip(panels, scores_STP.transpose(2, 0, 1), strict=True):
                low, middle, high = np.quantile(scores_ST, (0.25, 0.5, 0.75), axis=0)
                panel.plot(times, middle, line, color=colour, label=f"{kind}, {name}")
                if name == "tpe":
                    panel.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0)
    for panel, title in zip(panels, ("half that the study sees", "half that it is blind to"), strict=True):
        panel.set(title=title, xlabel="seconds of training and validation")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GT-known localization (%)")
    panels[1].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        small = replace(options.table, settings=4, repeats=1, images=24, validation=24, epochs=1)
        options = replace(options, table=small, seeds=2, trials=6)
    lines = train_table(options.table)
    trained = arrays(lines)
    studies = replay_all(trained, options)
    report({"table": facts(trained, lines), "times": compare(trained, studies), "scores": compare_at(trained, studies)})
    if options.picture:
        draw(studies, max(LOOKS) * float(trained.solved_N.mean()), options.picture)


if __name__ == "__main__":
    main()
