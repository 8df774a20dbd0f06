"""`Store`: whole writes and exclusive creation, on a disk and in an object store."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import NoCredentialsError

from wsol_pipeline.errors import ResourceError, UsageError
from wsol_pipeline.storage import Store, describe_storage_error


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


def test_check_writable_leaves_nothing_behind(store):
    assert store.check_writable() == store
    assert store.list() == []


def test_a_missing_bucket_is_named(s3_bucket):
    with pytest.raises(ResourceError, match=r"s3://nobody-has-this"):
        Store.at("s3://nobody-has-this/x").check_writable()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="file/below"):
        Store.at(tmp_path / "file" / "below").check_writable()


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
