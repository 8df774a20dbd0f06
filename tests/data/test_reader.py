"""Batches from cached pixels and from shards; the streaming executor is in test_streaming.py."""

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import time
import weakref
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from wsol_pipeline.data.augment import draw_crops, draw_regions
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode, shrunk
from wsol_pipeline.data.jpegs import Sample, cached_jpegs, jpeg_bytes, ordered, sampled
from wsol_pipeline.data.pixels import cached_pixels
from wsol_pipeline.data.reader import ReadConfig, Seen, TrainReader, eval_rows, neighbours, train_batches
from wsol_pipeline.errors import ResourceError, UsageError

SMALL = ReadConfig(resize_size=40, image_size=32)


@pytest.fixture
def config(tmp_path):
    return replace(SMALL, cache_dir=str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def source_rows(make_source):
    return {row.id: row for row in make_source().rows}


def square(stored: bytes, quality: int) -> torch.Tensor:
    """What a cache of 40 px gives of an image: with a quality, what a JPEG of 4:4:4 leaves of it."""
    want = functional.resize(decode(stored), [40, 40], antialias=True)
    if quality:
        sink = io.BytesIO()
        Image.fromarray(want.permute(1, 2, 0).numpy()).save(sink, "JPEG", quality=quality, subsampling=0)
        want = torch.from_numpy(np.array(Image.open(sink))).permute(2, 0, 1)
    return want


@pytest.mark.parametrize("quality", [0, 90])
def test_a_training_image_is_resized_cropped_and_flipped_as_drawn(tiny, config, source_rows, quality):
    """The oracle decodes and augments every image by itself, with functions of torchvision and PIL."""
    config = replace(config, shrunk_jpegs=quality, mode="streaming" if quality else "auto")
    plan, flips = tiny.train.plan(16, seed=5), []
    for batch in train_batches(tiny.train, plan, 3, config):
        for name, image, label in zip(batch.ids, batch.images_BCHW, batch.labels_B, strict=True):
            crops = draw_crops(hash_ids([name]), seed=5, epoch=3, size=40, crop=32)
            want = square(source_rows[name].image, quality)
            want = functional.crop(want, int(crops.top_B[0]), int(crops.left_B[0]), 32, 32)
            want = functional.horizontal_flip(want) if crops.flip_B[0] else want
            assert torch.equal(image, want)
            assert label == source_rows[name].labels[0]
            flips.append(bool(crops.flip_B[0]))
    assert {True, False} == set(flips)


def test_a_random_resized_crop_is_of_the_region_drawn_on_the_stored_image(tiny, config, source_rows):
    """Cut out of the square that is cached; the oracle finds the region there by itself."""
    config = replace(config, train_geometry="random_resized_crop", crop_scale=0.3)
    for batch in train_batches(tiny.train, tiny.train.plan(16, seed=5), 3, config):
        for name, image, size in zip(batch.ids, batch.images_BCHW, batch.sizes_B2, strict=True):
            drawn = draw_regions(hash_ids([name]), 5, 3, size[None], 0.3)
            top, left, tall, wide = (int(values[0]) for values in drawn[:4])
            columns, rows = (
                [round(edge * 40 / side) for edge in edges]
                for side, edges in zip(size, ((left, left + wide), (top, top + tall)), strict=True)
            )
            want = functional.resize(decode(source_rows[name].image), [40, 40], antialias=True)
            want = want[:, rows[0] : rows[1], columns[0] : columns[1]]
            want = functional.resize(want, [32, 32], antialias=True)
            assert torch.equal(image, want.flip(-1) if drawn.flip_B[0] else want)


def test_batches_follow_the_plan(tiny, config):
    plan = tiny.train.plan(16, seed=5)
    batches = list(train_batches(tiny.train, plan, 0, config))
    assert [name for batch in batches for name in batch.ids] == [tiny.train.ids[row] for row in plan.order(0)]
    assert [batch.global_size for batch in batches] == [16] * 8 + [22]
    assert all(batch.boxes is None for batch in batches)


def test_the_rest_of_an_epoch_can_be_left_out(tiny, config):
    plan = tiny.train.plan(16, seed=5, drop_last=True)
    batches = list(train_batches(tiny.train, plan, 0, config))
    assert [name for batch in batches for name in batch.ids] == [tiny.train.ids[row] for row in plan.order(0)[:144]]
    assert [batch.global_size for batch in batches] == [16] * 9


@pytest.mark.parametrize(("quality", "threads"), [(0, 1), (90, 1), (90, 3)])
def test_two_ranks_after_a_restart_give_the_rest_of_the_epoch(tiny, config, source_rows, monkeypatch, quality, threads):
    """However many threads decode for a rank."""
    config = replace(config, shrunk_jpegs=quality)
    plan = tiny.train.plan(16, seed=5)
    whole = list(train_batches(tiny.train, plan, 1, config))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ranks = [list(train_batches(tiny.train, plan, 1, config, rank=r, world=2, start_sample=48)) for r in range(2)]
    for one, left, right in zip(whole[3:], *ranks, strict=True):
        assert one.ids == left.ids + right.ids
        assert torch.equal(one.images_BCHW, torch.cat([left.images_BCHW, right.images_BCHW]))
        assert left.global_size == len(one.ids)
        sizes = [source_rows[name].size for name in one.ids]
        assert np.concatenate([left.sizes_B2, right.sizes_B2]).tolist() == list(map(list, sizes))


@pytest.mark.parametrize("mode", ["cached", "streaming"])
@pytest.mark.parametrize("geometry", ["resize", "resize_crop"])
def test_evaluation_images_have_the_stated_geometry(tiny, config, source_rows, mode, geometry):
    rows = eval_rows(tiny.val, replace(config, mode=mode), geometry, 4)
    batches = list(rows.batches())
    assert [name for batch in batches for name in batch.ids] == tiny.val.ids
    assert [batch.global_size for batch in batches] == [4, 4, 3]
    for batch in batches:
        for name, image, boxes in zip(batch.ids, batch.images_BCHW, batch.boxes, strict=True):
            size = 32 if geometry == "resize" else 40
            want = functional.resize(decode(source_rows[name].image), [size, size], antialias=True)
            assert torch.equal(image, functional.center_crop(want, [32, 32]))
            assert boxes.dtype == np.float32
            assert tuple(map(tuple, boxes)) == source_rows[name].boxes  # as stored


def test_images_of_a_short_side_keep_their_aspect(tiny, config, source_rows):
    rows = eval_rows(tiny.val, config, "short_side", 4)
    batches = list(rows.batches())
    assert [name for batch in batches for name in batch.ids] == tiny.val.ids
    assert not rows.has_masks
    for batch in batches:
        for name, image, size in zip(batch.ids, batch.images_BCHW, batch.sizes_B2, strict=True):
            assert torch.equal(image, functional.resize(decode(source_rows[name].image), [32], antialias=True))
            assert tuple(size) == source_rows[name].size


@pytest.mark.parametrize("mode", ["cached", "streaming"])
@pytest.mark.parametrize("geometry", ["resize", "resize_crop", "short_side"])
def test_photographs_come_as_they_are_stored_beside_the_networks_images(masked, config, source_rows, mode, geometry):
    """The rest of a batch is what it is without them, whether that comes from cached pixels or from shards."""
    rows = eval_rows(masked.val, replace(config, mode=mode), geometry, 4)
    alone = [image for batch in rows.batches() for image in batch.images_BCHW]
    masks = [mask for batch in rows.batches() for mask in batch.masks]
    batches = list(rows.with_stored().batches())
    assert [name for batch in batches for name in batch.ids] == masked.val.ids
    for batch in batches:
        assert batch.num_shrunk == 0
        for name, image, photograph, mask, size in zip(
            batch.ids, batch.images_BCHW, batch.stored_BCHW, batch.masks, batch.sizes_B2, strict=True
        ):
            assert torch.equal(photograph, decode(source_rows[name].image))
            assert tuple(size) == source_rows[name].size
            assert torch.equal(image, alone.pop(0))
            assert np.array_equal(mask, masks.pop(0))
    if geometry == "resize_crop":
        assert batches[0].whole_BCHW.shape[2:] == (40, 40)


@pytest.fixture(scope="module")
def sized(write, make_source, jpeg, tmp_path_factory):
    """The tiny dataset; validation has three images of 40 x 30, three of 80 x 60, one of 200 x 100, four of 40 x 30."""
    source = make_source()
    sizes = [(40, 30)] * 3 + [(80, 60)] * 3 + [(200, 100)] + [(40, 30)] * 4
    for number, size in enumerate(sizes):
        row = source.rows[150 + number]
        source.rows[150 + number] = replace(row, image=jpeg(number, size), size=size)
    return write(tmp_path_factory.mktemp("sized") / "data", source)


@pytest.mark.parametrize("batch_size", [2, 11])
def test_photographs_that_are_held_are_bounded(sized, config, monkeypatch, batch_size):
    """10,000 pixels: two of 80 x 60; the largest is shrunk to 141 x 70; never more than a batch, and the next image."""
    for module in ("images", "reader"):
        monkeypatch.setattr(f"wsol_pipeline.data.{module}.STORED_PIXELS", 10_000)
    alive, most = weakref.WeakSet(), []

    def watched(image_CHW):
        photograph_CHW = shrunk(image_CHW).clone()
        alive.add(photograph_CHW)
        most.append(sum(one[0].numel() for one in alive))
        return photograph_CHW

    monkeypatch.setattr("wsol_pipeline.data.reader.shrunk", watched)
    found = []
    for batch in eval_rows(sized.val, config, "short_side", batch_size).with_stored().batches():
        found.append((len(batch.ids), tuple(batch.stored_BCHW.shape[2:]), batch.num_shrunk))
        assert batch.stored_BCHW[:, 0].numel() <= 10_000
        del batch
    assert max(most) <= 20_000
    small, large, largest = (30, 40), (60, 80), (70, 141)
    if batch_size == 11:
        expected = [(3, small, 0), (2, large, 0), (1, large, 0), (1, largest, 1), (4, small, 0)]
    else:
        expected = [(2, small, 0), (1, small, 0), (1, large, 0), (2, large, 0), (1, largest, 1), (1, small, 0)]
        expected += [(2, small, 0), (1, small, 0)]
    assert found == expected


def test_a_photograph_counts_once_for_each_of_its_classes():
    """It is shown to the network for each of them."""
    images = [Seen(torch.zeros(3, 8, 8), torch.zeros(3, 1000, 1000))] * 6
    runs = [at.tolist() for at, _ in neighbours(images, np.array([1, 1, 2, 1, 3, 9]))]
    assert runs == [[0, 1, 2], [3, 4], [5]]  # of 4.2 million pixels


@pytest.fixture(scope="module")
def masked(write, make_source, tmp_path_factory):
    """The tiny dataset; the first two validation images have a mask, the second an ignore mask beside."""
    folder = tmp_path_factory.mktemp("masks")
    source = make_source()
    for number, skip in ((150, None), (151, folder / "skip.png")):
        width, height = source.rows[number].size
        mask, ignore = np.zeros((2, height, width), np.uint8)
        mask[: height // 2], ignore[:, : width // 2] = 255, 1
        Image.fromarray(mask).save(folder / f"{number}.png")
        if skip:
            Image.fromarray(ignore).save(skip)
        source.rows[number] = replace(source.rows[number], masks=(folder / f"{number}.png",), ignore=skip)
    return write(folder / "data", source)


@pytest.mark.parametrize("mode", ["cached", "streaming"])
def test_masks_come_with_their_images(masked, config, mode):
    rows = eval_rows(masked.val, replace(config, mode=mode), "resize", 4)
    first, *others = rows.batches()
    assert rows.has_masks
    assert [mask.shape for mask in first.masks] == [(32, 32)] * 4
    assert (first.masks[0][:16] == 1).all()
    assert (first.masks[0][16:] == 0).all()
    assert (first.masks[1][:15] == 1).all()
    assert (first.masks[1][17:, :16] == 255).all()
    assert (first.masks[1][17:, 17:] == 0).all()
    assert all((mask == 255).all() for mask in first.masks[2:])
    assert all((mask == 255).all() for batch in others for mask in batch.masks)
    test = eval_rows(masked.test(), replace(config, mode=mode), "resize", 4)
    assert not test.has_masks
    assert next(iter(test.batches())).masks is None


@pytest.mark.parametrize("mode", ["cached", "streaming"])
def test_masks_and_whole_images_follow_the_crop(masked, config, mode):
    batch = next(iter(eval_rows(masked.val, replace(config, mode=mode), "resize_crop", 4).batches()))
    assert batch.whole_BCHW.shape == (4, 3, 40, 40)
    assert torch.equal(batch.whole_BCHW[:, :, 4:36, 4:36], batch.images_BCHW)
    assert (batch.masks[0][:16] == 1).all()
    assert (batch.masks[0][16:] == 0).all()
    assert [labels.tolist() for labels in batch.box_labels] == [[0], [1, 1], [2], [0, 0]]


@pytest.mark.parametrize("world", [1, 2, 3, 5, 13])
def test_evaluation_ranks_are_contiguous_and_disjoint(tiny, config, world):
    ranks = [eval_rows(tiny.val, config, "resize", 2, rank=rank, world=world) for rank in range(world)]
    got = [[name for batch in rows.batches() for name in batch.ids] for rows in ranks]
    assert list(chain.from_iterable(got)) == tiny.val.ids
    assert [rows.num_rows for rows in ranks] == [len(ids) for ids in got]


def test_multilabel_targets_are_multi_hot(write, make_source, tmp_path, config):
    source = make_source()
    source.rows[151] = replace(source.rows[151], labels=(0, 2))
    dataset = write(tmp_path / "data", replace(source, multilabel=True))
    labels_BK = next(iter(eval_rows(dataset.val, config, "resize", 3).batches())).labels_B
    assert labels_BK.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 1]]
    assert labels_BK.dtype == torch.float32


