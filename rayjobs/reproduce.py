"""Reproduce a published row: train it as its paper did, with several seeds, and put what it reaches beside the paper.

    python rayjobs/reproduce.py --list cub resnet50
    ray job submit --working-dir . -- python rayjobs/reproduce.py --row bas-ext/table1/cub/resnet50 \
        --data s3://bucket/cub --storage s3://bucket/runs --weights imagenet --seeds 3

Nothing is searched but what the protocol solves on validation. Test is opened once for each model, when all seeds have
ended. The same command again continues, or shows the same. What is given beside the row (`--epochs 1`) is told as a
deviation. The report lies in the reproduction's folder, as a page and as Markdown.
"""

import shlex
import sys

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import PartialError
from wsol_pipeline.redaction import redact
from wsol_pipeline.verdict.options import ReproduceOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.screens import print_reproduction, print_rows
    from wsol_pipeline.console.tune import execute_and_show, is_only_shown
    from wsol_pipeline.report.reproduction import html, markdown, means
    from wsol_pipeline.verdict.reproduce import find_row, find_rows, judge_seeds, plan_row, to_mlflow

    if options.listed is not None:
        print_rows(find_rows(options.listed))
        return 0
    row = find_row(options.row)
    plan = plan_row(options, row)
    if is_only_shown(plan):
        return 0
    outcome, _ = execute_and_show(plan)
    if outcome.stopped:
        print(
            f"{outcome.stopped}: the same command with a larger limit continues; test stays closed until all seeds end"
        )
        return 0
    found = judge_seeds(plan, row, outcome, progress)
    command = f"python rayjobs/reproduce.py {redact(shlex.join(sys.argv[1:] if args is None else args))}"
    report = markdown(found, command)
    plan.folder.write("reproduction.md", report.encode())
    plan.folder.write("reproduction.html", html(found, command).encode())
    print_reproduction(found)
    print(f"report: {plan.folder.path('reproduction.html')} and reproduction.md", flush=True)
    if missing := to_mlflow(plan, row, report, means(found)):
        raise PartialError(f"{missing}: the same command writes it, and trains nothing again.")
    if outcome.failures:
        raise PartialError(f"{len(outcome.failures)} of {options.seeds} seeds failed; the report has the others.")
    return 0


if __name__ == "__main__":
    run_main(main)
