"""This node's copy of remote shards: what was read once is on disk, for all workers and later trainings.

A split is one sparse file below the cache folder, filled piece by piece as rows are asked for. Nothing says which
pieces are in it: a reader compares what it finds with the piece's SHA-256, so a hole, a killed write, or a byte that
the disk changed is fetched again. The file's length is its claim on the limit; a lock on it says that a process uses
it.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from wsol_pipeline.private import own_folder

_DATA = "shards"


class Piece(NamedTuple):
    """Bytes [begin, end) of a shard and what they must be."""

    begin: int
    end: int
    sha256: str

    def is_in(self, memory: memoryview) -> bool:
        """Whether the shard in `memory` holds this piece."""
        return hashlib.sha256(memory[self.begin : self.end]).hexdigest() == self.sha256


@dataclass(frozen=True)
class NodeCopy:
    """A split's shards on this node, one after the other in one file. Made by `node_copy`."""

    folder: Path
    file: int  # descriptor; its shared lock lasts as long as the process

    def lock(self, shard: str) -> FileLock:
        """For the one worker of this node that fetches pieces of `shard`."""
        return FileLock(self.folder / f"{shard.replace('/', '-')}.lock")

    def fill(self, memory: memoryview, start: int, pieces: list[Piece]) -> list[Piece]:
        """Read pieces of the shard that begins at `start` of the file; returns those that are not in it, or wrong."""
        for piece in pieces:
            os.preadv(self.file, [memory[piece.begin : piece.end]], start + piece.begin)
        return [piece for piece in pieces if not piece.is_in(memory)]

    def keep(self, memory: memoryview, start: int, pieces: list[Piece]) -> None:
        """Write pieces of a shard. A full disk is no error: the bytes are at hand, they are fetched again later."""
        with contextlib.suppress(OSError):
            for piece in pieces:
                os.pwrite(self.file, memory[piece.begin : piece.end], start + piece.begin)


@cache
def node_copy(root: Path, key: str, size: int, limit: int) -> NodeCopy | None:
    """The copy named `key` of `size` bytes below `root`, or None if that is over `limit`, the bytes of all copies.

    Copies that no process uses make room, the longest unused first. Later copies of a process are the same object.
    """
    if size > limit:
        return None
    copies = own_folder(root / _DATA)
    with FileLock(copies / "room.lock"):
        data = copies / key / "data"
        if not data.exists() and not _make_room(copies, size, limit):
            return None
        own_folder(data.parent)
        file = os.open(data, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        os.truncate(file, size)
        os.utime(file)
    return NodeCopy(data.parent, file)


def _make_room(copies: Path, size: int, limit: int) -> bool:
    """Remove unused copies until `size` bytes more are within `limit` and on the disk; whether they are."""
    oldest_first = sorted(copies.glob("*/data"), key=lambda data: data.stat().st_mtime)
    taken = sum(data.stat().st_size for data in oldest_first)
    for data in oldest_first:
        if _fits(copies, taken + size, size, limit):
            break
        with data.open("rb+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            taken -= data.stat().st_size
            shutil.rmtree(data.parent)
    return _fits(copies, taken + size, size, limit)


def _fits(copies: Path, total: int, size: int, limit: int) -> bool:
    return total <= limit and size <= shutil.disk_usage(copies).free
