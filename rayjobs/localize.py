r"""Localize objects in any images by a finished model: Parquet, and the forms that other tools load.

    python rayjobs/localize.py --study bas --source photographs/ --out found --format coco html
    python rayjobs/localize.py --model models:/bas@champion --source 's3://bucket/new/' \
        --out s3://bucket/found --workers 4
    # other forms of what is there, later, without a model or an image
    python rayjobs/localize.py --out found --format voc yolo csv masks
    ray job submit --working-dir . -- python rayjobs/localize.py --workers 8 ...

Every image of the source is numbered first; parts of a thousand are sealed one by one, so that the same command again
continues after any end, and each image is there once. Broken images become lines of problems.csv (exit code 5), and the
job goes on. Boxes are half-open, in pixels of the image as viewers show it.
"""

import os
import time

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import PartialError, UsageError
from wsol_pipeline.use.options import LocalizeOptions as Options


def main(args: list[str] | None = None) -> int:
    options, started = command_line(Options, args, __doc__), time.monotonic()
    if not (options.source or options.format or options.verify):
        raise UsageError("Give --source (and --model or --study) to localize, --format to write forms, or --verify.")
    from wsol_pipeline.console.using import pace, print_localized
    from wsol_pipeline.training import cluster
    from wsol_pipeline.use.formats import write
    from wsol_pipeline.use.run import PROBLEMS, localize, verify

    if options.source and not options.verify:
        if "RAY_ADDRESS" in os.environ:
            cluster.connect(nested=False)
        outcome = localize(options, pace)
    else:
        outcome = verify(options.store)
    seconds = time.monotonic() - started
    print_localized(outcome, seconds, write(options.store, options))
    if outcome.problems:
        raise PartialError(f"{len(outcome.problems)} images are broken: {outcome.store.path(PROBLEMS)} says why.")
    return 0


if __name__ == "__main__":
    run_main(main)
