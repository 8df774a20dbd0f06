r"""Tune SPG: Optuna searches the pseudo masks' thresholds and the learning rate; the map's is solved in each trial.

    python rayjobs/tune_spg.py
    ray job submit --working-dir . -- python rayjobs/tune_spg.py \
        --data s3://bucket/cub --storage s3://bucket/runs --name spg-cub \
        --preset b-cam/table1/cub/resnet50/spg --weights imagenet --trials 30 \
        --workers 4

The same command again continues: finished trials stay, those that a dead driver left go on from their checkpoints.
"""

from dataclasses import dataclass

from search_spaces import Space, spg
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of the SPG study."""

    name: str = "spg"


def space(options: Options) -> Space:
    """What each trial proposes."""
    return spg.space


def main(args: list[str] | None = None) -> int:
    options = parse(Options, args)
    return run_study(options, "spg", space(options))


if __name__ == "__main__":
    run_main(main)
