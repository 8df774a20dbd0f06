"""Crop and flip are functions of (seed, epoch, id) alone, and cut what they say."""

import numpy as np
import torch

from wsol_pipeline.data.augment import Crops, crop_flip, draw_crops, hash_ids, splitmix64, uniform


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
