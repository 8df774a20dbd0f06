"""`Store`: whole writes and exclusive creation, on a disk and in an object store."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import NoCredentialsError
from pyarrow.fs import FileSystem

from wsol_pipeline import storage
from wsol_pipeline.errors import DataError, ResourceError, UsageError
from wsol_pipeline.storage import STORAGE_ERRORS, Store, describe_storage_error
from wsol_pipeline.training.checkpoint import read_sealed, write_sealed

PASSING = ("307", "500", "503", "timeout", "cut")  # faults that a later attempt may not meet


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return Store.at(tmp_path / "store")
    return Store.at(f"{request.getfixturevalue('s3_bucket')}/{request.node.name.split('[')[0]}")


def test_a_written_file_is_there_and_nothing_else(store):
    store.write("a/b.bin", b"one")
    store.write("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"second"
    assert store.size("a/b.bin") == 6
    assert (store / "a").list() == ["b.bin"]
    assert store.list() == ["a/b.bin"]
    assert store.exists("a/b.bin")
    assert not store.exists("a/c.bin")


def test_a_removed_file_is_gone_and_removing_it_again_is_no_error(store):
    store.write("x", b"1")
    store.remove("x")
    store.remove("x")
    assert store.list() == []
    with pytest.raises(FileNotFoundError):
        store.read("x")


def test_of_many_writers_one_creates(store):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda writer: store.create("lease", f"writer {writer}".encode()), range(8)))
    assert won.count(True) == 1
    assert store.read("lease") == f"writer {won.index(True)}".encode()
    assert not store.create("lease", b"late")


@pytest.mark.parametrize("name", ["a b", "läufe 1+1", "r#1%20"])
def test_ray_takes_the_place_that_is_meant(s3_bucket, tmp_path, name):
    """It takes a local path as it is, and what begins with s3:// for a URL."""
    there, here = Store.at(f"{s3_bucket}/{name}"), Store.at(tmp_path / name)
    assert FileSystem.from_uri(there.url("ray"))[1] == f"bucket/{name}/ray"
    assert FileSystem.from_uri(here.url("ray"))[1] == here.path("ray")


def test_check_writable_leaves_nothing_behind(store):
    assert store.check_writable() == store
    assert store.list() == []


def test_check_exclusive_leaves_nothing_behind(store):
    assert store.check_exclusive() == store
    assert store.list() == []


def test_storage_without_hard_links_is_told_at_the_start(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(ResourceError, match="cannot keep two drivers apart: it has no hard links.*not permitted"):
        Store.at(tmp_path).check_exclusive()
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_that_lets_two_create_one_name_is_told_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "create", lambda self, name, data: not self.write(name, data))
    with pytest.raises(ResourceError, match="cannot keep two drivers apart"):
        Store.at(tmp_path).check_exclusive()


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    store = Store.at(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for write in (store.write, store.create):
            with pytest.raises(OSError, match="No space"):
                write("x", b"1")
    (tmp_path / "folder/below").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        store.write("folder", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_a_check_refuses_is_not_written(store):
    store.write("x", b"old")

    def refuse():
        raise ResourceError("lost")

    with pytest.raises(ResourceError, match="lost"):
        store.write("x", b"new", refuse)
    assert (store.read("x"), store.list()) == (b"old", ["x"])


def test_names_of_folders_are_no_files(s3_bucket):
    import boto3

    store = Store.at(f"{s3_bucket}/folders")
    store.write("a/b", b"1")
    for key in ("folders/", "folders/a/", "folders/c/"):
        boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=b"")
    assert store.list() == ["a/b"]
    assert store.list("c") == []


def test_a_missing_bucket_is_named(s3_bucket):
    with pytest.raises(ResourceError, match=r"s3://nobody-has-this"):
        Store.at("s3://nobody-has-this/x").check_writable()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="file/below"):
        Store.at(tmp_path / "file" / "below").check_writable()


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_seen(s3_proxy, fault):
    store, data = Store("s3://bucket/faults"), bytes(range(256)) * 40
    s3_proxy.harm(fault, times=1, method="PUT")
    store.write(fault, data)
    assert s3_proxy.injected == 1
    s3_proxy.harm(fault, times=1)
    assert store.read(fault) == data
    assert s3_proxy.injected == 1
    s3_proxy.harm(fault, times=1)
    assert store.read_range(fault, 5, 700) == data[5:700]
    assert s3_proxy.injected == 1
    s3_proxy.harm(fault, times=1, method="HEAD")
    assert store.size(fault) == len(data)
    assert s3_proxy.injected == 1


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_is_told(s3_proxy, fault):
    store = Store("s3://bucket/faults")
    store.write("lasting", bytes(1000))
    s3_proxy.harm(fault)
    with pytest.raises(STORAGE_ERRORS):
        store.read("lasting")
    assert s3_proxy.injected == 3  # attempts
    s3_proxy.harm(fault, method="PUT")
    with pytest.raises(ResourceError, match="s3://bucket/faults cannot be reached"):
        store.check_writable()
    assert s3_proxy.injected <= 2 * 3  # of two requests at most


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_is_told_within_a_minute(s3_proxy, monkeypatch, fault):
    """With the client's own patience, whatever the fault."""
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_proxy.server_port}")
    storage._s3.cache_clear()
    s3_proxy.silence = 60
    store, began = Store("s3://bucket/faults"), time.monotonic()
    store.write("lasting", bytes(1000))
    s3_proxy.harm(fault)
    with pytest.raises(STORAGE_ERRORS):
        store.read("lasting")
    assert 10 < time.monotonic() - began < 60


