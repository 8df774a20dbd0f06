r"""Tune B-CAM: Optuna searches λ1 to λ4 and M; map rule, map or mask, and threshold are solved inside each trial.

    python rayjobs/tune_bcam.py
    ray job submit --working-dir . -- python rayjobs/tune_bcam.py \
        --data s3://bucket/cub --storage s3://bucket/runs --name bcam-cub \
        --preset b-cam/table1/cub/resnet50/bcam-p --weights imagenet \
        --trials 30 --workers 4

The same command again continues: finished trials stay, those that a dead driver left go on from their checkpoints.
"""

import functools
from dataclasses import dataclass
from typing import Literal

from search_spaces import Space, bcam
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of the B-CAM study."""

    name: str = "bcam"
    aggregator_init: Literal["zero", "xavier"] = "zero"
    """Start of the M heads: zero, as the code, which keeps them equal, or xavier, so that they differ."""


def space(options: Options) -> Space:
    """What each trial proposes."""
    return functools.partial(bcam.space, aggregator_init=options.aggregator_init)


def main(args: list[str] | None = None) -> int:
    options = parse(Options, args)
    return run_study(options, "bcam", space(options))


if __name__ == "__main__":
    run_main(main)
