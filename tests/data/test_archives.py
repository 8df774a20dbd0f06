"""Archives: what is in them comes out once, whole and below one folder; what could do harm does not."""

import io
import stat
import tarfile
import zipfile

import pytest

from wsol_pipeline.data import archives
from wsol_pipeline.data.archives import _place, unpacked
from wsol_pipeline.errors import DataError, ResourceError

FILES = {"top/a.txt": b"one", "top/deep/b.txt": b"two" * 1000}


def tar(path, files, mode="w:gz", **fields):
    """An archive of `files`; `fields` are set on each member."""
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))
    return path


def zipped(path, files, mode=0o644 | stat.S_IFREG):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return path


@pytest.fixture(params=[tar, zipped], ids=["tar", "zip"])
def pack(request):
    return request.param


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_itself(tmp_path):
    assert unpacked(tmp_path) == tmp_path


def test_an_archive_of_one_folder_is_that_folder(tmp_path, pack):
    assert contents(unpacked(pack(tmp_path / "x", FILES))) == {"a.txt": b"one", "deep/b.txt": b"two" * 1000}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_compression(tmp_path, mode):
    files = FILES | {"attributes.txt": b"three"}
    assert contents(unpacked(tar(tmp_path / "x.tar", files, mode))) == files


def test_it_is_unpacked_once_until_it_changes(tmp_path, pack):
    first = unpacked(pack(tmp_path / "x", FILES))
    file = (first / "a.txt").stat().st_ino
    assert unpacked(tmp_path / "x") == first
    assert (first / "a.txt").stat().st_ino == file
    again = unpacked(pack(tmp_path / "x", FILES | {"top/c.txt": b"new"}))
    assert again != first
    assert (again / "a.txt").read_bytes() == b"one"


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a/../../evil", "a\\..\\evil"])
def test_names_that_lead_out(tmp_path, pack, name):
    with pytest.raises(DataError, match="may land outside"):
        unpacked(pack(tmp_path / "x", {"good": b"1", name: b"2"}))
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    with pytest.raises(DataError, match=r"link or device, 'way'"):
        unpacked(tar(tmp_path / "x", {"way": b""}, type=kind, linkname="/etc"))


def test_links_in_a_zip(tmp_path):
    with pytest.raises(DataError, match=r"link or device, 'way'"):
        unpacked(zipped(tmp_path / "x", {"way": b"/etc"}, 0o777 | stat.S_IFLNK))


def test_a_bomb_is_not_unpacked(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(archives, "ALLOWANCE", 0)
    assert unpacked(pack(tmp_path / "sound", {"a": bytes(range(256)) * 8}))
    with pytest.raises(DataError, match="unpacks to over"):
        unpacked(pack(tmp_path / "bomb", {"a": bytes(2**20)}))


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_header_that_would_fill_the_memory(tmp_path, first):
    """The name of a member is a megabyte and more, which shrinks to nothing."""
    long = {"n" * (archives.MAX_HEADER + 1): b"1"}
    with pytest.raises(DataError, match="a header of"):
        unpacked(tar(tmp_path / "x", long if first else {"good": b"1"} | long))


def test_too_many_files(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    assert unpacked(pack(tmp_path / "two", {"a": b"", "b": b""}))
    with pytest.raises(DataError, match="or 2 files"):
        unpacked(pack(tmp_path / "three", {"a": b"", "b": b"", "c": b""}))


def test_a_cut_archive_leaves_nothing(tmp_path, pack):
    whole = pack(tmp_path / "x", {"a": bytes(range(256)) * 400, "b": b"2"})
    whole.write_bytes(whole.read_bytes()[:-300])
    for _ in range(2):  # not even for a second try
        with pytest.raises(DataError, match=str(whole)):
            unpacked(whole)


def test_a_zip_that_lies_about_its_content(tmp_path):
    path = zipped(tmp_path / "x", {"a": b"hello"})
    path.write_bytes(path.read_bytes().replace(zipfile.crc32(b"hello").to_bytes(4, "little"), bytes(4)))
    with pytest.raises(DataError, match="broken archive"):
        unpacked(path)


def test_what_is_no_archive(tmp_path):
    (tmp_path / "x").write_text("a dataset")
    with pytest.raises(DataError, match="neither a folder nor a sound tar or zip"):
        unpacked(tmp_path / "x")


@pytest.mark.parametrize(
    "harm",
    [lambda at: (at / "a.txt").unlink(), lambda at: (at / "a.txt").write_bytes(b"o"), lambda at: (at / "c").touch()],
)
def test_what_was_unpacked_and_changed_is_unpacked_again(tmp_path, harm):
    source = tar(tmp_path / "x", FILES)
    right = contents(unpacked(source))
    harm(unpacked(source))
    assert contents(unpacked(source)) == right


def test_a_folder_that_was_put_there_is_not_what_was_unpacked(tmp_path):
    source = tar(tmp_path / "x", FILES)
    planted = _place(source, None)
    (planted / "evil").mkdir(parents=True, mode=0o700)
    planted.parent.chmod(0o700)
    assert sorted(contents(unpacked(source))) == ["a.txt", "deep/b.txt"]
    planted.parent.chmod(0o777)
    with pytest.raises(ResourceError, match="may be written to by others.*XDG_CACHE_HOME moves it"):
        unpacked(source)
