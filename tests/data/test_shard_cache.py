"""Copies of shards on a node: within their limit, and never taken from a process that uses them."""

import os

import pytest

from wsol_pipeline.data import shard_cache
from wsol_pipeline.data.shard_cache import NodeCopy, Piece, node_copy

HELLO = Piece(2, 7, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")  # of b"hello"


def leave(copy: NodeCopy) -> None:
    """What the end of a process does."""
    os.close(copy.file)
    node_copy.cache_clear()


def names(root) -> set[str]:
    return {data.parent.name for data in root.glob("shards/*/data")}


def test_a_piece_is_kept_and_compared(tmp_path):
    copy = node_copy(tmp_path, "a", 100, 100)
    assert copy.fill(memoryview(bytearray(10)), 50, [HELLO]) == [HELLO]
    copy.keep(memoryview(bytearray(b"__hello___")), 50, [HELLO])
    memory = memoryview(bytearray(10))
    assert copy.fill(memory, 50, [HELLO]) == []
    assert bytes(memory) == b"\0\0hello\0\0\0"
    assert copy.fill(memory, 51, [HELLO]) == [HELLO]


def test_the_longest_unused_copy_makes_room(tmp_path):
    for number, key in enumerate("abc"):
        copy = node_copy(tmp_path, key, 30, 100)
        leave(copy)
        os.utime(tmp_path / "shards" / key / "data", (number, number))
    leave(node_copy(tmp_path, "a", 30, 100))  # used again: now b is the oldest
    assert node_copy(tmp_path, "d", 40, 100)
    assert names(tmp_path) == {"a", "c", "d"}


def test_a_copy_in_use_stays_and_the_new_one_is_not_made(tmp_path):
    used = node_copy(tmp_path, "used", 60, 100)
    assert node_copy(tmp_path, "new", 50, 100) is None
    assert names(tmp_path) == {"used"}
    leave(used)
    assert node_copy(tmp_path, "new", 50, 100)
    assert names(tmp_path) == {"new"}


def test_what_is_over_the_limit_or_the_disk_is_not_copied(tmp_path, monkeypatch):
    assert node_copy(tmp_path, "large", 101, 100) is None
    usage = shard_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda _: usage._replace(free=49))
    assert node_copy(tmp_path, "a", 50, 100) is None
    assert names(tmp_path) == set()


def test_no_link_is_followed_out_of_the_cache(tmp_path):
    victim = tmp_path / "thesis.txt"
    victim.write_text("precious")
    node_copy(tmp_path / "cache", "other", 1, 1000)
    (tmp_path / "cache/shards/a").mkdir(mode=0o700)
    (tmp_path / "cache/shards/a/data").symlink_to(victim)
    (tmp_path / "cache/shards/b").symlink_to(tmp_path)
    for key in "ab":
        with pytest.raises(OSError, match="link"):
            node_copy(tmp_path / "cache", key, 3, 1000)
    assert victim.read_text() == "precious"


def test_copies_in_a_folder_of_others_are_not_used(tmp_path):
    leave(node_copy(tmp_path, "a", 30, 100))
    (tmp_path / "shards/a").chmod(0o777)
    with pytest.raises(PermissionError, match="a may be written to by others"):
        node_copy(tmp_path, "a", 30, 100)


def test_a_full_disk_is_no_error_while_reading(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    copy = node_copy(tmp_path, "a", 100, 100)
    monkeypatch.setattr(shard_cache.os, "pwrite", full)
    copy.keep(memoryview(b"__hello___"), 0, [HELLO])
    assert copy.fill(memoryview(bytearray(10)), 0, [HELLO]) == [HELLO]


@pytest.fixture(autouse=True)
def _no_copies_of_others():
    node_copy.cache_clear()
