"""A study's trials on the terminal: a table that lives, or a line per event."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wsol_pipeline.console.progress import is_live
from wsol_pipeline.console.screens import print_interrupted
from wsol_pipeline.study.ledger import Ledger
from wsol_pipeline.study.pareto import cell
from wsol_pipeline.study.plan import Plan
from wsol_pipeline.study.standings import CONFIRMS, SEED
from wsol_pipeline.text import format_hours, format_parameters, format_rate
from wsol_pipeline.training.checkpoint import Position
from wsol_pipeline.training.run import CROWDED

FINISHED_SHOWN = 5
EVERY = 30.0  # seconds between two lines of how far trials are
SHOWN_IN_A_LINE = 4  # trials


class Screen:
    """A listener that shows a study's trials while they run: a live table on a terminal, else lines."""

    def __init__(self, plan: Plan, mlflow_away: Callable[[], bool]) -> None:
        self.plan, self.mlflow_away = plan, mlflow_away
        self.view = TrialLog(plan)  # until there are trials to show

    def __call__(self, event: str, trial: int | None, details: Mapping[str, Any]) -> None:
        match event:
            case "opened" if is_live():
                self.view = TrialTable(self.plan, details["ledger"], self.mlflow_away)
            case "planned":
                self.view.begin(details)
            case "over" | "closed":
                self.view.end()
            case "interrupted":
                print_interrupted(**details, folder=self.plan.folder)
            case _ if trial is not None:
                self.view(event, trial, details)


@dataclass
class _Shown:
    """A trial while it runs, and as a row of the table. Epochs count from 0; `rate` is in images a second."""

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
        if now - self.began >= 1 and position.samples > self.samples:  # it stands still while it validates
            self.rate = (position.samples - self.began_at) / (now - self.began)
        self.epoch, self.samples = position.epoch, position.samples


