r"""Tune HaS: Optuna searches cell size, share of hidden cells and learning rate; the threshold is solved in each trial.

    python rayjobs/tune_has.py
    ray job submit --working-dir . -- python rayjobs/tune_has.py \
        --data s3://bucket/cub --storage s3://bucket/runs --name has-cub \
        --preset bagcams/table2/cub/resnet50/has --weights imagenet \
        --trials 30 --workers 4

The same command again continues: finished trials stay, those that a dead driver left go on from their checkpoints.
"""

from dataclasses import dataclass

from search_spaces import Space, has
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of the HaS study."""

    name: str = "has"


def space(options: Options) -> Space:
    """What each trial proposes."""
    return has.space


def main(args: list[str] | None = None) -> int:
    options = parse(Options, args)
    return run_study(options, "has", space(options))


if __name__ == "__main__":
    run_main(main)
