"""SIGKILL of the driver at each of its named points: the same command continues."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.end_to_end.driven import Driven
from tests.reliability.exits import import_data, in_a_process
from tests.reliability.row import Injection, Row
from tests.reliability.studies import environment_of, ray_folder

POINTS = ("suggested", "launched", "mid-epoch", "checkpointed", "completing", "registering")
OPTIONS = ("--concurrent 2 --pruner none --confirm 1", "--concurrent 1 --published 1", "--concurrent 2 --pruner none")
LEFT = 150.0  # seconds that Ray's processes may take to notice that their driver is gone


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """Of each study in turn the driver is killed at each point, and the last command ends it."""
    assert in_a_process(import_data, folder / "data", 96, 24) == 0
    for number in range(-(-times // len(POINTS))):
        storage, options = folder / f"runs-{number}", OPTIONS[number % len(OPTIONS)]
        storage.mkdir()
        with ray_folder() as ray:
            environment = environment_of(folder) | {"RAY_TMPDIR": ray, "XDG_CACHE_HOME": str(folder / "cache")}
            driven = Driven(storage, str(folder / "data"), environment, tuple(options.split()))
            for point in POINTS[: times - number * len(POINTS)]:
                yield killed(driven, point)
            wrong = judged(driven)
            if wrong:
                yield Injection(f"after all kills with {options}", wrong=wrong)


def killed(driven: Driven, point: str) -> Injection:
    """A life of the driver that ends at `point`; how long it took until it trained or, at the end, was over."""
    began, finals = time.time(), driven.finals()
    survivors = driven.kill_at(point)
    ended = time.time()
    if not finals.items() <= driven.finals().items():
        return Injection(point, wrong="a finished model was touched")
    if psutil.wait_procs(survivors, timeout=LEFT)[1]:
        return Injection(point, wrong=f"processes are left after {LEFT:g} s")
    epochs = (r["time"] for trial in driven.trials() for r in driven.checkpoints(trial.number).records())
    trained = [at - began for at in epochs if at > began]
    return Injection(point, seconds=min(trained, default=ended - began))


def judged(driven: Driven) -> str:
    """What is wrong with the study once its command has ended by itself, "" if nothing is."""
    driven.run()
    trials, runs = driven.trials(), driven.runs()
    tags = [run.data.tags["wsol.trial"] for run in runs]
    if [trial.number for trial in trials] != list(range(len(trials))) or not {"COMPLETE", "PRUNED"} >= {
        trial.state.name for trial in trials
    }:
        return f"trials {[(trial.number, trial.state.name) for trial in trials]}"
    if sorted(tags) != sorted(["study", *(str(trial.number) for trial in trials)]):
        return f"MLflow's runs are of {tags}"
    for trial in trials:
        epochs = [record["epoch"] for record in driven.checkpoints(trial.number).records()]
        if epochs != list(range(1, len(epochs) + 1)):
            return f"trial {trial.number} has epochs {epochs}"
    return "" if len(driven.versions()) == 1 else f"{len(driven.versions())} models are registered"


ROW = Row("driver-kill", "SIGKILL the driver at each named point", 18, "trials", 0, 120, inject)
