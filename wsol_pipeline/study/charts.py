"""Pictures of a study: what each hyper-parameter did to the objective, and which mattered."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from optuna.trial import TrialState

from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.standings import CONFIRMS, Standing, first_objective, front, study_of


def draw_study(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw sensitivity (as in BAS extension Fig. 9, for the user's data) and importance into `folder` as PNG files.

    Of proposals alone: the best settings, trained again for confirmation, would weigh more than others. Of several
    objectives the first.

    Importance needs at least four completed trials that differ; with fewer there is only the sensitivity picture.
    """
    started = first_objective(study.get_trials(deepcopy=False))
    trials = [t for t in started if t.state is TrialState.COMPLETE and CONFIRMS not in t.user_attrs]
    if not any(trial.params for trial in trials):
        return []
    pictures = [_sensitivity(trials, folder / "sensitivity.png")]
    if len(trials) >= 4 and len({trial.value for trial in trials}) > 1:
        pictures.append(_importance(study_of(trials), folder / "importance.png"))
    return pictures


def draw_front(ranking: Sequence[Standing], rule: Rule, folder: Path) -> Path:
    """Draw a study of several objectives into `folder` as pareto.png: the first over each other, settings on the front
    filled and numbered, the winner (the first of `ranking`) as a star. Means over seeds."""
    first, *others = rule.objectives
    best = front(ranking, rule)
    figure, axes = plt.subplots(1, len(others), figsize=(4.2 * len(others), 3.6), sharey=True, squeeze=False)
    for k, (axis, name) in enumerate(zip(axes[0], others, strict=True), start=1):
        at = lambda standings, k=k: ([s.means[k] for s in standings], [s.means[0] for s in standings])  # noqa: E731
        axis.plot(*at(ranking), "o", color="tab:gray", fillstyle="none", label="others")
        axis.plot(*at(best), "o", color="tab:blue", label="Pareto front")
        axis.plot(*at(ranking[:1]), "*", color="tab:orange", markersize=13, label="winner")
        for standing, x, y in zip(best, *at(best), strict=True):
            axis.annotate(str(standing.number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"{first} on validation (%)")
    axes[0][-1].legend()
    return _save(figure, folder / "pareto.png")


def _sensitivity(trials: list[optuna.trial.FrozenTrial], path: Path) -> Path:
    names = sorted({name for trial in trials for name in trial.params})
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        points = [(trial.params[name], trial.value, "published" in trial.user_attrs) for trial in trials]
        for published, marker, label in ((False, "o", "proposed"), (True, "*", "published")):
            chosen = [(x, y) for x, y, flag in points if flag is published]
            if chosen:
                axis.plot(*zip(*chosen, strict=True), marker, markersize=9 if published else 6, label=label)
        distribution = trials[0].distributions.get(name)
        if getattr(distribution, "log", False):
            log_axis(axis)
        axis.set_xlabel(name.rstrip("_"))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("objective on validation (%)")
    axes[0][-1].legend()
    return _save(figure, path)


def log_axis(axis: Axes) -> None:
    """Make the x axis logarithmic, with plain numbers that have room beside each other.

    Matplotlib's own names are formulas, and in a narrow range one for every ninth of a decade.
    """
    axis.set_xscale("log")
    low, high = np.log10(axis.get_xlim())
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high - low > 2 else (1.0, 2.0, 5.0), numticks=7))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _importance(study: optuna.Study, path: Path) -> Path:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    figure, axis = plt.subplots(figsize=(5, 0.5 * len(shares) + 1.2))
    axis.barh([name.rstrip("_") for name in reversed(shares)], list(reversed(shares.values())))
    axis.set_xlabel("share of the objective's variance (fANOVA)")
    axis.set_xlim(0, 1)
    return _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
