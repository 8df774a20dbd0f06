"""The streaming executor gives what cached pixels give; datasets in an object store."""

from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from torchvision.transforms.v2 import functional

from wsol_pipeline.data import stream
from wsol_pipeline.data.augment import draw_regions
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode
from wsol_pipeline.data.reader import Batch, ReadConfig, TrainReader, eval_rows
from wsol_pipeline.data.stream import regroup
from wsol_pipeline.errors import DataError
from wsol_pipeline.storage import Store

pytestmark = pytest.mark.usefixtures("s3_bucket", "local_ray")  # in this order: workers inherit the AWS variables


@pytest.fixture
def streaming(tmp_path):
    return ReadConfig(resize_size=40, image_size=32, mode="streaming", cache_dir=str(tmp_path / "cache"))


def windows_of(split, batch_size: int):
    """A plan with 3 windows of 2 blocks, so that windows and batches do not fall together."""
    return replace(split.plan(batch_size, seed=9), window_rows=64)


def assert_same(mine: list[Batch], theirs: list[Batch]) -> None:
    assert [batch.ids for batch in mine] == [batch.ids for batch in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one.images_BCHW, other.images_BCHW)
        assert torch.equal(one.labels_B, other.labels_B)
        assert one.labels_B.dtype == other.labels_B.dtype
        assert one.sizes_B2.tolist() == other.sizes_B2.tolist()
        assert one.global_size == other.global_size


def test_streaming_equals_cached_over_epochs_with_a_restart_and_two_ranks(tiny, streaming):
    plan = windows_of(tiny.train, 16)
    for rank in range(2):
        both = []
        for config in (streaming, replace(streaming, mode="cached")):
            with TrainReader(tiny.train, plan, config, epochs=3, rank=rank, world=2) as reader:
                assert reader.is_cached == (config.mode == "cached")
                both.append([batch for epoch, start in ((1, 80), (2, 0)) for batch in reader.epoch(epoch, start)])
        assert_same(*both)
        assert len(both[0]) == 4 + 9


@pytest.mark.parametrize("drop_last", [False, True])
def test_random_resized_crops_equal_cached_ones(tiny, streaming, drop_last):
    plan = replace(windows_of(tiny.train, 16), drop_last=drop_last)
    config, both = replace(streaming, train_geometry="random_resized_crop"), []
    for mode in ("streaming", "cached"):
        with TrainReader(tiny.train, plan, replace(config, mode=mode), epochs=2) as reader:
            both.append([batch for epoch in range(2) for batch in reader.epoch(epoch)])
    assert_same(*both)


def test_stored_images_can_be_cut_themselves(tiny, streaming, make_source):
    """The oracle decodes every image and cuts it with torchvision's function."""
    stored = {row.id: decode(row.image) for row in make_source().rows}
    config = replace(streaming, mode="auto", train_geometry="random_resized_crop_stored", crop_scale=0.5)
    plan = tiny.train.plan(75, seed=9)
    with TrainReader(tiny.train, plan, config, epochs=1) as reader:
        assert not reader.is_cached
        for batch in reader.epoch(0):
            drawn = draw_regions(hash_ids(batch.ids), 9, 0, batch.sizes_B2, 0.5)
            for name, image, *region, flip in zip(batch.ids, batch.images_BCHW, *drawn, strict=True):
                want = functional.resized_crop(stored[name], *map(int, region), [32, 32], antialias=True)
                assert torch.equal(image, want.flip(-1) if flip else want)


def test_epochs_in_a_row_are_one_execution_and_others_start_anew(tiny, streaming, monkeypatch):
    starts = []
    begin = TrainReader._start
    monkeypatch.setattr(TrainReader, "_start", lambda self, *at: starts.append(at) or begin(self, *at))
    plan = windows_of(tiny.train, 50)
    with TrainReader(tiny.train, plan, streaming, epochs=3) as reader:
        first = [[batch.ids for batch in reader.epoch(epoch)] for epoch in range(2)]
        next(reader.epoch(2))  # left in the middle
        again = [batch.ids for batch in reader.epoch(1)]
    assert starts == [(0, 0), (1, 0)]
    assert again == first[1]


