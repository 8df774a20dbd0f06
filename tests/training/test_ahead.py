"""Batches made ahead: the same ones, in their order, with the errors of whoever makes them."""

import contextlib
import threading

import pytest

from wsol_pipeline.training.ahead import ahead


def numbers(made: list[int], count: int = 5):
    for number in range(count):
        made.append(number)
        yield number


@pytest.mark.parametrize("most", [0, 1, 3])
def test_items_come_in_their_order_each_prepared(most):
    assert list(ahead(numbers([]), most, lambda n: 10 * n)) == [0, 10, 20, 30, 40]


def test_no_more_are_made_than_there_is_room_for():
    made, room = [], threading.Event()
    items = ahead(numbers(made, 100), 2, lambda n: room.set() or n if n == 3 else n)
    assert next(items) == 0
    assert room.wait(30)  # 1 and 2 wait to be asked for, 3 is in the maker's hand
    assert made == [0, 1, 2, 3]
    items.close()
    assert made == [0, 1, 2, 3]


def test_without_room_an_item_is_made_when_it_is_asked_for():
    made = []
    items = ahead(numbers(made), 0)
    assert (next(items), made) == (0, [0])


@pytest.mark.parametrize("most", [0, 2])
def test_an_error_comes_where_the_item_would_have(most):
    seen = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(ahead(numbers([]), most, lambda n: 1 // (2 - n)))
    assert seen == [0, 1]


def test_closing_ends_the_thread():
    before = set(threading.enumerate())
    with contextlib.closing(ahead(numbers([], 100), 2)) as items:
        next(items)
        assert any(thread.name == "ahead" for thread in set(threading.enumerate()) - before)
    assert set(threading.enumerate()) <= before
