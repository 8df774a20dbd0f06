"""What a job says on the terminal: a live table or one line per event, and a last screen that says what was found."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import MofNCompleteColumn, Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wsol_pipeline.data.images import STORED_PIXELS
from wsol_pipeline.redaction import redact
from wsol_pipeline.training.ledger import CONFIRMS, SEED, Ledger, front
from wsol_pipeline.training.pareto import COST, Rule, cell

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store
    from wsol_pipeline.training.checkpoint import Position
    from wsol_pipeline.training.config import Job
    from wsol_pipeline.training.plan import Plan
    from wsol_pipeline.training.study import Outcome, Ranked
    from wsol_pipeline.training.verdict import Row

FINISHED_SHOWN = 5
FRONT_ROWS = 20  # of a Pareto front on the last screen, the best


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
    done, said = 0, time.monotonic()

    def add(more: int) -> None:
        nonlocal done, said
        done += more
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"  {what}: {done}/{total} {unit}", flush=True)

    yield add


def print_shrunk(count: int, of: int) -> None:
    """Say it where a readout was to see photographs as they are stored, and some were too large for that."""
    pixels = f"{STORED_PIXELS / 1e6:.1f} million pixels"
    print(f"{count} of {of} photographs have more than {pixels} and were read shrunk to that.", flush=True)


def trial_view(plan: Plan, ledger: Ledger, mlflow_away: Callable[[], bool]) -> TrialLog:
    """How the trials of a study are shown: a live table on a terminal, else lines."""
    epochs, objective = plan.config.recipe.epochs, plan.config.objective
    if not is_live():
        return TrialLog(epochs, objective)
    return TrialTable(plan, ledger, mlflow_away)


class TrialLog:
    """Prints each event of a study's trials as one line. Called as `log(event, trial number, details)`."""

    def __init__(self, epochs: int, objective: str) -> None:
        self.epochs, self.objective, self.started = epochs, objective, time.monotonic()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to close."""

    def plan(self, trials: int, done: int, adopted: list[int], concurrent: int, job: Job, pruning: str) -> None:
        """Say what is about to happen."""
        place = f"{job.workers} worker(s) on {job.device}"
        self._line(f"{trials} trials, {done} done; {concurrent} at once, {place} each, {self.epochs} epochs")
        self._line(pruning)
        if adopted:
            self._line(f"going on with trial {', '.join(map(str, adopted))} of a driver that died")

    def __call__(self, event: str, number: int, details: Mapping[str, Any]) -> None:
        text = {
            "started": lambda: f"{_beginning(details)}: {format_parameters(details['parameters'])}",
            "epoch": lambda: self._epoch(details),
            "complete": lambda: f"complete: {self._reached(details)}",
            "pruned": lambda: "pruned",
            "failed": lambda: f"failed: {details['kind']}: {details.get('message', '')[:160]}",
            "died": lambda: "its worker died: another goes on from the last checkpoint",
            "stopping": lambda: "writes a checkpoint and ends; the same signal again leaves at once",
        }.get(event)
        if text:
            self._line(f"trial {number:>3} {text()}")

    def _reached(self, details: Mapping[str, Any]) -> str:
        value, *others = details["values"].items()
        return ", ".join([f"{self.objective} {value[1]:.1f}", *(f"{name} {cell(name, [of])}" for name, of in others)])

    def _epoch(self, record: Mapping[str, Any]) -> str:
        how = "all settings" if record["searched"] else "one setting"
        return (
            f"epoch {record['epoch']}/{self.epochs}  loss {record['loss']:.3f}  "
            f"{self.objective} {record['value']:.1f} ({how})  {record['images_per_second']:.0f} images/s"
        )

    def _line(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)


@dataclass
class _Shown:
    """A trial as a row of the table. Epochs count from 0; `rate` is in images a second."""

    number: int
    parameters: str
    confirms: bool = False
    state: str = "waits"
    epoch: int = 0
    samples: int = 0
    value: str = ""
    rate: float = 0.0
    began: float = field(default_factory=time.monotonic)  # waiting; then the open epoch, as far as it was seen
    began_at: int = 0  # samples at that time

    def move(self, position: Position) -> None:
        """Take the position that workers tell while they train."""
        now = time.monotonic()
        if self.state != "trains" or position.epoch != self.epoch:
            self.state, self.began, self.began_at = "trains", now, position.samples
        self.epoch, self.samples = position.epoch, position.samples
        if now - self.began >= 1 and self.samples > self.began_at:
            self.rate = (self.samples - self.began_at) / (now - self.began)


class TrialTable(TrialLog):
    """Shows a study's trials as a table that lives: those that run, the last that ended, counts, best, time left.

    It keeps what it shows, however many trials there are. Its thread draws while the study's changes it.
    """

    def __init__(self, plan: Plan, ledger: Ledger, mlflow_away: Callable[[], bool]) -> None:
        super().__init__(plan.config.recipe.epochs, plan.config.objective)
        options = plan.options
        self.title = f"Study {options.name}: {self.objective} on validation ({plan.config.protocol})"
        self.total = options.trials + options.confirm * options.confirm_seeds
        self.rows, self.workers, self.mlflow_away = plan.dataset.train.num_rows, options.workers, mlflow_away
        self.counts, self.device_seconds = ledger.balance(), ledger.device_seconds()
        self.best = max(((s.mean, s.number) for s in ledger.ranking()), default=None)
        self.running: dict[int, _Shown] = {}
        self.finished: deque[_Shown] = deque(maxlen=FINISHED_SHOWN)
        self.epoch_seconds: deque[float] = deque(maxlen=50)
        self.concurrent, self.note = 1, ""
        self.console = Console(markup=False, emoji=False)
        self.size = self.console.size
        self.live = Live(get_renderable=self.draw, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> TrialTable:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def plan(self, trials: int, done: int, adopted: list[int], concurrent: int, job: Job, pruning: str) -> None:
        self.concurrent = concurrent
        self._line(pruning)
        if adopted:
            self._line(f"going on with trial {', '.join(map(str, adopted))} of a driver that died")

    def __call__(self, event: str, number: int, details: Mapping[str, Any]) -> None:
        if event == "started":
            confirms = CONFIRMS in details
            text = f"confirms trial {details[CONFIRMS]} with seed {details[SEED]}: " if confirms else ""
            self.running[number] = _Shown(number, text + format_parameters(details["parameters"]), confirms)
        elif event in ("complete", "pruned", "failed"):
            self._end(event, number, details)
        elif row := self.running.get(number):
            self._change(row, event, details)

    def _change(self, row: _Shown, event: str, details: Mapping[str, Any]) -> None:
        if event == "launched":
            row.state = "starts"
        elif event == "position":
            row.move(details["position"])
        elif event == "stopping":
            self.note = "stopping: trials write a checkpoint and end; Ctrl+C again leaves at once"
        elif event == "epoch":
            row.state, row.epoch, row.samples, row.rate = "", details["epoch"], 0, details["images_per_second"]
            row.value = f"{details['value']:.1f}" if details["searched"] else f"({details['value']:.1f})"
            self.device_seconds += details["device_seconds"]
            self.epoch_seconds.append(details["device_seconds"] / self.workers)

    def _end(self, event: str, number: int, details: Mapping[str, Any]) -> None:
        row = self.running.pop(number, None) or _Shown(number, "")  # none: its driver died before it was told
        row.state = f"failed: {details['kind']}" if event == "failed" else event
        self.counts["fail" if event == "failed" else event] += 1
        self.finished.append(row)
        if event == "complete":
            value = details["record"]["value"]
            row.value, row.epoch = f"{value:.1f}", self.epochs
            if not row.confirms and (self.best is None or value > self.best[0]):
                self.best = value, number

    def draw(self) -> Group:
        """The table as it stands, in what the terminal has room for."""
        if self.console.size != self.size:  # a narrower terminal has wrapped what stood there: begin again
            self.size = self.console.size
            self.console.clear()
        width, height = self.size
        running, room = list(self.running.values()), height - 9  # lines that trials may take
        ended = list(reversed(self.finished))[: room // 2]
        shown = running[: max(1, room - len(ended))]
        # two columns stay free at the end of the last line, for the ^C that a terminal echoes
        table = Table(box=None, width=width - 2, padding=(0, 2, 0, 0), header_style="bold")
        for name, fixed, justify in (
            ("trial", 5, "right"), ("", 20 if width >= 100 else 10, "left"), ("epoch", 7, "right"),
            ("images/s", 8, "right"), ("value", 6, "right"), ("parameters", None, "left"),
        ):  # fmt: skip
            ratio = None if fixed else 1
            table.add_column(name, width=fixed, ratio=ratio, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
        for row in shown:
            table.add_row(*self._cells(row))
        if len(shown) < len(running):
            table.add_row("", f"+ {len(running) - len(shown)} more")
        for row in ended:
            table.add_row(*self._cells(row), style="dim")
        lines = [self.title, *self._summary(len(running)), *self._waiting(running)]
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines), table)

    def _cells(self, row: _Shown) -> tuple[Any, ...]:
        done = (row.epoch + row.samples / self.rows) / self.epochs
        epoch = f"{min(row.epoch + (row.samples > 0), self.epochs)}/{self.epochs}"
        rate = f"{row.rate:,.0f}" if row.rate and row.number in self.running else ""
        state: Any = row.state
        if row.state == "waits":
            state = f"waits {time.monotonic() - row.began:.0f} s"
        elif row.state == "trains" and row.samples >= self.rows:
            state = "validates"
        elif row.state in ("", "trains"):
            state = ProgressBar(total=1.0, completed=done)
        return str(row.number), state, epoch, rate, row.value, row.parameters

    def _summary(self, running: int) -> tuple[str, str]:
        ended = self.counts["complete"] + self.counts["pruned"] + self.counts["fail"]
        to_go = max(0, self.total - ended - running)
        counts = (
            f"{self.counts['complete']} complete, {self.counts['pruned']} pruned, {self.counts['fail']} failed, "
            f"{running} running, {to_go} to go"
        )
        told = [f"{format_hours((time.monotonic() - self.started) / 3600)} passed"]
        if left := self._seconds_left(to_go):
            told.append(f"at most {format_hours(left / 3600)} left")
        told.append(f"{format_hours(self.device_seconds / 3600)} of device time")
        best = f"best {self.best[0]:.1f} (trial {self.best[1]}); " if self.best else ""
        return counts, best + ", ".join(told)

    def _seconds_left(self, to_go: int) -> float:
        """If every trial ran all its epochs, at the speed of the last ones; 0 before any has ended."""
        if not self.epoch_seconds:
            return 0.0
        each = sum(self.epoch_seconds) / len(self.epoch_seconds)
        open_epochs = sum(self.epochs - row.epoch - row.samples / self.rows for row in list(self.running.values()))
        return (open_epochs + to_go * self.epochs) * each / self.concurrent

    def _waiting(self, running: Sequence[_Shown]) -> list[str]:
        waits = sum(row.state == "waits" and time.monotonic() - row.began > 60 for row in running)
        found = [f"{waits} waiting for a place in the cluster"] if waits else []
        found += ["MLflow is away: it is written when it is back"] if self.mlflow_away() else []
        return [*found, *([self.note] if self.note else [])]

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False)


def _beginning(details: Mapping[str, Any]) -> str:
    if CONFIRMS not in details:
        return "starts"
    return f"starts, confirming trial {details[CONFIRMS]} with seed {details[SEED]}"


def format_parameters(parameters: Mapping[str, Any]) -> str:
    """`lambda 0.91, alpha 0.5`: floats with three significant digits."""
    return ", ".join(f"{name.rstrip('_')} {format_value(value)}" for name, value in parameters.items())


def format_value(value: Any) -> str:
    """A parameter's value: floats with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def ranking_markdown(
    ranking: Sequence[Ranked], objectives: Sequence[str], published: Mapping[str, Mapping[str, float]], sure: str = ""
) -> str:
    """The study's table as Markdown, with what the papers report for the settings among its trials below it.

    Args:
        published: preset id -> the paper's figures, measured on its own data and protocol.
        sure: by what rule the first was picked, and how sure that is, in sentences.
    """
    heads = " | ".join(name if name == COST else f"{name} (validation)" for name in objectives)
    lines = [f"| trial | setting | parameters | {heads} |", "|---" * (3 + len(objectives)) + "|"]
    lines += [
        f"| {standing.number} | {note} | {format_parameters(p)} | {' | '.join(standing.cells(objectives))} |"
        for standing, note, p in ranking
    ]
    lines += ["", sure] if sure else []
    if published:
        lines += ["", "Published, on the paper's own data and protocol:", "", "| setting | figures |", "|---|---|"]
        lines += [f"| {name} | {format_parameters(figures)} |" for name, figures in published.items()]
    return "\n".join(lines) + "\n"


