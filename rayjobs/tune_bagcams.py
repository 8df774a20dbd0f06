r"""Tune BagCAMs, which needs no training: its layer and weighting are solved on validation for a finished model.

    python rayjobs/tune_cam.py && python rayjobs/tune_bagcams.py --study cam
    ray job submit --working-dir . -- python rayjobs/tune_bagcams.py \
        --study bas-cub --storage s3://bucket/runs

Without --readout-options every layer is tried with every weighting. Any readout is solved this way:
`--readout pyramid --readout-options scales "[1, 1.5, 2]" over bagcams`. The result is a study of its own
(`cam-bagcams`): `evaluate.py --study cam-bagcams cam` judges both.
"""

import dataclasses
import shlex

from wsol_pipeline.console.command_line import command_line, how_to_run
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import PartialError
from wsol_pipeline.verdict.options import SolveOptions as Options

EVERYTHING = {"stages": "all", "weightings": '["ours1", "ours2", "ours3"]'}  # Tables 5 and 8


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    if options.readout == "bagcams" and not options.readout_options:
        options = dataclasses.replace(options, readout_options=EVERYTHING)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.screens import print_settings
    from wsol_pipeline.verdict.solve import solve_readout

    solved = solve_readout(options, progress)
    for note in solved.notes:
        print(note)
    if solved.counts:
        print_settings(solved.counts, solved.objective)
    if solved.standing:
        print(solved.standing)
    studies, place = f"{options.result} {options.study}", shlex.quote(options.storage)
    print(f"Next: {how_to_run('evaluate')} --study {studies} --storage {place}")
    if solved.missing:
        raise PartialError(f"{solved.missing}: the same command writes it.")
    return 0


if __name__ == "__main__":
    run_main(main)
