"""The epoch plan: each sample once, and restarts and world sizes as other slices of the same order."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsol_pipeline.data.plan import EpochPlan
from wsol_pipeline.errors import UsageError

PLANS = st.builds(
    EpochPlan,
    rows=st.integers(8, 500),
    batch_size=st.integers(8, 64),
    seed=st.integers(0, 2**31),
    block_rows=st.integers(1, 40),
    window_rows=st.integers(1, 200),
)
EPOCHS = st.integers(0, 50)
WORLDS = st.integers(1, 4)


def whole_epoch(plan: EpochPlan, epoch: int, world: int, start_sample: int = 0) -> list[np.ndarray]:
    """The global batches, put together from what the ranks get."""
    ranks = [plan.batches(epoch, rank=rank, world=world, start_sample=start_sample) for rank in range(world)]
    return [np.concatenate([rows for _, rows in parts]) for parts in zip(*ranks, strict=True)]


@given(PLANS, EPOCHS)
def test_an_epoch_has_each_row_once(plan, epoch):
    assert np.array_equal(np.sort(plan.order(epoch)), np.arange(plan.rows))


@given(PLANS, EPOCHS, WORLDS)
def test_any_world_size_gives_the_same_global_batches(plan, epoch, world):
    batches = whole_epoch(plan, epoch, world)
    assert len(batches) == plan.num_batches
    assert np.array_equal(np.concatenate(batches), plan.order(epoch))


@given(PLANS, EPOCHS, WORLDS)
def test_without_the_last_batch_all_are_whole(plan, epoch, world):
    plan = replace(plan, drop_last=True)
    batches = whole_epoch(plan, epoch, world)
    assert np.array_equal(np.concatenate(batches), plan.order(epoch)[: plan.samples])
    if plan.rows < plan.batch_size:
        assert [len(rows) for rows in batches] == [plan.rows]
    else:
        assert {len(rows) for rows in batches} == {plan.batch_size}
        assert plan.rows - plan.samples < plan.batch_size


@given(PLANS, EPOCHS, WORLDS, st.data())
def test_a_restart_at_any_batch_in_another_world_goes_on_where_it_was(plan, epoch, world, data):
    done = data.draw(st.integers(0, plan.num_batches), label="batches done")
    start = int(plan.bounds()[done])
    rest = whole_epoch(plan, epoch, world, start_sample=start)
    assert np.array_equal(np.concatenate([np.empty(0, int), *rest]), plan.order(epoch)[start:])


@given(PLANS, EPOCHS, WORLDS)
def test_ranks_get_equal_parts_and_never_none(plan, epoch, world):
    for parts in zip(*(plan.batches(epoch, rank=rank, world=world) for rank in range(world)), strict=True):
        sizes = [len(rows) for _, rows in parts]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


@given(PLANS, EPOCHS)
def test_a_window_is_made_of_whole_blocks(plan, epoch):
    order, bounds = plan.windows(epoch)
    assert len(bounds) - 1 == plan.num_windows
    for low, high in pairwise(bounds):
        blocks, counts = np.unique(order[low:high] // plan.block_rows, return_counts=True)
        sizes = np.minimum(plan.block_rows, plan.rows - blocks * plan.block_rows)
        assert np.array_equal(counts, sizes)
        assert len(blocks) <= max(1, plan.window_rows // plan.block_rows)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (20, [10, 10]),
        (25, [10, 10, 5]),  # half a batch stands for itself
        (24, [10, 14]),  # less joins the batch before it
        (4, [4]),  # there is none before
        (9, [9]),
    ],
)
def test_the_remainder(rows, sizes):
    assert np.diff(EpochPlan(rows, 10, seed=0).bounds()).tolist() == sizes


def pairs(batches: list[np.ndarray]) -> list[np.ndarray]:
    return [np.concatenate(batches[first : first + 2]) for first in range(0, len(batches), 2)]


@given(PLANS, EPOCHS)
def test_a_batch_draws_on_all_blocks_of_its_window_alike(plan, epoch):
    order, bounds = plan.windows(epoch)
    batches = np.searchsorted(plan.bounds(), np.arange(plan.rows), side="right")
    for low, high in pairwise(bounds):
        whole = order[low:high] // plan.block_rows != plan.rows // plan.block_rows  # the last block may be short
        for batch in np.unique(batches[low:high]):
            drawn = order[low:high][whole & (batches[low:high] == batch)] // plan.block_rows
            counts = [np.sum(drawn == block) for block in np.unique(order[low:high][whole] // plan.block_rows)]
            assert max(counts, default=0) - min(counts, default=0) <= 1


@pytest.mark.parametrize(("world", "batch", "most"), [(1, 32, 1.0), (8, 256, 1.0), (8, 100, 3.0), (64, 2048, 3.0)])
def test_ranks_share_few_blocks(world, batch, most):
    """Row groups that all ranks read in an epoch, over those that there are: 8 and 22 if they took any rows."""
    plan = EpochPlan(40_960, batch, seed=0, window_rows=1024 if batch < 1000 else 1216)
    of_ranks = [
        np.unique(np.concatenate([rows for _, rows in plan.batches(1, rank=rank, world=world)]) // plan.block_rows)
        for rank in range(world)
    ]
    assert sum(map(len, of_ranks)) / (plan.rows / plan.block_rows) <= most


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    first = EpochPlan(320, 16, seed=1)
    doubled = whole_epoch(EpochPlan(320, 32, seed=1), 3, 1)
    for large, small in zip(doubled, pairs(whole_epoch(first, 3, 1)), strict=True):
        assert sorted(large) == sorted(small)  # a batch is two of half its size
    assert not np.array_equal(first.order(3), first.order(4))
    assert not np.array_equal(first.order(3), EpochPlan(320, 16, seed=2).order(3))


def test_a_set_that_fits_a_window_is_shuffled_globally():
    """Neighbours of a block of 32 end up anywhere: they spread as a uniform draw does (its sd is n / 12^.5)."""
    places = np.argsort(EpochPlan(2048, 16, seed=5).order(0))
    spread = places.reshape(-1, 32).std(axis=1).mean()
    assert spread == pytest.approx(2048 / 12**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_sample": 7}, "batch boundary"),
        ({"start_sample": 101}, "batch boundary"),
        ({"world": 6}, "twice the number of workers"),
        ({"rank": 2, "world": 2}, "rank must be in 0..1"),
    ],
)
def test_wrong_slices_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        list(EpochPlan(100, 10, seed=0).batches(0, **options))


@pytest.mark.parametrize("fields", [{"rows": 0}, {"batch_size": 0}, {"seed": -1}, {"window_rows": 0}])
def test_wrong_fields_are_refused(fields):
    with pytest.raises(UsageError, match=next(iter(fields))):
        EpochPlan(**{"rows": 10, "batch_size": 2, "seed": 0, **fields})
