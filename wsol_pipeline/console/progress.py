"""How long work is told to go on: a bar for who looks at a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from wsol_pipeline.text import format_hours, format_rate


def is_live() -> bool:
    """Whether somebody looks at a terminal that can be redrawn; else lines are printed."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


@contextmanager
def progress(what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Tell how a long pass goes on; what it gives is called with how many more are done.

    A bar that vanishes on a terminal, else a line every few seconds.
    """
    if is_live():
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)
        return
    done, began = 0, time.monotonic()
    said = began

    def add(more: int) -> None:
        nonlocal done, said
        done, now = done + more, time.monotonic()
        if now - said > 5:
            said, rate = now, done / (now - began)
            left = f", {format_hours((total - done) / rate / 3600)} left" if 0 < done < total else ""
            print(f"  {what}: {done}/{total} {unit}, {format_rate(rate)} a second{left}", flush=True)

    yield add
