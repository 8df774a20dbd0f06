"""`wsol localize` killed wherever it stands: each image once, the bytes of an undisturbed run, a part lost at most."""

import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from rayjobs import localize
from tests.use.conftest import paint
from wsol_pipeline.errors import PartialError
from wsol_pipeline.storage import Store
from wsol_pipeline.use import localizer

IMAGES, CHUNK = 26, 6


@pytest.fixture
def source(tmp_path) -> Path:
    for number in range(IMAGES - 2):
        paint(tmp_path / f"photos/{number:03d}.png", number)
    (tmp_path / "photos/empty.png").write_bytes(b"")
    (tmp_path / "photos/010.jpg").write_text("no image")
    return tmp_path / "photos"


def run(args: list[str], last: int, log: Path) -> None:
    """The job in a process of its own, killed right before its step number `last`; names of images are noted as read.

    A step is an image that is read, or a file that is written: between two of them nothing outside changes.
    """
    steps = itertools.count()

    def counted(function):
        def step(*args, **options):
            if next(steps) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return step

    def noted(item, options):
        with log.open("a") as file:
            file.write(f"{item['image_id']}\n")
        return read(item, options)

    read = localizer.read
    localizer.read = counted(noted)
    for name in ("write", "create", "remove"):
        setattr(Store, name, counted(getattr(Store, name)))
    try:
        localize.main(args)
    except PartialError as error:
        os._exit(error.exit_code)


def life(args: list[str], last: int, log: Path) -> tuple[int, int]:
    """How a life of the job ended, and how many images it has read."""
    log.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=run, args=(args, last, log))
    process.start()
    process.join(60)
    return process.exitcode, len(log.read_text().splitlines()) if log.exists() else 0


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "parts").glob("*"))}


def test_a_driver_that_is_killed_again_and_again_loses_a_part_at_most(final, source, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"

    def args(where):
        return ["--model", final.uri, "--source", str(source), "--out", str(where), "--batch-size", "1",
                "--chunk", str(CHUNK), "--decoders", "1"]  # fmt: skip

    assert life(args(tmp_path / "whole"), -1, log) == (5, IMAGES)  # two are broken
    rng, done, kills = np.random.default_rng(0), 0, 0
    for last in itertools.chain(rng.integers(0, 16, 12), [-1]):  # a part takes 8 steps
        code, read = life(args(out), int(last), log)
        sealed = min(CHUNK * len(list((out / "parts").glob("*.json"))), IMAGES)
        assert read - (sealed - done) <= CHUNK
        kills, done = kills + (code == -signal.SIGKILL), sealed
    assert code == 5
    assert kills >= 6
    assert parts(out) == parts(tmp_path / "whole")
    assert (out / "problems.csv").read_bytes() == (tmp_path / "whole/problems.csv").read_bytes()
