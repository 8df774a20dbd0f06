"""What proposes parameters and what stops trials early: Optuna's samplers and pruners, by name."""

from collections.abc import Callable

import optuna

from wsol_pipeline.errors import unknown

Sampler = Callable[[int], optuna.samplers.BaseSampler]  # trial number -> what proposes its parameters


SAMPLERS: dict[str, Callable[[int, int, int], optuna.samplers.BaseSampler]] = {  # (seed, trial number, startup trials)
    "tpe": lambda seed, number, startup: optuna.samplers.TPESampler(
        seed=_seed_of(seed, number), n_startup_trials=startup, multivariate=True, constant_liar=True
    ),
    "gp": lambda seed, number, startup: optuna.samplers.GPSampler(
        seed=_seed_of(seed, number), n_startup_trials=startup, deterministic_objective=False
    ),
    "cma-es": lambda seed, number, startup: optuna.samplers.CmaEsSampler(
        seed=_seed_of(seed, number), n_startup_trials=startup, warn_independent_sampling=False
    ),
    # a sequence of points, of which each trial takes the next: its seed must stay
    "qmc": lambda seed, number, startup: optuna.samplers.QMCSampler(
        seed=seed, scramble=True, warn_independent_sampling=False
    ),
    "random": lambda seed, number, startup: optuna.samplers.RandomSampler(seed=_seed_of(seed, number)),
    # its parents are its own proposals alone: Optuna counts enqueued trials to no generation
    "nsga2": lambda seed, number, startup: optuna.samplers.NSGAIISampler(
        seed=_seed_of(seed, number), population_size=max(2, startup)
    ),
}


PRUNERS: dict[str, Callable[[int, int], optuna.pruners.BasePruner]] = {  # (first rung, epochs)
    "successive-halving": lambda first, epochs: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=first, reduction_factor=2
    ),
    "hyperband": lambda first, epochs: optuna.pruners.HyperbandPruner(
        min_resource=first, max_resource=epochs, reduction_factor=2
    ),
    "median": lambda first, epochs: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first - 1),
    "none": lambda first, epochs: optuna.pruners.NopPruner(),
}


def sampler(name: str, seed: int, startup_trials: int) -> Sampler:
    """Optuna's sampler by name, seeded for each trial by its number, so that proposals don't depend on restarts."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return lambda number: SAMPLERS[name](seed, number, startup_trials)


def _seed_of(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**32


def pruner(name: str, first_rung: int, epochs: int) -> optuna.pruners.BasePruner:
    """Optuna's pruner by name; `first_rung` is the first epoch at which it is asked."""
    if name not in PRUNERS:
        raise unknown("pruner", name, PRUNERS)
    return PRUNERS[name](first_rung, epochs)