class TrialLog:
    """Prints what happens to a study's trials as lines. Called as `log(event, trial number, details)`.

    While they train a line every `EVERY` seconds says how far they are, how fast they go and how long that will take.
    """

    def __init__(self, plan: Plan) -> None:
        self.epochs, self.objective = plan.config.recipe.epochs, plan.config.objective
        self.rows, self.workers = plan.dataset.train.num_rows, plan.options.workers
        self.total = plan.options.trials + plan.options.confirm * plan.options.confirm_seeds
        self.running: dict[int, _Shown] = {}
        self.ended, self.concurrent = 0, 1
        self.epoch_seconds: deque[float] = deque(maxlen=50)
        self.started = self.told = time.monotonic()

    def begin(self, planned: Mapping[str, Any]) -> None:
        """Say what is about to happen: the details of the event "planned"."""
        self.concurrent, self.ended = planned["concurrent"], planned["done"]
        told = "{trials} trial(s), {done} done; {concurrent} at once, {workers} worker(s) on {device} each".format(
            **planned
        )
        self._line(told)
        self._say_what_holds(planned)

    def _say_what_holds(self, planned: Mapping[str, Any]) -> None:
        images = f"training images: {planned['images']}"
        for text in (planned["recipe"], images, *planned["measures"], planned["pruning"]):
            self._line(text)
        if adopted := planned["adopted"]:
            self._line(f"continues trial{'s' * (len(adopted) > 1)} {', '.join(map(str, adopted))}")

    def end(self) -> None:
        """Nothing is left to close."""

    def __call__(self, event: str, number: int, details: Mapping[str, Any]) -> None:
        self._follow(event, number, details)
        text = {
            "started": lambda: f"{_beginning(details)}: {format_parameters(details['parameters'])}".rstrip(": "),
            "epoch": lambda: self._epoch(details),
            "complete": lambda: f"complete: {self._reached(details)}",
            "pruned": lambda: "pruned",
            "failed": lambda: f"failed: {details['kind']}: {details.get('message', '')[:160]}",
            "died": lambda: _death(details),
            "stopping": lambda: "writes a checkpoint and ends; the same signal again leaves at once",
        }.get(event)
        if text:
            self._line(f"trial {number:>3} {text()}")
        elif event == "position" and time.monotonic() - self.told >= EVERY:
            self.told = time.monotonic()
            self._line(self._progress())

    def _follow(self, event: str, number: int, details: Mapping[str, Any]) -> None:
        """Keep where trials stand."""
        if event == "started":
            confirms = CONFIRMS in details
            text = f"confirms trial {details[CONFIRMS]} with seed {details[SEED]}: " if confirms else ""
            self.running[number] = _Shown(number, text + format_parameters(details["parameters"]), confirms)
        elif event in ("complete", "pruned", "failed"):
            self.ended += 1
            self.running.pop(number, None)
        elif row := self.running.get(number):
            self._change(row, event, details)

    def _change(self, row: _Shown, event: str, details: Mapping[str, Any]) -> None:
        if event == "launched":
            row.state = "starts"
        elif event == "position":
            row.move(details["position"])
        elif event == "epoch":
            row.state, row.epoch, row.samples, row.rate = "", details["epoch"], 0, details["images_per_second"]
            row.value = f"{details['value']:.1f}" if details["searched"] else f"({details['value']:.1f})"
            self.epoch_seconds.append(details["device_seconds"] / self.workers)

    def _progress(self) -> str:
        """Where the trials that run stand, a line for all of them."""
        running = list(self.running.values())
        told = [f"trial {row.number} epoch {min(row.epoch + 1, self.epochs)}/{self.epochs} {self._where(row)}"
                for row in running[:SHOWN_IN_A_LINE]]  # fmt: skip
        if more := len(running) - len(told):
            told.append(f"{more} more")
        pace, left = sum(row.rate for row in running), self._seconds_left()
        rate = f": {format_rate(pace)} images/s in all" if pace else ""  # none is known at first
        return ", ".join(told) + rate + (f", at most {format_hours(left / 3600)} left" if left else "")

    def _where(self, row: _Shown) -> str:
        return "validates" if row.samples >= self.rows else f"{row.samples / self.rows:.0%}"

    def _seconds_left(self) -> float:
        """If every trial ran all its epochs, at the speed of the last ones; 0 before there is any.

        Before an epoch has ended it is that of training alone, without validation.
        """
        running = list(self.running.values())
        rates = [row.rate for row in running if row.rate]
        if not self.epoch_seconds and not rates:
            return 0.0
        each = _mean(self.epoch_seconds) if self.epoch_seconds else self.rows / _mean(rates)
        to_go = max(0, self.total - self.ended - len(running))
        open_epochs = sum(self.epochs - row.epoch - row.samples / self.rows for row in running)
        return (open_epochs + to_go * self.epochs) * each / self.concurrent

    def _reached(self, details: Mapping[str, Any]) -> str:
        value, *others = details["values"].items()
        return ", ".join([f"{self.objective} {value[1]:.1f}", *(f"{name} {cell(name, [of])}" for name, of in others)])

    def _epoch(self, record: Mapping[str, Any]) -> str:
        how = "all settings" if record["searched"] else "one setting"
        return (
            f"epoch {record['epoch']}/{self.epochs}  loss {record['loss']:.3f}  "
            f"{self.objective} {record['value']:.1f} ({how})  {format_rate(record['images_per_second'])} images/s"
        )

    def _line(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)


def _death(death: Mapping[str, Any]) -> str:
    """Why a trial's worker ended, if it could say so, and how the trial goes on."""
    if death.get("kind") == CROWDED:
        return f"its share of a GPU is too small ({death['message'][:160]}): it goes on with a whole one, after others"
    cause = f"could not go on ({death['kind']}: {death['message'][:160]})" if death else "its worker died"
    return f"{cause}: another goes on from the last checkpoint"