def test_what_asking_again_cannot_mend_is_asked_once(s3_proxy):
    store = Store("s3://bucket/faults")
    s3_proxy.harm("403", method="PUT")
    with pytest.raises(ResourceError, match="s3://bucket/faults was denied: check the credentials"):
        store.check_writable()
    assert s3_proxy.injected == 1
    s3_proxy.requests.clear()
    with pytest.raises(FileNotFoundError):
        store.read_range("nothing", 0, 10)
    assert len(s3_proxy.requests) == 1


def test_wrong_bytes_are_read_again_or_told(s3_proxy):
    store, files = Store("s3://bucket/faults/sealed"), {"state.pt": bytes(5000), "records.json": b"[]"}
    write_sealed(store, files)
    s3_proxy.harm("wrong", times=1, path="state.pt")
    assert read_sealed(store) == files
    assert s3_proxy.injected == 1
    s3_proxy.harm("wrong", path="state.pt")
    with pytest.raises((DataError, *STORAGE_ERRORS)):
        read_sealed(store)


def test_a_list_in_pages_that_repeat_themselves_names_each_file_once(s3_proxy):
    store = Store("s3://bucket/pages")
    for name in "abcde":
        store.write(f"x/{name}", name.encode() * 3)
    s3_proxy.harm("pages", path="list-type")
    assert store.list() == store.list("x") == [f"x/{name}" for name in "abcde"]
    assert s3_proxy.injected == 6  # three pages each
    assert store.sizes() == {f"x/{name}": 3 for name in "abcde"}
    assert {name: size for name, (size, _) in store.facts().items()} == store.sizes()


def test_an_etag_that_is_not_the_bodys_changes_nothing(s3_proxy):
    """Some stores and encryptions have such: what was written is known by its own digest, and nothing else counts."""
    store, files = Store("s3://bucket/etags"), {"state.pt": bytes(range(256)), "records.json": b"[]"}
    for method in ("PUT", "GET", "HEAD"):
        s3_proxy.harm("etag", method=method)
        write_sealed(store, files)
        assert read_sealed(store) == files
        assert store.create(f"lease of {method}", b"one")
        assert not store.create(f"lease of {method}", b"another")
        assert s3_proxy.injected > 0


def test_a_creation_whose_answer_is_lost_has_succeeded(s3_proxy):
    store = Store("s3://bucket/faults")
    s3_proxy.harm("cut", times=1, method="PUT")
    assert store.create("lease of one", b"one")
    assert not store.create("lease of one", b"another")


def test_a_range_ends_where_the_file_does(store):
    store.write("x", b"0123456789")
    assert store.read_range("x", 3, 7) == b"3456"
    assert store.read_range("x", 8, 99) == b"89"
    assert store.read_range("x", 10, 12) == b""


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
        (PermissionError("403"), "denied"),
        (FileNotFoundError("404"), "does not exist"),
        (OSError("broken pipe"), "cannot be reached: OSError: broken pipe"),
    ],
)
def test_a_storage_error_says_what_to_mend(error, advice):
    assert advice in describe_storage_error("s3://bucket/x", error)


def test_other_schemes_are_refused():
    with pytest.raises(UsageError, match="gs://bucket"):
        Store.at("gs://bucket/x")
