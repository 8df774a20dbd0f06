r"""Let a machine make one box for each validation image, from its label: a file that chooses in the place of boxes.

    python rayjobs/propose.py --study first --proposals-python ss/bin/python --out boxes.csv
    python rayjobs/propose.py --study first --by detector --weights fasterrcnn_resnet50_fpn_v2.pth --out rpn.csv
    python rayjobs/tune_bas.py --data my-images --select-by proposals:boxes.csv

A finished study's classifier points at the object, and says in which box it sees it best. Selective Search needs
opencv-contrib-python-headless, which must not share an environment with wsol: --proposals-python names its Python.
"""

from wsol_pipeline.console.command_line import command_line, how_to_run
from wsol_pipeline.console.main import run_main
from wsol_pipeline.use.options import ProposeOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.console.progress import progress
    from wsol_pipeline.use.propose import propose

    found = propose(options, progress)
    for note in filter(None, found.notes):
        print(note)
    print(f"{found.place}: {found.images} images in {found.seconds:.0f} s, {found.seconds / found.images:.2f} s each")
    print(f"Next: {how_to_run('tune_bas')} ... --select-by {options.by}:{found.place}")
    return 0


if __name__ == "__main__":
    run_main(main)
