r"""Search BAS's λ, α, β and what refinement reads for the best pseudo masks on validation.

    python rayjobs/tune_masks.py --study bas-voc --by pamr --trials 20
    ray job submit --working-dir . -- python rayjobs/tune_masks.py \
        --study bas-voc --by irn crf --storage s3://bucket/runs --workers 8

Each trial trains BAS as the study's winner was, with other loss weights, and makes its seeds and masks; the
background's constant is solved in each. Trainings run one after the other on one device. The same command continues, a
larger --trials goes on.
"""

from wsol_pipeline.console.command_line import command_line, how_to_run
from wsol_pipeline.console.main import run_main
from wsol_pipeline.segmentation.options import TuneMasksOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.walk import place_work, print_record, print_search, print_tried, print_work
    from wsol_pipeline.errors import PartialError
    from wsol_pipeline.segmentation import lineage
    from wsol_pipeline.segmentation.tune import best, tune_masks
    from wsol_pipeline.verdict.rows import finished_study

    if options.dry_run:
        data = finished_study(options.store, options.study)["data"]
        print_work(data, f"{options.trials} trainings of bas, seeds and masks by {', '.join(options.by)}")
        return 0
    trials = tune_masks(options, place_work(options), progress, print_record, print_tried)
    print_search(trials)
    missing = lineage.publish_search(options.store, options.result, trials, options.experiment)
    print(f"Next: {how_to_run('segment')} --masks {best(trials).masks} --storage {options.storage}")
    if missing:
        raise PartialError(f"{missing}: the same command writes it.")
    return 0


if __name__ == "__main__":
    run_main(main)
