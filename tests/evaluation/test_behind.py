"""Scoring behind the back of what makes maps: the same counts, in order, and its errors told."""

import contextlib
import threading

import numpy as np
import pytest
import torch

from wsol_pipeline.evaluation import evaluate
from wsol_pipeline.evaluation.behind import Behind


def test_work_is_done_in_its_order_and_told_by_whoever_hands_it_in():
    done, told = [], []
    with Behind(2) as scored:
        for number in range(5):
            scored.add(
                lambda n=number: done.append((n, threading.current_thread().name)),
                after=lambda n=number: told.append((n, threading.current_thread())),
            )
            assert number - len(told) < 2  # no more than two wait
    assert [number for number, _ in done] == list(range(5))
    assert all(name.startswith("behind") for _, name in done)
    assert told == [(number, threading.current_thread()) for number in range(5)]


def test_without_room_for_work_it_is_done_at_once():
    done = []
    with Behind(0) as scored:
        scored.add(lambda: done.append("work"), after=lambda: done.append("after"))
        assert done == ["work", "after"]


@pytest.mark.parametrize("most", [0, 2])
def test_what_work_raises_is_raised(most):
    after = []
    with pytest.raises(ZeroDivisionError), Behind(most) as scored:
        scored.add(lambda: 1 / 0, after=lambda: after.append(True))
    assert not after


def test_who_leaves_early_waits_for_no_more_than_what_runs():
    begun, go_on, done = threading.Event(), threading.Event(), []
    with contextlib.suppress(KeyboardInterrupt), Behind(2) as scored:
        scored.add(lambda: (begun.set(), go_on.wait(30), done.append("first")))
        scored.add(lambda: done.append("second"))
        begun.wait(30)
        go_on.set()
        raise KeyboardInterrupt
    assert done in (["first"], ["first", "second"])  # the second may have begun before the interrupt


def test_parts_have_a_size_and_at_least_a_map():
    maps = [(index, torch.zeros(2, 4)) for index in range(5)]  # 32 bytes each
    cut = lambda size: [[index for index, _ in part] for part in evaluate.parts(iter(maps), size)]  # noqa: E731
    assert cut(0) == [[0], [1], [2], [3], [4]]
    assert cut(64) == [[0, 1], [2, 3], [4]]
    assert cut(1000) == [[0, 1, 2, 3, 4]]
    assert list(evaluate.parts(iter([]), 64)) == []


def test_one_thread_of_a_cpu_scores_in_turn():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert evaluate.open_parts("cpu") == 0
        assert evaluate.open_parts("cuda:0") > 0
        torch.set_num_threads(2)
        assert evaluate.open_parts("cpu") > 0
    finally:
        torch.set_num_threads(before)


def test_tensors_on_the_host_are_not_copied():
    tensors = torch.zeros(3), torch.ones(2, dtype=torch.int64)
    assert all(a is b for a, b in zip(evaluate.together(*tensors)(), tensors, strict=True))
    assert np.shares_memory(evaluate.together(*tensors)()[0].numpy(), tensors[0].numpy())
