"""What a study says on the terminal: one line per event, and a last screen that says what was found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from wsol_pipeline.training.ledger import CONFIRMS, SEED

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store
    from wsol_pipeline.training.config import Job
    from wsol_pipeline.training.plan import Plan
    from wsol_pipeline.training.study import Outcome, Ranked
    from wsol_pipeline.training.verdict import Row


class TrialLog:
    """Prints each event of a study's trials as one line. Called as `log(event, trial number, details)`."""

    def __init__(self, epochs: int, objective: str) -> None:
        self.epochs, self.objective, self.started = epochs, objective, time.monotonic()

    def plan(self, trials: int, done: int, adopted: list[int], concurrent: int, job: Job) -> None:
        """Say what is about to happen."""
        place = f"{job.workers} worker(s) on {job.device}"
        self._line(f"{trials} trials, {done} done; {concurrent} at once, {place} each, {self.epochs} epochs")
        if adopted:
            self._line(f"going on with trial {', '.join(map(str, adopted))} of a driver that died")

    def __call__(self, event: str, number: int, details: Mapping[str, Any]) -> None:
        text = {
            "started": lambda: f"{_beginning(details)}: {format_parameters(details['parameters'])}",
            "epoch": lambda: self._epoch(details),
            "complete": lambda: f"complete: {self.objective} {details['record']['value']:.1f}",
            "pruned": lambda: "pruned",
            "failed": lambda: f"failed: {details['kind']}: {details.get('message', '')[:160]}",
        }[event]()
        self._line(f"trial {number:>3} {text}")

    def _epoch(self, record: Mapping[str, Any]) -> str:
        how = "all settings" if record["searched"] else "one setting"
        return (
            f"epoch {record['epoch']}/{self.epochs}  loss {record['loss']:.3f}  "
            f"{self.objective} {record['value']:.1f} ({how})  {record['images_per_second']:.0f} images/s"
        )

    def _line(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)


def _beginning(details: Mapping[str, Any]) -> str:
    if CONFIRMS not in details:
        return "starts"
    return f"starts, confirming trial {details[CONFIRMS]} with seed {details[SEED]}"


def format_parameters(parameters: Mapping[str, Any]) -> str:
    """`lambda 0.91, alpha 0.5`: floats with three significant digits."""
    return ", ".join(
        f"{name.rstrip('_')} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in parameters.items()
    )


def ranking_markdown(
    ranking: Sequence[Ranked], objective: str, published: Mapping[str, Mapping[str, float]], doubt: str = ""
) -> str:
    """The study's table as Markdown, with what the papers report for the settings among its trials below it.

    Args:
        published: preset id -> the paper's figures, measured on its own data and protocol.
        doubt: how sure the first is, in a sentence.
    """
    lines = ["| trial | setting | parameters | " + objective + " (validation) |", "|---|---|---|---|"]
    lines += [f"| {standing.number} | {note} | {format_parameters(p)} | {standing} |" for standing, note, p in ranking]
    lines += ["", doubt] if doubt else []
    if published:
        lines += ["", "Published, on the paper's own data and protocol:", "", "| setting | figures |", "|---|---|"]
        lines += [f"| {name} | {format_parameters(figures)} |" for name, figures in published.items()]
    return "\n".join(lines) + "\n"


def print_outcome(outcome: Outcome, plan: Plan) -> None:
    """The last screen of a study."""
    console = Console(width=None if Console().is_terminal else 110)
    balance, objective = outcome.balance, plan.config.objective
    console.print(
        f"\n{balance['started']} trials started = {balance['complete']} complete + {balance['pruned']} pruned + "
        f"{balance['fail']} failed; {format_hours(outcome.device_hours)} of device time"
    )
    if outcome.stopped:
        console.print(f"{outcome.stopped}: the same command with a larger limit continues", soft_wrap=True)
    table = Table(title=f"Study {plan.options.name}: {objective} on validation ({plan.config.protocol})")
    for name in ("trial", "", "parameters", objective):
        table.add_column(name, justify="right" if name == objective else "left")
    for standing, note, parameters in outcome.ranking[:8]:
        table.add_row(str(standing.number), note, format_parameters(parameters), str(standing))
    console.print(table)
    if outcome.doubt:
        console.print(outcome.doubt)
    for number, failure in outcome.failures.items():
        console.print(f"trial {number} failed: {failure['kind']}: {failure['message'][:200]}")
    name = plan.options.name
    if outcome.model_version:
        console.print(f"model: models:/{name}/{outcome.model_version}  ({outcome.best.uri})", soft_wrap=True)
    console.print(f"next:  python rayjobs/evaluate.py --study {name} --storage {plan.options.storage}", soft_wrap=True)
    console.print("more:  the same command with a larger --trials continues this study", soft_wrap=True)


def format_hours(hours: float) -> str:
    """`41 s`, `12.5 min` or `3.2 h`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h"


def print_verdict(rows: Sequence[Row], objective: str, protocol: str, images: int, folder: Store, picture: str) -> None:
    """A table per metric of a final evaluation: validation, test transferred with its interval, test oracle; beside
    rows of a preset what its paper reports."""
    console = Console(width=None if Console().is_terminal else 126)
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
    console.print(
        "MLflow:  make mlflow, then http://127.0.0.1:5000 (or the server of MLFLOW_TRACKING_URI)", soft_wrap=True
    )
