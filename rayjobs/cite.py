r"""Print the BibTeX of methods, readouts and the walk's stations: their papers, the benchmark whose evaluation this is,
this software.

python rayjobs/cite.py bas
python rayjobs/cite.py cam bagcams
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import unknown

# What a method, readout or station is cited by: keys in references.bib. `own` is the map of whichever method it reads.
PAPERS = {
    "acol": ("zhang2018acol",),
    "adl": ("choe2019adl",),
    "bagcams": ("zhu2022bagcams",),
    "bas": ("wu2022bas", "zhai2024bas"),
    "bcam": ("zhu2023bcam",),
    "cam": ("zhou2016cam",),
    "crf": ("kraehenbuehl2011crf",),
    "cutmix": ("yun2019cutmix",),
    "dawsol": ("zhu2022dawsol",),
    "deeplabv2": ("chen2018deeplab",),
    "gradcam": ("selvaraju2017gradcam",),
    "gradcampp": ("chattopadhay2018gradcampp",),
    "has": ("singh2017has",),
    "irn": ("ahn2019irn",),
    "mldfr": ("wang2021mldfr",),
    "pamr": ("araslanov2020pamr",),
    "pcs": ("zhu2022bagcams",),
    "pyramid": ("wang2021mldfr",),
    "spg": ("zhang2018spg",),
    "suppression": ("wu2022bas",),
    "topk": ("wu2022bas", "zhai2024bas"),
}
IN_ANY_CASE = ("choe2020evaluating", "wsol")
FILE = Path(__file__).parents[1] / "wsol_models/references.bib"


@dataclass(frozen=True)
class Options:
    """What to cite."""

    method: tyro.conf.Positional[tuple[str, ...]] = ()
    """Methods, readouts or stations: bas, cam, bagcams, irn, ... By default all."""

    def __post_init__(self) -> None:
        for name in self.method:
            if name not in PAPERS:
                raise unknown("method to cite", name, PAPERS)


def entries() -> dict[str, str]:
    """The entries of references.bib by their keys."""
    parts = FILE.read_text().strip().split("\n\n")
    return {part.partition("{")[2].partition(",")[0]: part for part in parts}


def main(args: list[str] | None = None) -> int:
    options, known = command_line(Options, args, __doc__), entries()
    keys = [key for name in options.method or PAPERS for key in PAPERS[name]]
    print("\n\n".join(known[key] for key in dict.fromkeys([*keys, *IN_ANY_CASE])))
    return 0


if __name__ == "__main__":
    run_main(main)
