"""Crop and flip are functions of (seed, epoch, id) alone, and cut what they say."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from wsol_pipeline.data.augment import Crops, Regions, crop_flip, cut_resize_flip, draw_crops, draw_regions, uniform
from wsol_pipeline.data.hashes import hash_ids, splitmix64
from wsol_pipeline.data.resample import resample


def test_splitmix64_gives_the_published_sequence():
    """The first outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) for seed 1234567."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * golden
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_hash_is_stable_over_processes_and_releases():
    assert hash_ids(["a", "b"]).tolist() == hash_ids(["a"]).tolist() + hash_ids(["b"]).tolist()
    assert hash_ids(["n01440764/1.JPEG"]).tolist() == [899032641427692706]


def test_draws_do_not_depend_on_the_batch():
    hashes = hash_ids(map(str, range(10)))
    together = uniform(hashes, seed=3, epoch=2, draws=3)
    alone = np.concatenate([uniform(hashes[i : i + 1], seed=3, epoch=2, draws=3) for i in range(10)], axis=1)
    assert np.array_equal(together, alone)
    assert not np.array_equal(together, uniform(hashes, seed=3, epoch=3, draws=3))
    assert not np.array_equal(together, uniform(hashes, seed=4, epoch=2, draws=3))


def test_draws_are_uniform_and_independent():
    draws = uniform(hash_ids(map(str, range(20000))), seed=0, epoch=0, draws=3)
    assert np.allclose(draws.mean(axis=1), 0.5, atol=0.01)  # sd of the mean is 0.002
    assert np.allclose(np.corrcoef(draws), np.eye(3), atol=0.03)  # sd of a correlation is 0.007


def test_all_positions_and_both_sides_come():
    crops = draw_crops(hash_ids(map(str, range(5000))), seed=0, epoch=1, size=12, crop=8)
    assert set(crops.top_B) == set(crops.left_B) == set(range(5))
    assert 0.45 < crops.flip_B.mean() < 0.55


def test_crop_flip_equals_torchs_own():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 10, 10), np.uint8)
    rows = np.array([2, 0, 2])
    crops = Crops(np.array([0, 3, 4]), np.array([4, 0, 1]), np.array([False, True, True]))
    cut = crop_flip(pixels[rows], crops, 6)
    want = [
        torch.from_numpy(pixels[2, :, 0:6, 4:10]),
        torch.from_numpy(pixels[0, :, 3:9, 0:6]).flip(-1),
        torch.from_numpy(pixels[2, :, 4:10, 1:7]).flip(-1),
    ]
    assert torch.equal(torch.from_numpy(cut), torch.stack(want))


def regions_of(width: int, height: int, smallest: float, number: int = 20000) -> Regions:
    sizes_B2 = np.tile([width, height], (number, 1))
    return draw_regions(hash_ids(map(str, range(number))), seed=0, epoch=1, sizes_B2=sizes_B2, smallest=smallest)


def test_regions_have_the_areas_and_aspects_asked_for_and_lie_inside():
    """In a large square nearly every first draw fits, so shares of the area are uniform in .25 to .5: mean 3/8; aspects
    lie symmetric around 1 in their logarithm."""
    side = 2000
    regions = regions_of(side, side, 0.25)
    shares, aspects = regions.height_B * regions.width_B / side**2, regions.width_B / regions.height_B
    small = shares < 0.5  # a region of at most half of the area fits at every aspect up to 4/3
    assert 0.2499 < shares.min() < 0.251
    assert shares.max() > 0.99
    assert shares[small].mean() == pytest.approx(0.375, abs=0.003)  # sd of the mean is 0.0009
    assert 0.7495 < aspects.min() < 0.752
    assert 1.331 < aspects.max() < 1.334
    assert np.log(aspects).mean() == pytest.approx(0, abs=0.006)  # sd 0.0012
    assert min(regions.top_B.min(), regions.left_B.min()) == 0
    assert (regions.top_B + regions.height_B).max() == (regions.left_B + regions.width_B).max() == side
    assert 0.48 < regions.flip_B.mean() < 0.52


