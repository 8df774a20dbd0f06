"""The driver of `rayjobs/tune_bas.py`, which kills itself at the n-th passing of a point of the study.

    python killed_driver.py POINT N [options of tune_bas.py]

Points are those of `wsol_pipeline.study.tuner` and `execute`, and "mid-epoch": once a checkpoint inside an epoch is
there, everything dies at once, as when the machine loses power. The last line printed is the ids of the driver's
descendants, as JSON.
"""

import json
import os
import signal
import sys
import threading
import time

import psutil

from search_spaces import bas
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.study.options import StudyOptions


def die(everything: bool = False) -> None:
    """SIGKILL this process; before it all that it has started, if `everything`."""
    children = psutil.Process().children(recursive=True)
    print(json.dumps([child.pid for child in children]), flush=True)
    for child in children if everything else []:
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)


class Fuse:
    """Counts the passings of a point, and blows at the last one."""

    def __init__(self, point: str, passings: int) -> None:
        self.point, self.left = point, passings

    def __call__(self, name: str) -> None:
        self.left -= name == self.point
        if not self.left:
            die()


def die_mid_epoch(options: StudyOptions) -> None:
    """Wait for a sealed checkpoint at another position than the start of an epoch."""
    trials = options.store / options.name / "trials"
    while not any(name.endswith("seal.json") and "-s" in name and "-s00000000" not in name for name in trials.list()):
        time.sleep(0.01)
    die(everything=True)


def main() -> int:
    options = parse(StudyOptions, sys.argv[3:])
    if sys.argv[1] == "mid-epoch":
        threading.Thread(target=die_mid_epoch, args=(options,), daemon=True).start()
    return run_study(options, "bas", bas.space, point=Fuse(sys.argv[1], int(sys.argv[2])))


if __name__ == "__main__":
    run_main(main)
