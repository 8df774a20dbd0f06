r"""Train a detector on the boxes that a finished model made of training images, and judge it beside that model.

    python rayjobs/localize.py --study bas --source data/photos:train --labels folder --out taught
    python rayjobs/detector.py --from taught --study bas --weights resnet50.pth --out student

One table on the same test images: the teacher, the student, and a student of boxes in the middle, with the paired
interval of the difference. Steps are fixed before; a student is judged once, and takes no name in the registry.
"""

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.use.options import DetectorOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.console.using import print_students
    from wsol_pipeline.use.judged_student import learn_and_judge

    rows, boxes = learn_and_judge(options, progress)
    print_students(rows, boxes)
    print(f"{options.out}: the detector and its figures")
    return 0


if __name__ == "__main__":
    run_main(main)
