r"""Judge finished studies on the test split, once: the honest number, beside the field's habit and the centred box.

    python rayjobs/evaluate.py --study bas cam
    ray job submit --working-dir . -- python rayjobs/evaluate.py \
        --study bas-cub cam-cub --storage s3://bucket/runs
    # CorLoc of training images, by boxes that import --audit has kept
    python rayjobs/evaluate.py --study bas --training-images
    # class masks of a network that segment.py has trained
    python rayjobs/evaluate.py --segmentation bas-voc-irn-deeplabv3

Readout and thresholds were chosen on validation and are only read here. A model that was judged before is not judged
again: its kept result is shown.
"""

import os

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import PartialError
from wsol_pipeline.verdict.options import EvaluateOptions as Options


def judge_networks(options: Options) -> None:
    """A network's one look at test, or seeds and masks on training images whose masks were kept apart."""
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.walk import print_judgement, print_published
    from wsol_pipeline.segmentation.audit import has_truth, judge
    from wsol_pipeline.segmentation.pictures import draw_stations
    from wsol_pipeline.segmentation.station import finished
    from wsol_pipeline.verdict.placing import somewhere

    for name in options.segmentation:
        print_judgement(judge(options, name, progress))
        print_published(finished(options.store, name).identity["options"].get("preset", ""))
    if has_truth(options.store, options.segmentation):
        place = somewhere(draw_stations, options, progress=progress)
        print(f"the same training images through all of them: {place}")


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.screens import print_costs, print_training_images, print_verdict
    from wsol_pipeline.training import cluster
    from wsol_pipeline.verdict.costs import costs_of_winner
    from wsol_pipeline.verdict.judge import judge, publish
    from wsol_pipeline.verdict.placing import somewhere
    from wsol_pipeline.verdict.training_images import judge_training_images

    if "RAY_ADDRESS" in os.environ:
        cluster.connect(nested=False)
    if options.segmentation:
        judge_networks(options)
        return 0
    if options.training_images:
        print_training_images(somewhere(judge_training_images, options, progress=progress))
        return 0
    verdict = judge(options, progress)
    crowned, missing = publish(verdict)  # before the first word: a closed pipe ends there
    print_verdict(verdict)
    if options.selectors:
        print_costs(somewhere(costs_of_winner, options, progress=progress))
    print(crowned, flush=True)
    if missing:
        raise PartialError(f"{missing}: the same command writes it, and judges nothing again.")
    return 0


if __name__ == "__main__":
    run_main(main)
