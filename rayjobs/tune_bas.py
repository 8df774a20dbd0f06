r"""Tune BAS: Optuna searches the loss weights λ, α and β; top-k and threshold are solved inside each trial.

    # embedded data, local Ray, SQLite: about a minute
    python rayjobs/tune_bas.py
    ray job submit --working-dir . -- python rayjobs/tune_bas.py \
        --data s3://bucket/cub --storage s3://bucket/runs --name bas-cub \
        --preset bas-ext/table1/cub/resnet50 --weights imagenet --trials 30 \
        --workers 4

The same command again continues: finished trials stay, those that a dead driver left go on from their checkpoints.
"""

import functools
from dataclasses import dataclass
from typing import Literal

from search_spaces import Space, bas
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions


@dataclass(frozen=True)
class Options(StudyOptions):
    """Options of the BAS study."""

    name: str = "bas"
    beta: Literal["free", "alpha+lambda"] = "free"
    """β (weight of the area term): searched, or tied to α + λ (the extension's rule)."""


def space(options: Options) -> Space:
    """What each trial proposes."""
    return functools.partial(bas.space, beta=options.beta)


def main(args: list[str] | None = None) -> int:
    options = parse(Options, args)
    return run_study(options, "bas", space(options))


if __name__ == "__main__":
    run_main(main)
