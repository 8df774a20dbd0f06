r"""Refine seeds to pseudo masks: by IRN's boundaries and random walk, by PAMR, by a dense random field.

    python rayjobs/refine.py --seeds bas-voc-seeds --by irn --backbone resnet50 --weights imagenet
    python rayjobs/refine.py --seeds bas-voc-seeds --by pamr
    ray job submit --working-dir . -- python rayjobs/refine.py \
        --seeds bas-voc-seeds --storage s3://bucket/runs --workers 8

IRN is trained on the seeds' confident labels. The background's threshold is solved anew on validation's masks. The same
command continues.
"""

from wsol_pipeline.console.command_line import command_line, how_to_run
from wsol_pipeline.console.main import run_main
from wsol_pipeline.segmentation.options import RefineOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.walk import place_work, print_record, print_station, print_work
    from wsol_pipeline.segmentation.exports import export
    from wsol_pipeline.segmentation.make_seeds import KIND
    from wsol_pipeline.segmentation.refine import refine
    from wsol_pipeline.segmentation.station import finished
    from wsol_pipeline.storage import Store

    if options.dry_run:
        seeds = finished(options.store, options.seeds, KIND)
        print_work(seeds.uri("data"), f"masks by {', '.join(options.steps) or 'the seeds themselves'}")
        return 0
    found = refine(options, place_work(options), progress, print_record)
    print_station(found)
    if options.export:
        print(f"{export(found, Store.at(options.export))} label images are in {options.export}.")
    print(f"Next: {how_to_run('segment')} --masks {options.result} --storage {options.storage}")
    return 0


if __name__ == "__main__":
    run_main(main)
