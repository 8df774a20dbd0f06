r"""Train one method once, with the settings given: a study of a single trial, so it is tracked and continued alike.

    python rayjobs/train.py --method cam
    ray job submit --working-dir . -- python rayjobs/train.py --method bas \
        --preset bas-ext/table1/cub/resnet50 --weights imagenet \
        --data s3://bucket/cub --storage s3://bucket/runs \
        --name bas-cub-published --workers 4

The finished model, its backbone (`--weights` of another run) and its validation counts lie in the trial's final folder.
"""

from dataclasses import dataclass

from search_spaces import Space
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of a single run."""

    name: str = "train"
    method: str = "bas"
    """Method: a file of wsol_models (bas, cam)."""
    trials: int = 1
    pruner: str = "none"


def space(options: Options) -> Space:
    """What each trial proposes."""
    return lambda trial: {}


def main(args: list[str] | None = None) -> int:
    options = parse(Options, args)
    return run_study(options, options.method, space(options))


if __name__ == "__main__":
    run_main(main)