def test_cached_pixels_need_no_shards_any_more(write, tmp_path, config):
    dataset = write(tmp_path / "data")
    plan = dataset.train.plan(16, seed=0)
    first = [batch.images_BCHW for batch in train_batches(dataset.train, plan, 0, config)]
    shutil.rmtree(tmp_path / "data/train")
    again = [batch.images_BCHW for batch in train_batches(open_dataset(dataset.uri).train, plan, 0, config)]
    assert all(map(torch.equal, first, again))


def test_each_size_has_its_own_pixels(tiny, config):
    assert cached_pixels(tiny.val, 40, config.cache_dir).images.shape == (11, 3, 40, 40)
    assert cached_pixels(tiny.val, 32, config.cache_dir).images.shape == (11, 3, 32, 32)
    assert len(list(Path(config.cache_dir, "pixels").glob("val-*[0-9a-f]"))) == 2


KEEPS = {  # both caches of one split, and a file of each with its images
    "pixels": (lambda split, where: cached_pixels(split, 40, where), "images.npy"),
    "jpegs": (lambda split, where: cached_jpegs(split, 40, 90, where), "images.jpegs"),
}


@pytest.fixture(params=KEEPS)
def keep(request, tiny, config):
    """`keep()`: the training images from one of the caches, which is `keep.kind`."""

    def cached():
        return KEEPS[request.param][0](tiny.train, config.cache_dir)

    cached.kind = request.param
    return cached