def print_interrupted(
    balance: Mapping[str, int], kept: Mapping[int, Position | None], asked: Collection[int], folder: Store
) -> None:
    """The last screen of an interrupted study.

    Args:
        kept: where the checkpoint of each trial that did not end stands, None without one.
        asked: trials that wrote theirs when they were asked to end; others' is of their last interval.
    """
    ended = f"{balance['complete']} complete, {balance['pruned']} pruned, {balance['fail']} failed"
    print(f"\ninterrupted: trials that ended ({ended}) and checkpoints are kept in {folder.uri}")
    for number, position in kept.items():
        where, when = "nothing is trained yet", ""
        if position:
            samples = f" + {position.samples} images" if position.samples else ""
            where = f"checkpoint after {position.epoch} epochs{samples}"
            when = ", written now" if number in asked else ", the last one it wrote"
        print(f"trial {number:>3} goes on: {where}{when}", flush=True)


def print_outcome(outcome: Outcome, plan: Plan) -> None:
    """The last screen of a study."""
    console = Console(width=None if Console().is_terminal else 110, markup=False, emoji=False)
    name, where = plan.options.name, plan.options.storage
    balance, objective = outcome.balance, plan.config.objective
    console.print(
        f"\n{balance['started']} trials started = {balance['complete']} complete + {balance['pruned']} pruned + "
        f"{balance['fail']} failed"
    )
    if outcome.stopped:
        console.print(f"{outcome.stopped}: the same command with a larger limit continues", soft_wrap=True)
    objectives = plan.rule.objectives if plan.rule else (objective,)
    what, shown = objective, outcome.ranking[:8]
    if plan.rule:
        found = on_front(outcome.ranking, plan.rule)
        what, shown = f"the Pareto front ({len(found)} settings)", found[:FRONT_ROWS]
    table = Table(title=f"Study {plan.options.name}: {what} on validation ({plan.config.protocol})")
    for column in ("trial", "", "parameters", *objectives):
        table.add_column(column, justify="right" if column in objectives else "left")
    for standing, note, parameters in shown:
        table.add_row(str(standing.number), note, format_parameters(parameters), *standing.cells(objectives))
    console.print(table)
    if outcome.rule:
        console.print(outcome.rule)
    if outcome.doubt:
        console.print(outcome.doubt)
    for number, failure in outcome.failures.items():
        console.print(f"trial {number} failed: {failure['kind']}: {failure['message'][:200]}")
    lines = {
        "spent": f"{format_hours(outcome.device_hours)} of device time in all, {format_hours(outcome.hours)} just now",
        "model": outcome.best.uri if outcome.best else "damaged (below)",
        "study": plan.folder.uri,
        "MLflow": f"models:/{name}/{outcome.model_version}" if outcome.model_version else "not written in full",
        "": how_to_open_mlflow(where),
        "next": f"python rayjobs/evaluate.py --study {name} --storage {shlex.quote(where)}",
        "more": "the same command with a larger --trials continues this study",
    }
    for title, line in lines.items():
        console.print(f"{title:<7} {line}", soft_wrap=True, highlight=False, markup=False)


