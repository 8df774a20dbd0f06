r"""Train a segmentation network on pseudo masks, or take the whole walk from a finished study to such a network.

    python rayjobs/segment.py --masks bas-voc-irn --network deeplabv3_resnet50 --weights imagenet
    python rayjobs/segment.py --study bas-voc --by pamr --network lraspp_mobilenet_v3_large
    ray job submit --working-dir . -- python rayjobs/segment.py \
        --masks bas-voc-irn --storage s3://bucket/runs --workers 4

With --study, seeds and pseudo masks that are missing are made first, as `seeds.py` and `refine.py` make them. The same
command continues; `evaluate.py --segmentation` then opens the test split, once.
"""

from wsol_pipeline.console.command_line import command_line, how_to_run
from wsol_pipeline.console.main import run_main
from wsol_pipeline.segmentation.options import WalkOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.walk import place_work, print_record, print_station, print_work
    from wsol_pipeline.errors import PartialError
    from wsol_pipeline.segmentation import lineage
    from wsol_pipeline.segmentation.make_seeds import make_seeds, plan_seeds
    from wsol_pipeline.segmentation.refine import KIND, refine
    from wsol_pipeline.segmentation.segment import task_of, train_network
    from wsol_pipeline.segmentation.station import finished

    if options.dry_run:
        data = plan_seeds(options.seeds, "cpu")[0].data if options.study else ""
        data = data or task_of(options.training, finished(options.store, options.masks, KIND)).data
        print_work(data, f"{options.network}, {options.epochs} epochs")
        return 0
    device = place_work(options)
    if options.study:
        print_station(make_seeds(options.seeds, device, progress))
        print_station(refine(options.refinement, device, progress, print_record))
    found = train_network(options.training, device, print_record)
    print_station(found)
    missing = lineage.publish(options.store, found, options.experiment)
    place = f"--segmentation {options.training.result} --storage {options.storage}"
    print(f"Next: {how_to_run('evaluate')} {place}")
    if missing:
        raise PartialError(f"{missing}: the same command writes it.")
    return 0


if __name__ == "__main__":
    run_main(main)