def images_of(cached) -> np.ndarray:
    return np.stack(list(cached.each(range(len(cached.rows.ids)))))


def _build_slowly(uri: str, cache_dir: str, kind: str) -> None:
    """Decode one chunk, say so, and hang: until the parent kills this process."""
    from wsol_pipeline.data import pixels

    def hang(*_):
        Path(cache_dir, "hanging").touch()
        time.sleep(600)

    pixels.decode_resize = hang
    KEEPS[kind][0](open_dataset(uri).train, cache_dir)


@pytest.mark.slow  # a process that imports torch, only to be killed
def test_a_killed_build_leaves_nothing_wrong(tiny, config, keep):
    """The next one gets the lock of the dead one and builds anew."""
    arguments = (tiny.uri, config.cache_dir, keep.kind)
    child = multiprocessing.get_context("spawn").Process(target=_build_slowly, args=arguments)
    child.start()
    while not Path(config.cache_dir, "hanging").exists():
        assert child.is_alive()
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    (aside,) = Path(config.cache_dir, keep.kind).glob("*.aside")
    cached = keep()
    assert not aside.exists()
    assert images_of(cached).reshape(150, -1).max(axis=1).min() > 0  # a row that nobody wrote is zero


def test_an_interrupted_build_is_built_again(config, keep, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wsol_pipeline.data.pixels.decode_resize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            keep()
    assert images_of(keep()).reshape(150, -1).max(axis=1).min() > 0


def test_a_full_disk_is_said_before_decoding(config, keep, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("wsol_pipeline.data.cache.shutil.disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr("wsol_pipeline.data.pixels.decode_resize", None)
    with pytest.raises(ResourceError, match=rf"needs 0.0 GiB .*/{keep.kind} has .* choose another cache_dir"):
        keep()
    assert [path.suffix for path in Path(config.cache_dir, keep.kind).iterdir()] == [".lock"]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 5000 if file.stat().st_size > 5000 else 7)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def blacken(file: Path) -> None:
    """Zeros in the middle, under the same size and times: what a disk may do."""
    times = file.stat()
    with file.open("rb+") as opened:
        opened.seek(times.st_size // 2)
        opened.write(bytes(200))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


HARMS = [cut, empty, blacken, link, Path.unlink]


@pytest.mark.parametrize(
    ("keep", "name", "harm"),
    [*product(["pixels"], ["images.npy", "rows.parquet"], HARMS),
     *product(["pixels"], ["seal.json"], [cut, empty, blacken, Path.unlink]),
     *product(["jpegs"], ["images.jpegs"], HARMS), *product(["jpegs"], ["ends.npy", "sampled.json"], [blacken])],
    indirect=["keep"],
)  # fmt: skip
def test_images_that_were_damaged_are_built_again(config, keep, caplog, name, harm):
    right = keep()
    right = images_of(right), right.rows.ids
    (file,) = Path(config.cache_dir).glob(f"{keep.kind}/*/{name}")
    harm(file)
    again = keep()
    assert np.array_equal(images_of(again), right[0])
    assert again.rows.ids == right[1]
    assert f"{file.parent} is not what was built" in caplog.text
    caplog.clear()
    keep()
    assert caplog.text == ""


def test_images_are_summed_once_while_they_stay_as_they_are(keep, monkeypatch):
    for _ in range(2):  # built, and looked at
        keep()
    monkeypatch.setattr("wsol_pipeline.data.cache._checksums", None)
    keep()


@pytest.mark.parametrize(
    ("keep", "writes"), [("pixels", "pixels.os.posix_fallocate"), ("jpegs", "jpegs.np.save")], indirect=["keep"]
)
def test_a_disk_that_fills_up_while_images_are_decoded_is_said_and_left_as_it_was(config, keep, monkeypatch, writes):
    """Room for pixels is really taken before the first page is written: one that is missing then would be a SIGBUS."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"wsol_pipeline.data.{writes}", full)
    with pytest.raises(ResourceError, match=r"image cache .* cannot be used .*No space left.*another cache_dir"):
        keep()
    assert [path.suffix for path in Path(config.cache_dir, keep.kind).iterdir()] == [".lock"]


def test_what_jpegs_are_like_is_measured_and_kept_with_them(tiny, config, source_rows):
    """Rows of 8 runs of 16, which overlap in so small a split, against PIL's own JPEGs of them."""
    made = cached_jpegs(tiny.train, 40, 90, config.cache_dir)
    runs = {row for first in np.linspace(0, 134, 8).astype(int) for row in range(first, first + 16)}
    exact, seen = ([square(source_rows[tiny.train.ids[row]].image, q).int() for row in sorted(runs)] for q in (0, 90))
    difference = np.mean([float((one - other).abs().double().mean()) for one, other in zip(exact, seen, strict=True)])
    lengths = np.diff(made.ends_N, prepend=0)[sorted(runs)]
    assert made.sample == Sample(40, 90, len(runs), pytest.approx(lengths.mean()), pytest.approx(difference))
    assert made.sample == sampled(tiny.train, 40, 90)
    assert 0.1 < difference < 5
    (folder,) = Path(config.cache_dir, "jpegs").glob("*/")
    assert json.loads((folder / "sampled.json").read_text())["images"] == len(runs)
    each, size = made.sample.bytes / 1000, (folder / "images.jpegs").stat().st_size
    with TrainReader(tiny.train, tiny.train.plan(16, 5), replace(config, shrunk_jpegs=90), epochs=1) as reader:
        assert reader.told == (
            f"JPEGs of 40x40, quality 90, about {each:.1f} KB each; pixels differ from the exact ones by "
            f"{difference:.1f} of 255 grey levels on average ({len(runs)} images); {size:,} bytes in all"
        )
    assert size <= jpeg_bytes(tiny.train, made.sample) <= 1.2 * size


def test_each_quality_has_its_own_jpegs(tiny, config):
    sizes = [len(cached_jpegs(tiny.train, 40, quality, config.cache_dir).data) for quality in (60, 90)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_work_ahead_is_bounded_and_keeps_its_order(threads):
    begun = []
    results = ordered(lambda item: begun.append(item) or 10 * item, iter(range(50)), threads)
    assert next(results) == 0
    assert len(begun) <= 3 * threads + 1
    assert list(results) == [10 * item for item in range(1, 50)]
    results = ordered(lambda item: 1 // item, [1, 0, 1], threads)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_evaluation_sees_exact_pixels_where_training_images_are_shrunk(tiny, config, source_rows):
    for rows in (tiny.val, tiny.train_labels):
        batch = next(iter(eval_rows(rows, replace(config, shrunk_jpegs=90), "resize", 4).batches()))
        want = functional.resize(decode(source_rows[batch.ids[0]].image), [32, 32], antialias=True)
        assert torch.equal(batch.images_BCHW[0], want)


def test_pixels_take_their_room_beforehand(tiny, config):
    images = cached_pixels(tiny.train, 40, config.cache_dir).images
    assert Path(images.filename).stat().st_blocks * 512 >= images.nbytes


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: folder.chmod(0o777), "may be written to by others"),
        (lambda folder: os.chown(folder, 65534, 65534), "belongs to another user"),
        (lambda folder: (folder.rename(f"{folder}-mine"), folder.symlink_to(f"{folder}-mine")), "is a link"),
    ],
)
def test_a_cache_that_others_may_have_filled_is_not_used(tiny, config, spoil, why):
    if "user" in why and os.geteuid():
        pytest.skip("only root gives folders away")
    cached_pixels(tiny.val, 40, config.cache_dir)
    spoil(Path(config.cache_dir, "pixels"))
    with pytest.raises(ResourceError, match=f"pixels {why}"):
        cached_pixels(tiny.val, 40, config.cache_dir)


def test_a_new_cache_is_this_users_alone(tiny, config):
    before = os.umask(0)
    try:
        cached_pixels(tiny.val, 40, config.cache_dir)
    finally:
        os.umask(before)
    folders = [path for path in Path(config.cache_dir).rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_auto_caches_what_fits_the_budget(tiny):
    """150 rows of 3 x 40 x 40 bytes are 720,000 bytes."""
    assert replace(SMALL, cache_budget_gb=720_000 / 2**30).caches(tiny.train, 40)
    assert not replace(SMALL, cache_budget_gb=719_999 / 2**30).caches(tiny.train, 40)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "chached"}, "Did you mean 'cached'"),
        ({"train_geometry": "zoom"}, "Known: crop, random_resized_crop, random_resized_crop_stored"),
        ({"train_geometry": "random_resized_crop_stored", "mode": "cached"}, "use mode 'streaming'"),
        ({"train_geometry": "random_resized_crop_stored", "shrunk_jpegs": 90}, "which no cache holds"),
        ({"crop_scale": 0.0}, r"crop_scale must be in \(0, 1\] but got 0.0"),
        ({"image_size": 41}, r"1..resize_size \(40\) but got 41"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        replace(SMALL, **fields)


def test_wrong_uses_are_refused(tiny, config):
    plan = tiny.train.plan(16, seed=0)
    with pytest.raises(UsageError, match="plan has 149 rows but the split has 150"):
        TrainReader(tiny.train, replace(plan, rows=149), config, epochs=1)
    with pytest.raises(UsageError, match="rank must be"):
        TrainReader(tiny.train, plan, config, epochs=1, rank=2, world=2)
    with pytest.raises(UsageError, match=r"epoch must be in 0..1"):
        TrainReader(tiny.train, plan, config, epochs=2).epoch(2)
    with pytest.raises(UsageError, match="Unknown geometry 'crop'"):
        eval_rows(tiny.val, config, "crop", 4)
