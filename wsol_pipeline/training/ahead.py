"""Batches made ahead: a thread reads and crops the next ones while the device trains on this one."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
_TURN = 0.1  # seconds after which a thread that waits for room looks whether anybody still wants its items


def ahead(items: Iterator[T], most: int, prepare: Callable[[T], T] = lambda item: item) -> Generator[T, None, None]:
    """The `items` in their order, each `prepare`d, with up to `most` of them made before they are asked for.

    A thread makes them, whose errors are raised where the item would have come. Closing this ends it, once it has made
    what it is at. With `most` 0 each is made when it is asked for.
    """
    if not most:
        yield from map(prepare, items)
        return
    ready: queue.Queue[Callable[[], T] | None] = queue.Queue(most)
    unwanted = threading.Event()
    maker = threading.Thread(target=_make, args=(items, prepare, ready, unwanted), name="ahead", daemon=True)
    maker.start()
    try:
        while given := ready.get():
            yield given()
    finally:
        unwanted.set()
        maker.join()


def _make(items: Iterator[T], prepare: Callable[[T], T], ready: "queue.Queue[Any]", unwanted: threading.Event) -> None:
    """Hand on functions that give an item or raise, and None at the end, as long as they are wanted."""
    last = None
    try:
        for item in items:
            if not _hand_on(partial(_same, prepare(item)), ready, unwanted):
                return
    except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for the item has to know
        last = _raising(error)
    _hand_on(last, ready, unwanted)


def _same(item: T) -> T:
    return item


def _raising(error: BaseException) -> Callable[[], Any]:
    def give() -> Any:
        raise error

    return give


def _hand_on(given: Callable[[], T] | None, ready: "queue.Queue[Any]", unwanted: threading.Event) -> bool:
    """Whether there was room before nobody wanted it any more."""
    while not unwanted.is_set():
        try:
            ready.put(given, timeout=_TURN)
            return True
        except queue.Full:
            continue
    return False
