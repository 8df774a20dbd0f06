"""A local Ray keeps to itself."""

import logging
import os
import stat
from pathlib import Path

import pytest
import ray

from wsol_pipeline.errors import ResourceError
from wsol_pipeline.training import cluster

SOCKET = "/session_2026-11-28_22-25-46_556454_4194304/sockets/plasma_store"  # the longest that Ray 2.60 makes


@pytest.mark.parametrize("base", ["short", "x" * 90])
def test_a_local_ray_lies_in_a_folder_of_its_own_that_nobody_else_enters(tmp_path, monkeypatch, base):
    started = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", base)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: started.update(options))
    monkeypatch.setattr(cluster.interrupts, "listen", lambda: None)
    monkeypatch.setattr(cluster, "_stay_private", lambda: None)  # its token would be that of every later Ray here
    before = os.umask(0)
    try:
        cluster.connect(nested=False)
    finally:
        os.umask(before)
    place = Path(started["_temp_dir"])
    folder = place.parent  # Ray opens the place itself to everybody
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.getuid()
    assert list(folder.iterdir()) == []
    assert len(f"{place}{SOCKET}") <= 107
    folder.rmdir()


def test_a_ray_that_does_not_start_is_one_line_that_says_where_to_look(tmp_path, monkeypatch):
    def slow(**_):
        raise Exception("The current node timed out during startup.\nThis could happen if it is busy.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(cluster, "_stay_private", lambda: None)
    with pytest.raises(
        ResourceError, match="Ray cannot be started on this machine: The current node timed out"
    ) as told:
        cluster.connect(nested=False)
    assert "\n" not in str(told.value)
    assert not logging.getLogger("ray._private.services").isEnabledFor(logging.ERROR)  # which has lines of its own
