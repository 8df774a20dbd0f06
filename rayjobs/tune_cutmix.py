r"""Tune CutMix: Optuna searches β, the share of mixed batches and the rate; the threshold is solved in each trial.

    python rayjobs/tune_cutmix.py
    ray job submit --working-dir . -- python rayjobs/tune_cutmix.py \
        --data s3://bucket/cub --storage s3://bucket/runs --name cutmix-cub \
        --preset bagcams/table2/cub/resnet50/cutmix --weights imagenet \
        --trials 30 --workers 4

The same command again continues: finished trials stay, those that a dead driver left go on from their checkpoints.
"""

from dataclasses import dataclass

from search_spaces import Space, cutmix
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of the CutMix study."""

    name: str = "cutmix"


def space(options: Options) -> Space:
    """What each trial proposes."""
    return cutmix.space


def main(args: list[str] | None = None) -> int:
    options = parse(Options, args)
    return run_study(options, "cutmix", space(options))


if __name__ == "__main__":
    run_main(main)