def test_regions_are_torchvisions_own(monkeypatch):
    """Its code, given the same uniform numbers: every size and whether it falls back."""
    from torchvision.transforms import RandomResizedCrop

    number, (width, height) = 200, (90, 61)
    hashes = hash_ids(map(str, range(number)))
    regions = draw_regions(hashes, 3, 4, np.tile([width, height], (number, 1)), 0.6)
    draws = uniform(hashes, 3, 4, 23)
    for i in range(number):
        numbers = iter(np.stack([draws[:10, i], draws[10:20, i]], axis=1).ravel())
        places = iter((draws[21, i], draws[20, i]))

        def drawn(self, low, high, numbers=numbers):
            return self.fill_(low + next(numbers) * (float(high) - low))

        def placed(low, high, size, places=places):
            return torch.tensor([int(next(places) * (high - low))])

        monkeypatch.setattr(torch.Tensor, "uniform_", drawn)
        monkeypatch.setattr(torch, "randint", placed)
        want = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.6, 1.0], [3 / 4, 4 / 3])
        got = (regions.top_B[i], regions.left_B[i], regions.height_B[i], regions.width_B[i])
        assert tuple(map(int, got)) == tuple(map(int, want))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (900, 30, (0, 430, 30, 40)),  # (top, left, height, width): as wide as 4/3 of the height
        (30, 900, (430, 0, 40, 30)),
    ],
)
def test_the_largest_centred_region_is_taken_where_none_fits(width, height, expected):
    """At 30:1 no region of half of the area has an allowed aspect."""
    regions = regions_of(width, height, 0.5, number=50)
    found = {tuple(row) for row in np.stack(regions[:4], axis=1).tolist()}
    assert found == {expected}


def test_regions_do_not_depend_on_the_batch():
    sizes_B2 = np.array([[80, 60], [40, 90], [64, 64]])
    hashes = hash_ids(["a", "b", "c"])
    together = draw_regions(hashes, 1, np.array([4, 5, 6]), sizes_B2, 0.08)
    alone = [draw_regions(hashes[i : i + 1], 1, 4 + i, sizes_B2[i : i + 1], 0.08) for i in range(3)]
    for values, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert np.array_equal(values, np.concatenate(parts))


def test_a_region_is_cut_resized_and_mirrored():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8))
    regions = Regions(*(np.array(values) for values in ([2, 0], [5, 10], [9, 20], [12, 20], [False, True])))
    cut = cut_resize_flip([image.numpy()] * 2, regions, np.array([[30, 20]] * 2), 8)
    want = [
        functional.resized_crop(image, 2, 5, 9, 12, [8, 8], antialias=True),
        functional.resized_crop(image, 0, 10, 20, 20, [8, 8], antialias=True).flip(-1),
    ]
    assert torch.equal(torch.from_numpy(cut), torch.stack(want))


def test_a_region_of_the_stored_image_is_found_in_one_of_another_size():
    """Of 60x40 at 30x30: columns 8 to 28 are 4 to 14, rows 10 to 30 are 7.5 to 22.5, to whole pixels 8 to 22. The one
    pixel 1 wide and high at the corner is still one."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 30, 30), np.uint8))
    regions = Regions(*(np.array(values) for values in ([10, 39], [8, 59], [20, 1], [20, 1], [False, False])))
    cut = cut_resize_flip([image.numpy()] * 2, regions, np.array([[60, 40]] * 2), 7)
    want = functional.resized_crop(image, 8, 4, 14, 10, [7, 7], antialias=True)
    assert torch.equal(torch.from_numpy(cut[0]), want)
    assert (cut[1] == image[:, 29:, 29:].numpy()).all()


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 31, 32, 33, 40, 70, 300])
def test_every_length_is_resized_as_pytorch_does_it(length):
    """Enlarged, as it is, and shrunk to less than half; both ways of one image at once, mirrored and not."""
    image = torch.randint(0, 256, (3, length, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(length))
    for turned in (image, image.mT.contiguous()):
        want = torch.nn.functional.interpolate(turned[None], [32, 17], mode="bilinear", antialias=True)[0]
        got = np.empty((2, 3, 32, 17), np.uint8)
        for mirrored in (False, True):
            resample(turned.numpy(), mirrored, got[int(mirrored)])
        assert torch.equal(torch.from_numpy(got), torch.stack([want, want.flip(-1)]))


def test_an_image_one_pixel_wide_is_resized():
    """PyTorch mixes the colours of its bytes up, so the oracle are its floats."""
    image = torch.randint(0, 256, (3, 41, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    got = np.empty((3, 32, 17), np.uint8)
    resample(image.numpy(), False, got)
    want = torch.nn.functional.interpolate(image[None].float(), [32, 17], mode="bilinear", antialias=True)[0]
    assert np.abs(got - want.numpy()).max() <= 1


def test_an_image_over_the_kept_memory_is_resized_too(monkeypatch):
    monkeypatch.setattr("wsol_pipeline.data.resample._KEPT", 0)
    test_every_length_is_resized_as_pytorch_does_it(33)