class TrialTable(TrialLog):
    """Shows a study's trials as a table that lives: those that run, the last that ended, counts, best, time left.

    It keeps what it shows, however many trials there are. Its thread draws while the study's changes it.
    """

    def __init__(self, plan: Plan, ledger: Ledger, mlflow_away: Callable[[], bool]) -> None:
        super().__init__(plan)
        self.title = f"Study {plan.options.name}: {self.objective} on validation ({plan.config.protocol})"
        self.mlflow_away, self.counts, self.device_seconds = mlflow_away, ledger.balance(), ledger.device_seconds()
        self.ended = sum(self.counts[state] for state in ("complete", "pruned", "fail"))
        self.best = max(((s.mean, s.number) for s in ledger.ranking()), default=None)
        self.finished: deque[_Shown] = deque(maxlen=FINISHED_SHOWN)
        self.note = ""
        self.console = Console(markup=False, emoji=False)
        self.size = self.console.size
        self.live = Live(get_renderable=self.draw, console=self.console, refresh_per_second=2, transient=True)

    def begin(self, planned: Mapping[str, Any]) -> None:
        self.concurrent = planned["concurrent"]
        self.live.start()
        self._say_what_holds(planned)

    def end(self) -> None:
        self.live.stop()

    def __call__(self, event: str, number: int, details: Mapping[str, Any]) -> None:
        row = self.running.get(number) or _Shown(number, "")  # none: its driver died before it was told
        self._follow(event, number, details)
        if event in ("complete", "pruned", "failed"):
            self._end(row, event, details)
        elif event == "stopping":
            self.note = "stopping: trials write a checkpoint and end; Ctrl+C again leaves at once"
        elif event == "epoch":
            self.device_seconds += details["device_seconds"]

    def _end(self, row: _Shown, event: str, details: Mapping[str, Any]) -> None:
        row.state = f"failed: {details['kind']}" if event == "failed" else event
        self.counts["fail" if event == "failed" else event] += 1
        self.finished.append(row)
        if event == "complete":
            value = details["record"]["value"]
            row.value, row.epoch = f"{value:.1f}", self.epochs
            if not row.confirms and (self.best is None or value > self.best[0]):
                self.best = value, row.number

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
        rate = format_rate(row.rate) if row.rate and row.number in self.running else ""
        state: Any = row.state
        if row.state == "waits":
            state = f"waits {time.monotonic() - row.began:.0f} s"
        elif row.state == "trains" and row.samples >= self.rows:
            state = "validates"
        elif row.state in ("", "trains"):
            state = ProgressBar(total=1.0, completed=done)
        return str(row.number), state, epoch, rate, row.value, row.parameters

    def _summary(self, running: int) -> tuple[str, str]:
        to_go = max(0, self.total - self.ended - running)
        counts = (
            f"{self.counts['complete']} complete, {self.counts['pruned']} pruned, {self.counts['fail']} failed, "
            f"{running} running, {to_go} to go"
        )
        told = [f"{format_hours((time.monotonic() - self.started) / 3600)} passed"]
        if left := self._seconds_left():
            told.append(f"at most {format_hours(left / 3600)} left")
        told.append(f"{format_hours(self.device_seconds / 3600)} of device time")
        best = f"best {self.best[0]:.1f} (trial {self.best[1]}); " if self.best else ""
        return counts, best + ", ".join(told)

    def _waiting(self, running: Sequence[_Shown]) -> list[str]:
        waits = sum(row.state == "waits" and time.monotonic() - row.began > 60 for row in running)
        found = [f"{waits} waiting for a place in the cluster"] if waits else []
        found += ["MLflow is away: it is written when it is back"] if self.mlflow_away() else []
        return [*found, *([self.note] if self.note else [])]

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False)


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def _beginning(details: Mapping[str, Any]) -> str:
    if CONFIRMS not in details:
        return "starts"
    return f"starts, confirming trial {details[CONFIRMS]} with seed {details[SEED]}"
