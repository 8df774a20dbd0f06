"""Downloads as they come: a tar or zip is unpacked once; links, devices, names that lead out and bombs are refused."""

import contextlib
import errno
import hashlib
import logging
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath
from stat import S_ISLNK, S_ISREG
from tempfile import TemporaryDirectory
from typing import Self

from filelock import FileLock

from wsol_pipeline.data.importers import is_hidden
from wsol_pipeline.data.shards import cache_root
from wsol_pipeline.errors import DataError, ResourceError
from wsol_pipeline.private import distrust, own_folder

logger = logging.getLogger(__name__)

MAX_MEMBERS = 5_000_000  # ImageNet has 1.5 million
MAX_GROWTH = 20  # bytes unpacked for each byte of the archive: images hardly shrink, text to about a tenth
MAX_HEADER = 2**20  # bytes of a name or other extended header
ALLOWANCE = 64 * 2**20  # bytes that any archive may unpack to
MEMBER = 512  # bytes that a member counts for beside its own: a folder and an empty file are something too
# What the system says of names and offsets that cannot be, and bz2 of its data (None), but not a disk that is full.
_IMPOSSIBLE = (None, errno.EINVAL, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EILSEQ)
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OverflowError,  # of a time
    ValueError,  # of a number or a name
)

Member = tuple[
    str, int, bool, Callable[[Path], object]
]  # name, bytes, is it a file or a folder, what puts it in a place


def unpacked(source: Path, cache_dir: str | None = None) -> Path:
    """`source` itself if it is no file, else the folder in the cache that this archive is unpacked to, once.

    An archive of a single folder is that folder; what systems put beside it (__MACOSX) is none. Raises `DataError` for
    a file that is no tar or zip, is broken, or could do harm, `ResourceError` where the cache cannot take it.
    """
    if not source.is_file():
        return source
    folder = _place(source, cache_dir)
    try:
        own_folder(folder.parent)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):
                _unpack_anew(source, folder)
    except OSError as error:
        raise ResourceError(f"{source} cannot be unpacked to {folder}: {error}. XDG_CACHE_HOME moves it.") from error
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def _unpack_anew(source: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory(dir=folder.parent) as aside:
        found = Path(aside) / "all"
        _unpack(source, found, MAX_GROWTH * source.stat().st_size + ALLOWANCE)
        _seal(folder).write_text(_listing(found))
        found.rename(folder)


def _seal(folder: Path) -> Path:
    """The file that says what was unpacked to `folder`."""
    return Path(f"{folder}.seal")


def _is_whole(folder: Path) -> bool:
    """Whether `folder` is there, and holds what was unpacked to it: tidying tools take files out of caches."""
    if not os.path.lexists(folder):
        return False
    with contextlib.suppress(OSError):
        if not distrust(folder) and _seal(folder).read_text() == _listing(folder):
            return True
    logger.warning("%s is not what was unpacked there: it is unpacked again", folder)
    return False


def _listing(folder: Path) -> str:
    """SHA-256 over name, kind, bytes and time of all that lies below `folder`."""
    paths = sorted(folder.rglob("*"))
    stats = ((path.relative_to(folder), path.stat(follow_symlinks=False)) for path in paths)
    facts = (f"{name} {at.st_mode:o} {at.st_size * S_ISREG(at.st_mode)} {at.st_mtime_ns}" for name, at in stats)
    return hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()


def _place(source: Path, cache_dir: str | None) -> Path:
    """Where an archive is unpacked to; another one once it changes."""
    stat = source.stat()
    key = hashlib.sha256(f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    return cache_root(cache_dir) / "unpacked" / f"{source.name}-{key}"


def left_beside(source: Path, cache_dir: str | None = None) -> tuple[Path, ...]:
    """What systems have put beside the single folder of an archive; nothing for another source."""
    if not source.is_file() or unpacked(source, cache_dir) == _place(source, cache_dir):
        return ()
    return tuple(entry for entry in sorted(_place(source, cache_dir).iterdir()) if is_hidden(entry.name))


def _unpack(source: Path, into: Path, limit: int) -> None:
    """All members of an archive, checked one by one before they are written; `limit` in bytes."""
    into.mkdir(mode=0o700)
    total = 0
    try:
        for count, (name, size, plain, extract) in enumerate(_members(source), 1):
            total += size + MEMBER
            if not plain:
                raise DataError(f"{source} has a link or device, {name!r}: an archive may have files and folders.")
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                raise DataError(f"{source} has a member {name!r}, which may land outside of its folder.")
            if total > limit or count > MAX_MEMBERS:
                raise DataError(f"{source} unpacks to over {limit} bytes or {MAX_MEMBERS} files: unpack it yourself.")
            extract(into)
    except _BROKEN as error:
        raise DataError(f"{source} is a broken archive ({type(error).__name__}: {error}): get it again.") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile: a password, an unknown compression
        raise DataError(f"{source} cannot be unpacked here ({error}): unpack it yourself.") from error
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise
        raise DataError(f"{source} has a member that cannot be written ({error}): unpack it yourself.") from error


class _TarInfo(tarfile.TarInfo):
    """Refuses long extended headers: tarfile reads each into memory, whatever it says of its size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if not header.isfile() and header.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _members(source: Path) -> Iterator[Member]:
    try:
        with tarfile.open(source, tarinfo=_TarInfo):  # reads the first member
            return _tar_members(source)
    except tarfile.ReadError as error:
        if zipfile.is_zipfile(source):
            return _zip_members(source)
        raise DataError(f"{source} is neither a folder nor a sound tar or zip archive ({error}).") from error


def _tar_members(source: Path) -> Iterator[Member]:
    with tarfile.open(source, tarinfo=_TarInfo) as archive:
        while (member := archive.next()) is not None:
            plain = member.isfile() or member.isdir()
            yield member.name, member.size, plain, partial(_write_tar_member, archive, member)
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps them all: gigabytes for ImageNet


def _write_tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    """Its bytes, or its folder, and nothing else that the archive says of it; `TarFile.extract` has its filter for that
    since Python 3.11.4 alone."""
    target = into / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    data = archive.extractfile(member)
    assert data is not None, member.name  # it is a file
    with data, target.open("wb") as file:
        shutil.copyfileobj(data, file)


def _zip_members(source: Path) -> Iterator[Member]:
    """The sizes are what an archive says of itself; zipfile reads no more than that of a member."""
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            plain = not S_ISLNK(member.external_attr >> 16)
            yield member.filename, member.file_size, plain, partial(archive.extract, member)
