r"""Tune BagCAMs, which needs no training: its layer and weighting are solved on validation for a finished model.

    python rayjobs/tune_cam.py && python rayjobs/tune_bagcams.py --study cam
    ray job submit --working-dir . -- python rayjobs/tune_bagcams.py \
        --study bas-cub --storage s3://bucket/runs

Without --readout-options every layer is tried with every weighting. Any readout is solved this way:
`--readout pyramid --readout-options scales "[1, 1.5, 2]" over bagcams`. The result is a study of its own
(`cam-bagcams`): `evaluate.py --study cam-bagcams cam` judges both.
"""

import dataclasses

from wsol_pipeline.errors import run_main
from wsol_pipeline.training.options import command_line
from wsol_pipeline.verdict.solve import SolveOptions, solve_readout

EVERYTHING = {"stages": "all", "weightings": '["ours1", "ours2", "ours3"]'}  # Tables 5 and 8


def main(args: list[str] | None = None) -> int:
    options = command_line(SolveOptions, args, __doc__)
    if options.readout == "bagcams" and not options.readout_options:
        options = dataclasses.replace(options, readout_options=EVERYTHING)
    return solve_readout(options)


if __name__ == "__main__":
    run_main(main)
