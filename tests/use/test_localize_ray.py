"""`wsol localize` with workers: Ray actors, of whom some die."""

import os
import signal

import psutil
import pytest

from rayjobs import localize
from wsol_pipeline.errors import ResourceError
from wsol_pipeline.use import run


def start(final, source, out, *more):
    args = ["--model", str(final), "--source", str(source), "--out", str(out), "--batch-size", "1", "--chunk", "4"]
    return localize.main([*args, *more])


def contents(out):
    return {path.name: path.read_bytes() for path in (out / "parts").glob("*.json")}


def test_actors_make_the_parts_that_others_make_and_a_dead_one_loses_nothing(
    final, photographs, tmp_path, local_ray, monkeypatch
):
    start(final, photographs, tmp_path / "one")
    killed = []

    def kill_one(*args):
        if not killed:
            workers = psutil.Process().children(recursive=True)
            actors = [child for child in workers if "Localizer" in " ".join(child.cmdline())]
            killed.extend(actors[:1])
            os.kill(actors[0].pid, signal.SIGKILL)
        return sealing(*args)

    sealing = run._seal
    monkeypatch.setattr(run, "_seal", kill_one)
    start(final, photographs, tmp_path / "two", "--workers", "2")
    assert killed
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    with pytest.raises(ResourceError, match="--workers 9 need a CPU each but the cluster has 2"):
        start(final, photographs, tmp_path / "many", "--workers", "9")
