"""Remote shards while their store fails: the right rows or an error that names the shard, and no byte read twice."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from wsol_pipeline.data import shard_cache, shards
from wsol_pipeline.data.augment import Augmentation
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.reader import ReadConfig, TrainReader
from wsol_pipeline.data.stream import Work
from wsol_pipeline.errors import DataError, ResourceError
from wsol_pipeline.storage import Store

COLUMNS = ["id", "image", "width", "height", "labels"]
ROWS = np.random.default_rng(3).permutation(150)
PASSING = ("500", "503", "timeout", "cut", "wrong")
CACHED, RANGED = 1.0, 0.0  # GiB for copies of shards


@pytest.fixture(scope="module")
def remote(s3_bucket, write):
    return write(f"{s3_bucket}/shards")


@pytest.fixture(autouse=True)
def new_process():
    """`new_process()`: forget what this process knows of shards, as another process of the node would not know it."""

    def forget() -> None:
        shards._footer.cache_clear()
        shard_cache.node_copy.cache_clear()

    forget()
    return forget


def read(dataset, tmp_path, cache_gb: float) -> pa.Table:
    return dataset.train.shard_set(str(tmp_path), cache_gb).read(ROWS, COLUMNS)


@pytest.fixture(scope="module")
def right(tiny) -> pa.Table:
    return tiny.train.shard_set().read(ROWS, COLUMNS)


@pytest.mark.parametrize("cache_gb", [CACHED, RANGED])
@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_changes_nothing(remote, right, s3_proxy, tmp_path, cache_gb, fault):
    s3_proxy.harm(fault, times=1, path="train/00001")
    assert read(remote, tmp_path, cache_gb).equals(right)
    assert s3_proxy.injected == 1


@pytest.mark.parametrize("cache_gb", [CACHED, RANGED])
@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("wrong", DataError, "is not what was imported"),
        ("403", ResourceError, "was denied: check the credentials"),
        ("503", ResourceError, "cannot be reached"),
        ("timeout", ResourceError, "cannot be reached"),
        ("cut", ResourceError, "cannot be reached"),
    ],
)
def test_a_fault_that_stays_names_the_shard(remote, s3_proxy, tmp_path, cache_gb, fault, error, said):
    s3_proxy.harm(fault, path="train/00001")
    with pytest.raises(error, match=f"s3://bucket/shards/train/00001.parquet {said}"):
        read(remote, tmp_path, cache_gb)
    assert s3_proxy.injected <= 3  # attempts


@pytest.mark.slow
def test_many_faults_in_a_row_give_the_right_rows(remote, right, s3_proxy, tmp_path, new_process):
    for number, fault in enumerate(islice(cycle(PASSING), 100)):
        s3_proxy.harm(fault, times=1, path="train/")
        assert read(remote, tmp_path / str(number), (CACHED, RANGED)[number % 2]).equals(right)
        new_process()
    assert s3_proxy.injected == 100


def test_what_is_not_there_is_said_at_once(remote, write, s3_proxy, s3_bucket, tmp_path):
    lost = write(f"{s3_bucket}/lost")
    Store(lost.uri).remove("train/00000.parquet")
    s3_proxy.requests.clear()
    with pytest.raises(DataError, match=r"s3://bucket/lost/train/00000.parquet is missing"):
        read(lost, tmp_path, CACHED)
    assert s3_proxy.count("train/00000")[0] == 1
    with pytest.raises(DataError, match=r"no dataset at s3://nobody-has-this/data"):
        open_dataset("s3://nobody-has-this/data")


def test_a_cache_that_is_removed_while_it_is_used(remote, right, tmp_path):
    remote.train.shard_set(str(tmp_path), CACHED).read(ROWS[:3], COLUMNS)
    shutil.rmtree(tmp_path / "shards")
    assert read(remote, tmp_path, CACHED).equals(right)


def test_a_cache_folder_that_cannot_be_used_is_named(remote, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"in .*file/below .*: choose another cache_dir, or shard_cache_gb 0"):
        read(remote, tmp_path / "file" / "below", CACHED)


def epoch(dataset, tmp_path, cache_gb: float, world: int = 1) -> list[str]:
    """What all ranks of one node read in an epoch of windows of 2 row groups: the ids."""
    plan = replace(dataset.train.plan(10, seed=9), window_rows=64)
    tasks = pa.Table.from_pylist([{"epoch": 0, "window": number, "start_sample": 0} for number in range(3)])
    augmentation = Augmentation("crop", 40, 32, 0.08)
    works = (Work(dataset.train, plan, augmentation, str(tmp_path), cache_gb, rank, world) for rank in range(world))
    return [name for work in works for table in work.read(tasks) for name in table["id"].to_pylist()]


@pytest.mark.parametrize(("cache_gb", "world"), [(CACHED, 1), (CACHED, 2), (RANGED, 1)])
def test_an_epoch_reads_what_it_needs_and_a_copy_is_read_instead(
    remote, tiny, s3_proxy, tmp_path, cache_gb, world, new_process
):
    needed = sum(shard.bytes for shard in remote.train.shards)
    assert sorted(epoch(remote, tmp_path, cache_gb, world)) == sorted(tiny.train.ids)
    assert 0.95 * needed < s3_proxy.count("train/")[1] < 1.05 * needed
    new_process()
    s3_proxy.requests.clear()
    epoch(remote, tmp_path, cache_gb, world)
    assert bool(s3_proxy.requests) == (cache_gb == RANGED)


def test_cached_pixels_need_each_shard_once(remote, s3_proxy, tmp_path):
    config = ReadConfig(resize_size=40, image_size=32, mode="cached", cache_dir=str(tmp_path))
    with TrainReader(remote.train, remote.train.plan(50, seed=0), config, epochs=2) as reader:
        assert len(list(reader.epoch(0))) == 3
        needed = sum(shard.bytes for shard in remote.train.shards)
        assert 0.95 * needed < s3_proxy.count("train/")[1] < 1.05 * needed
        s3_proxy.requests.clear()
        assert len(list(reader.epoch(1))) == 3
    assert not s3_proxy.requests
    assert not (tmp_path / "shards").exists()


def test_columns_that_nobody_asked_for_are_not_read(remote, s3_proxy):
    remote.train.shard_set().read_all(["labels"])
    footers = sum(shard.footer_bytes for shard in remote.train.shards)
    assert s3_proxy.count("train/")[1] - footers < 5 * 400  # 5 row groups: levels and 4 bytes a row each


def test_workers_of_a_node_wait_for_one_fetch(remote, right, s3_proxy, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda _: read(remote, tmp_path, CACHED), range(4)))
    assert all(table.equals(right) for table in tables)
    assert s3_proxy.count("train/")[1] < 1.05 * sum(shard.bytes for shard in remote.train.shards)


def harm_copy(data: Path) -> None:
    with data.open("rb+") as file:
        file.seek(20_000)
        file.write(b"another")


@pytest.mark.parametrize(
    "harm", [harm_copy, lambda data: os.truncate(data, 30_000), lambda data: shutil.rmtree(data.parent)]
)
def test_a_copy_that_the_disk_lost_or_changed_is_fetched_again(remote, right, s3_proxy, tmp_path, new_process, harm):
    read(remote, tmp_path, CACHED)
    (data,) = tmp_path.glob("shards/*/data")
    harm(data)
    new_process()
    s3_proxy.requests.clear()
    assert read(remote, tmp_path, CACHED).equals(right)
    assert s3_proxy.requests
    s3_proxy.requests.clear()
    assert read(remote, tmp_path, CACHED).equals(right)
    assert not s3_proxy.requests
