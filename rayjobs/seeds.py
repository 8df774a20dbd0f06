r"""Make seeds of a finished study: class maps of the images that it was trained on, cut where validation says.

    python rayjobs/seeds.py --study bas-voc
    python rayjobs/seeds.py --study bas-voc --fuse cam-voc --keep full
    ray job submit --working-dir . -- python rayjobs/seeds.py \
        --study bas-voc --storage s3://bucket/runs --workers 8

Each photograph is seen at several scales of its own and mirrored; classes are those that it is known to show. One
threshold is solved on validation's masks, of a thousand at once. The same command continues.
"""

from wsol_pipeline.console.command_line import command_line, how_to_run
from wsol_pipeline.console.main import run_main
from wsol_pipeline.segmentation.options import SeedOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.walk import place_work, print_station, print_work
    from wsol_pipeline.segmentation.exports import export
    from wsol_pipeline.segmentation.make_seeds import make_seeds, plan_seeds
    from wsol_pipeline.storage import Store

    if options.dry_run:
        print_work(plan_seeds(options, "cpu")[0].data, f"seeds at {len(options.scales)} scales")
        return 0
    found = make_seeds(options, place_work(options), progress)
    print_station(found)
    if options.export:
        print(f"{export(found, Store.at(options.export))} label images are in {options.export}.")
    print(f"Next: {how_to_run('refine')} --seeds {options.result} --storage {options.storage}")
    return 0


if __name__ == "__main__":
    run_main(main)
