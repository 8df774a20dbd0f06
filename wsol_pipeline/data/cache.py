"""What is made of a split once on each node, for all its workers and trials: files in a folder, under a seal.

A folder is filled under a lock, aside, and renamed when it is whole: a build that is killed leaves nothing that a later
one would mistake for what it was to be. What a disk does to it later is found by checksums, once in each process and
after each change, and it is built again.
"""

import contextlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

from filelock import FileLock

from wsol_pipeline.errors import ResourceError
from wsol_pipeline.private import distrust, own_folder

logger = logging.getLogger(__name__)

SEAL = "seal.json"  # written last: the checksums of the other files, without which they are none
_SUMMED = 32 * 2**20  # bytes of one checksum


@contextlib.contextmanager
def built(place: Path, fill: Callable[[Path], None]) -> Iterator[None]:
    """Within, the folder `place` holds what `fill` wrote to the one it was given, now or earlier.

    What the disk refuses meanwhile is a `ResourceError`, as is a folder that is not this user's alone.
    """
    with _usable(place):
        own_folder(place.parent)
        if not _is_whole(place):
            with FileLock(f"{place}.lock"):
                if not _is_whole(place):
                    _build(fill, place)
        yield


def require_room(where: Path, needed: int) -> None:
    """Raise `ResourceError` if the disk of `where` has fewer than `needed` bytes left."""
    free = shutil.disk_usage(where).free
    if needed > free:
        raise ResourceError(
            f"The image cache needs {needed / 2**30:.1f} GiB but {where} has {free / 2**30:.1f} GiB free: "
            "choose another cache_dir, or mode 'streaming'."
        )


@contextlib.contextmanager
def _usable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"The image cache {place} cannot be used ({error}): mend that, choose another cache_dir, or mode "
            "'streaming'."
        ) from error


def _is_whole(place: Path) -> bool:
    """Whether the files at `place` are there, as they were built."""
    if not os.path.lexists(place):
        return False
    try:
        files = json.loads((place / SEAL).read_bytes())
        if not distrust(place) and files == _sums(place, _state(place, files)):
            return True
    except (OSError, ValueError, TypeError):
        pass
    logger.warning("the image cache %s is not what was built: it is built again", place)
    return False


def _state(place: Path, names: Iterable[str]) -> tuple[tuple[str, int, int, int, int], ...]:
    """What changes whenever one of the files does. Raises `FileNotFoundError`."""
    stats = ((name, (place / name).stat(follow_symlinks=False)) for name in sorted(names))
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats)


@lru_cache(maxsize=256)
def _sums(place: Path, state: tuple[tuple[str, int, int, int, int], ...]) -> dict[str, list[int]]:
    """The CRC-32 of each piece of each file, which are in this `state`: read again when that changes."""
    return {name: _checksums(place / name, size) for name, _, size, _, _ in state}


def _checksums(path: Path, size: int) -> list[int]:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(partial(_checksum, file), range(0, size, _SUMMED)))
    finally:
        os.close(file)


def _checksum(file: int, begin: int) -> int:
    return zlib.crc32(os.pread(file, _SUMMED, begin))


def _build(fill: Callable[[Path], None], place: Path) -> None:
    aside = Path(f"{place}.aside")
    for old in (aside, place):  # of a build that was killed, or damaged: we hold the lock
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir(mode=0o700)
    try:
        fill(aside)
        _seal(aside)
    except BaseException:  # a disk that is full is left as it was
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.rename(place)


def _seal(folder: Path) -> None:
    """Write down what the files are, once the disk has them: after a power cut a name may have zeros behind it."""
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
    (folder / SEAL).write_text(json.dumps(_sums(folder, _state(folder, names))))
