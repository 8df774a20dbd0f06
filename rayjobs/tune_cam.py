r"""Tune CAM, the baseline of every comparison: Optuna searches the learning rate, the threshold is solved
in each trial.

    python rayjobs/tune_cam.py
    ray job submit --working-dir . -- python rayjobs/tune_cam.py \
        --data s3://bucket/cub --storage s3://bucket/runs --name cam-cub \
        --preset bagcams/table2/cub/resnet50/cam --weights imagenet \
        --trials 30 --workers 4

Give it trials, epochs and --protocol of the method it is compared with: `evaluate.py --study bas-cub cam-cub`.
"""

import functools
from dataclasses import dataclass

from search_spaces import Space, cam
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.training.config import require


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of the CAM study."""

    name: str = "cam"
    rates: tuple[float, float] = cam.RATES
    """The lowest and the highest learning rate, between which the search is even in the logarithm; the benchmark's
    range unless told otherwise. Where that is too wide for the trials there are, a closer one wastes fewer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.rates[0] < self.rates[1], "rates must be two positive numbers, the lower first,", self.rates)


def space(options: Options) -> Space:
    """What each trial proposes."""
    return functools.partial(cam.space, rates=options.rates)


def main(args: list[str] | None = None) -> int:
    options = parse(Options, args)
    return run_study(options, "cam", space(options))


if __name__ == "__main__":
    run_main(main)
