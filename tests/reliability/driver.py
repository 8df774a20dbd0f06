"""The driver of `rayjobs/tune_cam.py`, with workers that write down every batch."""

import sys

from search_spaces import cam
from tests.reliability import trace
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study import execute
from wsol_pipeline.study.options import StudyOptions


def main() -> int:
    execute.trainable = lambda job: trace.run_on_one_device if job.workers == 1 else trace.run_on_workers
    return run_study(parse(StudyOptions, sys.argv[1:]), "cam", cam.space)


if __name__ == "__main__":
    run_main(main)
