"""The jobs as functions, for a notebook or a program: options by keyword, and what they found as an object.

An option has its name of the command line (`wsol tune bas --help`), with `_` for `-`, and is checked as there. Where a
job ends with a line and a code, its function raises a `WsolError` with that line. A study prints nothing and is
continued by the same call. What runs on Ray runs in the cluster that this process has joined (`ray.init`), else in that
of RAY_ADDRESS, else in a local one. Ctrl+C ends a study as it ends the command, and raises `KeyboardInterrupt`; the
process has its own signal handlers again afterwards.
"""

import dataclasses
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from wsol_pipeline import interrupts
from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.config_file import words
from wsol_pipeline.errors import DataError, PartialError, UsageError, unknown

if TYPE_CHECKING:
    from wsol_pipeline.study.outcome import Outcome
    from wsol_pipeline.use.run import Outcome as Localized
    from wsol_pipeline.verdict.judge import Verdict
    from wsol_pipeline.verdict.training_images import TrainingVerdict

T = TypeVar("T")


def train(method: str, **options: Any) -> "Outcome":
    """Train `method` once, as `wsol train` does: a study of a single trial."""
    job = importlib.import_module("rayjobs.train")
    return _study(job, method, options | {"method": method})


def tune(method: str, **options: Any) -> "Outcome":
    """Search the hyper-parameters of `method`, as `wsol tune METHOD` does.

    Returns:
        What the study found: `ranking`, best first; `best`, the folder of the best model, which `wsol.load_model`
        reads; `failures` by trial; `doubt`, how sure the first is; `notes`, what files of boxes are like that chose.
    """
    import wsol_models

    if method not in wsol_models.methods():
        raise unknown("method", method, wsol_models.methods())
    return _study(importlib.import_module(f"rayjobs.tune_{method}"), method, options)


def evaluate(*studies: str, **options: Any) -> "Verdict | TrainingVerdict":
    """Judge finished studies on the test split, once, as `wsol evaluate --study ...` does; the first is crowned.

    Returns:
        `rows`: the centred box, the other studies' winners, the first study's. Each has its metrics on validation and,
        on test, transferred and oracle, in percent, and 95 % intervals. `costs`: of each of `selectors`. With
        `training_images=True` rows on these.
    """
    from rayjobs.evaluate import Options
    from wsol_pipeline.verdict.costs import costs_of_winner
    from wsol_pipeline.verdict.judge import judge, publish
    from wsol_pipeline.verdict.placing import somewhere
    from wsol_pipeline.verdict.training_images import judge_training_images

    asked = _options(Options, "evaluate", options | {"study": list(studies)})
    if asked.segmentation:
        raise UsageError("segmentation prints what it finds: it is for the command line.")
    with interrupts.borrowed():
        _join()
        if asked.training_images:
            return somewhere(judge_training_images, asked)
        verdict = judge(asked)
        if asked.selectors:
            verdict = dataclasses.replace(verdict, costs=somewhere(costs_of_winner, asked))
        if missing := publish(verdict)[1]:
            raise PartialError(f"{missing}: the same call writes it, and judges nothing again.")
    return verdict


def localize(**options: Any) -> "Localized":
    """Localize objects in any number of images, as `wsol localize` does: rows and forms are in the folder `out`.

    Returns:
        How many images and boxes there are, and which images are broken and why (`problems`): these raise nothing.
    """
    from rayjobs.localize import Options
    from wsol_pipeline.use import run
    from wsol_pipeline.use.formats import write
    from wsol_pipeline.verdict.score import silent

    asked = _options(Options, "localize", options)
    with interrupts.borrowed():
        _join()
        outcome = run.localize(asked, silent)
    write(asked.store, asked)
    return outcome


def export(**options: Any) -> str:
    """Hand a finished model on, as `wsol export` does; returns where it is."""
    from rayjobs import export as job

    asked = _options(job.Options, "export", options)
    job.export(asked)
    return asked.out


def _study(job: ModuleType, method: str, options: Mapping[str, Any]) -> "Outcome":
    from wsol_pipeline.console.config_file import keeper
    from wsol_pipeline.study.execute import execute
    from wsol_pipeline.study.mlflow_listener import MlflowListener
    from wsol_pipeline.study.plan import make_plan

    asked = _options(job.Options, job.__name__.partition(".")[2], options)
    with interrupts.borrowed():
        plan = make_plan(asked, method, job.space(asked))
        outcome = execute(plan, [keeper(plan), MlflowListener(plan)])
    if outcome.damaged:
        raise DataError(outcome.damaged)
    return outcome


def _join() -> None:
    """Join the cluster of RAY_ADDRESS, if there is one: without, neither judging nor localizing needs Ray."""
    from wsol_pipeline.training import cluster

    if "RAY_ADDRESS" in os.environ:
        cluster.connect(nested=False)


def _options(options: type[T], job: str, values: Mapping[str, Any]) -> T:
    """The options of a job from keywords, checked as on its command line."""
    plain = {name: _plain(value) for name, value in values.items()}
    return command_line(options, words(f"wsol.{job}()", options, plain))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
