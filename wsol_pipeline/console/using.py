"""How the use of a model is told: pace and time left, then what came of it and where it lies."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Table
from rich.text import Text

from wsol_pipeline.console.progress import is_live
from wsol_pipeline.text import format_hours, metric_name
from wsol_pipeline.use.judged_student import Judged, verdict
from wsol_pipeline.use.run import PROBLEMS, Outcome

EVERY_SECONDS = 5
SHOWN = 3  # of the broken images


class Pace(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f} images, {task.speed or 0:.1f}/s")


@contextmanager
def pace(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Tell images a second and the time left: a bar that vanishes on a terminal, else a line every few seconds."""
    if is_live():
        with Progress(*Progress.get_default_columns(), Pace(), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)
        return
    started = said = time.monotonic()
    done = 0

    def add(more: int) -> None:
        nonlocal done, said
        done += more
        now = time.monotonic()
        if now - said > EVERY_SECONDS:
            said = now
            print(f"  {pace_line(what, done, total, now - started)}", flush=True)

    yield add


def pace_line(what: str, done: int, total: int, seconds: float) -> str:
    """`localized: 320/2000 images, 15.3/s, 1.8 min left`."""
    rate = done / max(seconds, 1e-9)
    return f"{what}: {done}/{total} images, {rate:.1f}/s, {format_hours((total - done) / max(rate, 1e-9) / 3600)} left"


def print_students(rows: Sequence[Judged], boxes: int) -> None:
    """Detectors beside their teacher on test."""
    table = Table(title=f"test (%); students learned from {boxes} boxes; beyond: the difference, paired 95 % interval")
    table.add_column("")
    for metric in rows[0].figures:
        table.add_column(metric_name(metric), justify="right")
        table.add_column("beyond the teacher", justify="right")
    table.add_column("AP, IoU 0.50", justify="right")
    for row in rows:
        cells = []
        for metric, value in row.figures.items():
            difference, low, high = row.beyond[metric]
            told = "" if row is rows[0] else f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
            cells += [f"{value:.1f}", told]
        table.add_row(row.name, *cells, f"{row.average_precision:.1f}")
    Console(width=126, markup=False, emoji=False).print(table)
    print(verdict(rows))


def print_localized(outcome: Outcome, seconds: float, written: Sequence[str]) -> None:
    """What a localization has come to, and where it lies."""
    done, fresh = outcome.images - len(outcome.problems), outcome.images - outcome.done_before
    for note in outcome.notes:
        print(f"note: {note}")
    rate = f" ({fresh / max(seconds, 1e-9):.1f} images/s)" if fresh else ""
    print(f"{done} images localized, {outcome.boxes} boxes; {fresh} of them now in {seconds:.0f} s{rate}.")
    for problem in outcome.problems[:SHOWN]:
        print(f"broken: {problem['uri']}: {problem['reason']}")
    if len(outcome.problems) > SHOWN:
        print(f"        and {len(outcome.problems) - SHOWN} more in {outcome.store.path(PROBLEMS)}")
    print(f"rows      {outcome.store.path('parts')}")
    for place in written:
        print(f"{'':<9} {place}")
