r"""Say which validation images to draw boxes on, and lay them out for that: 30 to 50 are enough to choose a model.

    python rayjobs/annotate.py --data my-images --images 50 --out todo
    # with a first model's boxes to correct
    python rayjobs/annotate.py --study first --images 50 --out todo --prefill
    # those that the model's readings dispute: they choose, and measure nothing
    python rayjobs/annotate.py --study first --images 50 --out hard --by disagreement

Fill todo/boxes.csv by hand, or load todo/images and todo/coco.json into a tool (CVAT takes both); todo/README.md says
how. Then `--select-by annotated:todo/boxes.csv`. A larger --images later keeps these and adds others.
"""

from wsol_pipeline.console.command_line import command_line, how_to_run
from wsol_pipeline.console.main import run_main
from wsol_pipeline.verdict.options import AnnotateOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.verdict.annotate import annotate

    images = annotate(options)
    print(f"{images} images to annotate are in {options.out}: {options.out}/README.md says how.")
    print(f"Next: {how_to_run('tune_bas')} ... --select-by annotated:{options.out}/boxes.csv")
    return 0


if __name__ == "__main__":
    run_main(main)
