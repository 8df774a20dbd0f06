"""Tune BagCAMs, which needs no training: its layer and weighting are solved on validation for a finished model.

    python rayjobs/tune_cam.py && python rayjobs/tune_bagcams.py --study cam
    ray job submit --working-dir . -- python rayjobs/tune_bagcams.py --study bas-cub --storage s3://bucket/runs

Any readout is solved this way: `--readout pyramid --readout-options scales "[1, 1.5, 2]" over bagcams`. The result is a
study of its own (`cam-bagcams`): `evaluate.py --study cam-bagcams cam` judges both.
"""

from wsol_pipeline.errors import run_main
from wsol_pipeline.training.options import command_line
from wsol_pipeline.training.solve import SolveOptions, solve_readout


def main(args: list[str] | None = None) -> int:
    return solve_readout(command_line(SolveOptions, args, __doc__))


if __name__ == "__main__":
    run_main(main)