def how_to_open_mlflow(storage: str) -> str:
    """What to type or to open to see what is tracked."""
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if server.startswith("http"):
        return f"open {redact(server)}"
    if server:
        return f"mlflow server --backend-store-uri {shlex.quote(redact(server))}"
    return f"make mlflow RUNS={shlex.quote(storage)}, then open http://127.0.0.1:5000"


def on_front(ranking: Sequence[Ranked], rule: Rule) -> list[Ranked]:
    """The settings of a study of several objectives that no other beats, best first."""
    found = front([standing for standing, _, _ in ranking], rule)
    return [row for row in ranking if row[0] in found]


def format_hours(hours: float) -> str:
    """`41 s`, `12.5 min` or `3.2 h`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h"


def print_verdict(
    rows: Sequence[Row], objective: str, protocol: str, images: int, folder: Store, picture: str, storage: str
) -> None:
    """A table per metric of a final evaluation: validation, test transferred with its interval, test oracle; beside
    rows of a preset what its paper reports."""
    console = Console(width=None if Console().is_terminal else 126, markup=False, emoji=False)
    named = (name for row in rows for name in row.published)
    metrics = dict.fromkeys((objective, "gt_known_loc", "top1_loc", "map_50", *named))
    for metric in (name for name in metrics if any(name in row.transferred for row in rows)):
        table = Table(
            title=f"{metric} (%), protocol {protocol}, {images} test images",
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("model", overflow="fold")  # names give way, numbers never do
        table.add_column("readout > threshold", overflow="fold")
        for name in ("validation", "test transferred", "95 % interval", "test oracle (upper bound)"):
            table.add_column(name, justify="right", width=13 if "interval" in name else 11)
        if preset := next((row.preset for row in rows if metric in row.published), None):
            table.add_column("paper", justify="right", min_width=5)
            table.caption = f"paper: {preset}, on its own data"
        for row in (row for row in rows if metric in row.transferred):
            low_high = row.intervals.get("transferred", {}).get(metric)
            val, test, oracle = (
                f"{values[metric]:.1f}" if metric in values else "" for values in (row.val, row.transferred, row.oracle)
            )
            interval = f"{low_high[0]:.1f} to {low_high[1]:.1f}" if low_high else ""
            paper = [f"{row.published[metric]:.1f}"] if metric in row.published else []
            table.add_row(row.label, row.readout, val, test, interval, oracle, *paper)
        console.print(table)
    console.print(f"gallery: {picture}", soft_wrap=True)
    console.print(f"results: {folder.path('evaluations')}", soft_wrap=True)
    console.print(f"MLflow:  {how_to_open_mlflow(storage)}", soft_wrap=True)
