r"""Tune mLDFR: Optuna searches its recalibrations, kernel sizes, learning rate and batch; scales and threshold are
solved inside each trial.

    python rayjobs/tune_mldfr.py
    ray job submit --working-dir . -- python rayjobs/tune_mldfr.py \
        --data s3://bucket/cub --storage s3://bucket/runs --name mldfr-cub \
        --preset mldfr/table13/cub/resnet50 --weights imagenet --trials 30 \
        --workers 4

The same command again continues: finished trials stay, those that a dead driver left go on from their checkpoints.
"""

import functools
from dataclasses import dataclass

from search_spaces import Space, mldfr
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.training.config import require


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of the mLDFR study."""

    name: str = "mldfr"
    batch_sizes: tuple[int, int] = mldfr.BATCH_SIZE
    """Smallest and largest batch searched; the network has to fit its devices with the largest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.batch_sizes
        require(2 <= low <= high, "batch_sizes must be two rising numbers from 2 on", self.batch_sizes)


def space(options: Options) -> Space:
    """What each trial proposes."""
    return functools.partial(mldfr.space, batch_sizes=options.batch_sizes)


def main(args: list[str] | None = None) -> int:
    options = parse(Options, args)
    return run_study(options, "mldfr", space(options))


if __name__ == "__main__":
    run_main(main)
