r"""Judge finished studies on the test split, once: the honest number, beside the field's habit and the centred box.

    python rayjobs/evaluate.py --study bas cam
    ray job submit --working-dir . -- python rayjobs/evaluate.py \
        --study bas-cub cam-cub --storage s3://bucket/runs

Readout and thresholds were chosen on validation and are only read here. A model that was judged before is not judged
again: its kept result is shown.
"""

import os

from wsol_pipeline.errors import run_main
from wsol_pipeline.training import cluster
from wsol_pipeline.training.options import command_line
from wsol_pipeline.verdict.judge import EvaluateOptions, judge


def main(args: list[str] | None = None) -> int:
    options = command_line(EvaluateOptions, args, __doc__)
    if "RAY_ADDRESS" in os.environ:
        cluster.connect(nested=False)
    return judge(options)


if __name__ == "__main__":
    run_main(main)
