"""Work behind the back of whoever makes it: maps are scored by CPUs while the device makes the next ones."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Behind:
    """One piece of work after the other, in a thread of its own; whoever hands them in waits while `most` are open.

    With `most` 0 each is done at once, by whoever hands it in.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: deque[tuple[Future[None], Callable[[], None] | None]] = deque()
        self._thread = ThreadPoolExecutor(1, "behind") if most else None

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if error is None:
                self._settle(0)
        finally:
            if self._thread:
                self._thread.shutdown(cancel_futures=True)

    def add(self, work: Callable[[], None], after: Callable[[], None] | None = None) -> None:
        """Hand in `work`; once it is done the thread that hands work in calls `after`. Raises what earlier work did."""
        if self._thread is None:
            work()
            if after:
                after()
            return
        self._open.append((self._thread.submit(work), after))
        self._settle(self.most)

    def _settle(self, most: int) -> None:
        while len(self._open) > most:
            work, after = self._open.popleft()
            work.result()
            if after:
                after()
