r"""Tune CAM, the baseline of every comparison: Optuna searches the learning rate, the threshold is solved
in each trial.

    python rayjobs/tune_cam.py
    ray job submit --working-dir . -- python rayjobs/tune_cam.py \
        --data s3://bucket/cub --storage s3://bucket/runs --name cam-cub \
        --preset bagcams/table2/cub/resnet50/cam --weights imagenet \
        --trials 30 --workers 4

Give it trials, epochs and --protocol of the method it is compared with: `evaluate.py --study bas-cub cam-cub`.
"""

from dataclasses import dataclass

from search_spaces import cam
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of the CAM study."""

    name: str = "cam"


def main(args: list[str] | None = None) -> int:
    return run_study(parse(Options, args), "cam", cam.space)


if __name__ == "__main__":
    run_main(main)
