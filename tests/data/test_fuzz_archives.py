"""Archives made to do harm: each is refused for a reason, or comes out whole below its own folder, and nothing else."""

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from shutil import rmtree

import pytest

from wsol_pipeline.data import archives
from wsol_pipeline.data.archives import unpacked
from wsol_pipeline.errors import DataError

LINKS = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE}
DEVICES = {"character": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE, "unknown": b"9"}
NAMES = {
    "absolute": "/tmp/wsol-evil",
    "up": "../evil",
    "up-later": "a/b/../../../evil",
    "up-alone": "..",
    "windows": "..\\..\\evil",
    "drive": "C:\\evil",
    "long": "n" * 300,
    "deep": "d/" * 3000 + "x",
}


def tar(*members, mode="w", format=tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, data, fields of its header)."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=format) as archive:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zipped(*members) -> bytes:
    """A zip of (name, data, mode)."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def declared(header: bytes, size: int) -> bytes:
    """A tar whose first member says that it has `size` bytes, with the right sum of its header."""
    header = header[:124] + b"%011o\0" % size + header[136:]
    plain = header[:148] + b" " * 8 + header[156:512]
    return header[:148] + b"%06o\0 " % sum(plain) + header[156:]


def hostile() -> dict[str, bytes]:
    """Archives by name."""
    good, plain = ("good.txt", b"1", {}), ("good.txt", b"1", 0o644 | stat.S_IFREG)
    found = {f"tar-{key}": tar(good, (name, b"2", {})) for key, name in NAMES.items()}
    found |= {f"zip-{key}": zipped(plain, (name, b"2", 0o644 | stat.S_IFREG)) for key, name in NAMES.items()}
    for key, kind in (LINKS | DEVICES).items():
        found[f"tar-{key}"] = tar(good, ("way", b"", {"type": kind, "linkname": "../../evil"}))
    found["tar-link-then-file"] = tar(("way", b"", {"type": tarfile.SYMTYPE, "linkname": ".."}), ("way/evil", b"2", {}))
    found["zip-link"] = zipped(plain, ("way", b"../evil", 0o777 | stat.S_IFLNK))
    found["zip-device"] = zipped(plain, ("way", b"", 0o666 | stat.S_IFCHR))
    found["tar-pax-path"] = tar(("good", b"2", {"pax_headers": {"path": "../evil"}}))
    found["tar-pax-size"] = tar(("good", b"2", {"pax_headers": {"size": "9" * 15}}))
    found["tar-pax-number"] = tar(("good", b"2", {"pax_headers": {"size": "many"}}))
    found["tar-pax-time"] = tar(("good", b"2", {"pax_headers": {"mtime": "1e999"}}))
    found["tar-sparse"] = tar(
        ("good", b"1\n0\n0\n", {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}})
    )
    found["tar-declared-huge"] = declared(tar(good), 8**11 - 1)
    found["tar-setuid"] = tar(("root", b"#!/bin/sh", {"mode": 0o6777}))
    found["tar-bomb"] = gzip.compress(tar(("zeros", bytes(2**22), {})), 1)
    found["zip-bomb"] = zipped(("zeros", bytes(2**22), 0o644))
    found["tar-many"] = gzip.compress(tar(*((f"{n}", b"", {}) for n in range(4000)), format=tarfile.USTAR_FORMAT), 1)
    found["tar-file-as-folder"] = tar(("a", b"1", {}), ("a/b", b"2", {}))
    found["zip-file-as-folder"] = zipped(("a", b"1", 0o644), ("a/b", b"2", 0o644))
    found["tar-folder-as-file"] = tar(("a/b", b"1", {}), ("a", b"2", {}))
    found["tar-twice"] = tar(("a", b"1", {"mode": 0o444}), ("a", b"2", {}))
    found["tar-not-utf8"] = tar(("\udcff\udcfe.txt", b"1", {}), format=tarfile.GNU_FORMAT)
    found["tar-newline"] = tar(("a\nb", b"1", {}))
    found["zip-encrypted"] = zipped(plain).replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0")
    found["zip-offset"] = zipped(plain)[:-6] + struct.pack("<I", 2**31) + b"\0\0"
    found["zip-name-not-utf8"] = zipped(("é", b"1", 0o644)).replace("é".encode(), b"\xff\xfe")
    return found


HOSTILE = hostile()
HARMLESS = {  # what is odd in them is dropped, or is no harm below one folder
    "tar-sparse",
    "tar-pax-number",
    "tar-pax-time",
    "tar-setuid",
    "tar-twice",
    "tar-not-utf8",
    "tar-newline",
    "zip-device",
}


def below(folder: Path) -> dict[str, tuple[int, int]]:
    """Every entry below a folder with its mode and size."""
    entries = ((path, path.lstat()) for path in folder.rglob("*"))
    return {str(path): (found.st_mode, found.st_size) for path, found in entries}


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """`outcome(data)`: the folder that an archive was unpacked to, or the reason why it was not.

    Fails if anything but that folder has changed, or if it has more than files and folders.
    """
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(archives, "ALLOWANCE", 2**16)
    source = tmp_path / "in" / "x.tar"
    source.parent.mkdir()

    def make(data: bytes) -> Path | str:
        rmtree(cache, ignore_errors=True)
        source.write_bytes(data)
        try:
            folder = unpacked(source)
        except DataError as error:
            folder = str(error)
            assert folder
            assert {path.suffix for path in (cache / "wsol/unpacked").iterdir()} <= {".lock"}
        else:
            modes = [mode for mode, _ in below(folder).values()]
            assert all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in modes)
            assert not any(mode & (stat.S_ISUID | stat.S_ISGID) for mode in modes)
        assert {path for path in below(tmp_path) if not path.startswith(str(cache))} == {
            str(source.parent),
            str(source),
        }
        return folder

    return make


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive(outcome, name):
    found = outcome(HOSTILE[name])
    assert isinstance(found, Path) == (name in HARMLESS), found
    assert not Path("/tmp/wsol-evil").exists()


def test_there_are_forty():
    assert len(HOSTILE) >= 40


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes of it are others, cut out or added."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 6))):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"7777"))
            case 2:
                del changed[at : at + rng.randrange(1, 600)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randrange(1, 600))
        changed = changed or bytearray(b"\0")
    return bytes(changed)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_archives(outcome, count):
    """Each is refused for a reason or unpacked within the limit; some are either."""
    rng = random.Random(count)
    members = [(f"top/{n}.txt", rng.randbytes(30) * 20, {}) for n in range(4)]
    sound = [tar(*members), tar(*members, mode="w:gz"), tar(*members, mode="w:xz"), tar(*members, mode="w:bz2")]
    sound.append(zipped(*((name, data, 0o644) for name, data, _ in members)))
    kinds = {type(outcome(damaged(rng.choice(sound), rng))) for _ in range(count)}
    assert len(kinds) == 2