def test_a_long_training_is_several_executions(tiny, streaming, monkeypatch):
    """Of two windows each: three epochs of three windows are five."""
    plan, both, begun = windows_of(tiny.train, 50), [], []
    execute = stream._execute
    monkeypatch.setattr(stream, "_execute", lambda work, tasks: begun.append(len(tasks)) or execute(work, tasks))
    for at_once in (2, 1024):
        monkeypatch.setattr(stream, "_READ_TASKS", at_once)
        with TrainReader(tiny.train, plan, streaming, epochs=3) as reader:
            both.append([batch for epoch in range(3) for batch in reader.epoch(epoch)])
    assert begun == [2, 2, 2, 2, 1, 9]
    assert_same(*both)


def test_a_harmed_shard_is_refused_by_name_from_a_task(write, tmp_path, streaming):
    dataset = write(tmp_path / "data")
    shard = tmp_path / "data" / dataset.train.shards[1].name
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with (
        TrainReader(dataset.train, windows_of(dataset.train, 16), streaming, epochs=1) as reader,
        pytest.raises(DataError, match=rf"{shard.name} is not what was imported"),
    ):
        list(reader.epoch(0))


def test_ray_tasks_import_the_same_bytes(tiny, write, tmp_path):
    parallel = Store(write(tmp_path, workers=2).uri)
    assert parallel.list() == Store(tiny.uri).list()
    assert all(parallel.read(name) == Store(tiny.uri).read(name) for name in parallel.list())


def test_an_object_store_gives_what_a_disk_gives(s3_bucket, write, tiny, streaming, tmp_path):
    remote = write(f"{s3_bucket}/tiny")
    assert remote.manifest == tiny.manifest
    plan = windows_of(tiny.train, 40)
    batches = []
    for dataset, mode in ((tiny, "cached"), (remote, "cached"), (remote, "streaming")):
        config = replace(streaming, mode=mode, cache_dir=str(tmp_path / dataset.uri.split(":")[0].strip("/") / mode))
        with TrainReader(dataset.train, plan, config, epochs=1) as reader:
            batches.append(list(reader.epoch(0)))
    assert_same(batches[1], batches[0])
    assert_same(batches[2], batches[0])
    ids = [name for batch in eval_rows(remote.val, streaming, "resize", 4).batches() for name in batch.ids]
    assert ids == tiny.val.ids


def test_an_altered_object_is_refused_by_name(s3_bucket, write, streaming):
    dataset = write(f"{s3_bucket}/altered")
    store, name = Store(dataset.uri), dataset.val.shards[0].name
    data = bytearray(store.read(name))
    data[100] ^= 1
    store.write(name, bytes(data))
    with pytest.raises(DataError, match=rf"{name} is not what was imported"):
        next(eval_rows(open_dataset(dataset.uri).val, streaming, "resize", 4).batches())


def test_regroup_cuts_blocks_of_any_length():
    blocks = iter([{"id": np.arange(start, end)} for start, end in ((0, 5), (5, 6), (6, 14), (14, 15))])
    pieces = [piece["id"].tolist() for piece in regroup(blocks, [2, 2, 7, 4])]
    assert pieces == [[0, 1], [2, 3], list(range(4, 11)), list(range(11, 15))]


def test_ray_was_left_as_it_was(tiny, streaming):
    """The reader's own settings of Ray Data do not leak into other datasets of the process."""
    before = ray.data.DataContext.get_current().target_max_block_size
    with TrainReader(tiny.train, windows_of(tiny.train, 50), streaming, epochs=1) as reader:
        next(reader.epoch(0))
    assert ray.data.DataContext.get_current().target_max_block_size == before
