"""What a job that trains does once its options are read: run the study, show it, say how it ended.

What runs imports torch, ray and mlflow, for seconds; so it is imported here when it runs, and `--help` need not wait.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from search_spaces import Space
from wsol_pipeline.errors import DataError, PartialError
from wsol_pipeline.study.options import StudyOptions

if TYPE_CHECKING:
    from wsol_pipeline.study.mlflow_listener import MlflowListener
    from wsol_pipeline.study.outcome import Outcome
    from wsol_pipeline.study.plan import Plan


def run_study(
    options: StudyOptions, method: str, space: Space, point: Callable[[str], None] = lambda name: None
) -> int:
    """Run or continue the study of `options` and print what it found. Returns the exit code."""
    from wsol_pipeline.console.screens import print_outcome
    from wsol_pipeline.study.plan import make_plan
    from wsol_pipeline.study.streak import ABSTAINED

    plan = make_plan(options, method, space, print_start)
    for note in plan.choosers.notes:
        print(note)
    if is_only_shown(plan):
        return 0
    outcome, mlflow = execute_and_show(plan, point)
    print_outcome(outcome, plan, mlflow.version, mlflow.page)
    if outcome.damaged:
        raise DataError(outcome.damaged)
    failures = [failure for failure in outcome.failures.values() if failure["kind"] != ABSTAINED]
    failed = f"{len(failures)} of {outcome.balance['started']} trials failed (reasons above)."
    if told := " ".join([mlflow.missing] * bool(mlflow.missing) + [failed] * bool(failures)):
        raise PartialError(told)
    return 0


def is_only_shown(plan: "Plan") -> bool:
    """Whether a plan is printed, or rehearsed, and nothing is started."""
    from wsol_pipeline.console.config_file import dump
    from wsol_pipeline.console.screens import print_rehearsal
    from wsol_pipeline.study.rehearsal import rehearse

    if plan.options.print_config:
        print(dump(plan), end="")
    elif plan.options.dry_run:
        print("measuring a few batches where a trial would run ...", flush=True)
        print_rehearsal(plan, rehearse(plan))
    return plan.options.print_config or plan.options.dry_run


def execute_and_show(
    plan: "Plan", point: Callable[[str], None] = lambda name: None
) -> tuple["Outcome", "MlflowListener"]:
    """Run a study on the terminal and in MLflow: what it found, and what MLflow has of it."""
    from wsol_pipeline.console.config_file import keeper
    from wsol_pipeline.console.live import Screen
    from wsol_pipeline.study.execute import execute
    from wsol_pipeline.study.mlflow_listener import MlflowListener

    mlflow = MlflowListener(plan)
    outcome = execute(plan, [Screen(plan, lambda: mlflow.away), keeper(plan), mlflow], point)
    return outcome, mlflow


def print_start(record: dict[str, Any]) -> None:
    """One line for each epoch of the embedded start."""
    rate = f"{record['images_per_second']:.0f} images/s"
    print(f"embedded start: epoch {record['epoch']}  loss {record['train']['loss']:.3f}  {rate}", flush=True)
