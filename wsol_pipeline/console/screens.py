"""The last screens of jobs: what was found, where it lies, what to do next."""

import os
import shlex
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from wsol_pipeline.console.command_line import how_to_run
from wsol_pipeline.data.headers import STORED_PIXELS
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.redaction import redact
from wsol_pipeline.report.reproduction import headline, label, sections
from wsol_pipeline.selectors import said
from wsol_pipeline.storage import Store
from wsol_pipeline.study.outcome import Outcome, on_front
from wsol_pipeline.study.plan import Plan
from wsol_pipeline.study.rehearsal import Rehearsal
from wsol_pipeline.study.streak import ABSTAINED
from wsol_pipeline.text import format_hours, format_parameters, format_threshold, metric_name
from wsol_pipeline.training.checkpoint import Position
from wsol_pipeline.verdict.costs import Cost
from wsol_pipeline.verdict.judge import Verdict
from wsol_pipeline.verdict.reproduce import Reproduction
from wsol_pipeline.verdict.rows import BASELINE, EVALUATIONS, OTHER_DATA, Row, against_box
from wsol_pipeline.verdict.training_images import TrainingVerdict

FRONT_ROWS = 20  # of a Pareto front, the best
SETTINGS_SHOWN = 10
LIST_WIDTH = 100
QUICK_ROWS = 1000  # of validation, over which other readouts are solved in seconds to a few minutes
MEBI = 2**20


def _console(width: int) -> Console:
    """As wide as the terminal, `width` characters where there is none."""
    return Console(width=None if Console().is_terminal else width, markup=False, emoji=False)


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


def print_outcome(outcome: Outcome, plan: Plan, model_version: str, page: str = "") -> None:
    """The last screen of a study. `model_version` of MLflow's registry and the `page` of its trials there, if that has
    them."""
    console, balance = _console(110), outcome.balance
    console.print(
        f"\n{balance['started']} trials started = {balance['complete']} complete + {balance['pruned']} pruned + "
        f"{balance['fail']} failed"
    )
    if outcome.stopped:
        is_limit = not outcome.stopped.endswith(".")
        way_on = ": the same command with a larger limit continues" if is_limit else " The same command goes on."
        console.print(f"{outcome.stopped}{way_on}", soft_wrap=True)
    console.print(_ranking(outcome, plan))
    if outcome.rule:
        console.print(outcome.rule)
    if outcome.doubt:
        console.print(outcome.doubt)
        console.print(
            "(A redraw: as many images drawn from these, some twice, some not at all, as another set might be.)"
        )
    if outcome.standing:
        console.print(outcome.standing, highlight=False)
    for number, failure in outcome.failures.items():
        how = "abstained" if failure["kind"] == ABSTAINED else f"failed: {failure['kind']}"
        console.print(f"trial {number} {how}: {failure['message'][:200]}")
    for title, line in _way_on(outcome, plan, model_version, page).items():
        console.print(f"{title:<7} {line}", soft_wrap=True, highlight=False, markup=False)


def _ranking(outcome: Outcome, plan: Plan) -> Table:
    """The best settings of a study; of several objectives those that no other beats."""
    objectives = plan.rule.objectives if plan.rule else (plan.config.objective,)
    what, shown = plan.config.objective, outcome.ranking[:8]
    if plan.rule:
        found = on_front(outcome.ranking, plan.rule)
        what, shown = f"the Pareto front ({len(found)} settings)", found[:FRONT_ROWS]
    table = Table(title=f"Study {plan.options.name}: {what} on validation ({plan.config.protocol})")
    for column in ("trial", "", "parameters", *objectives):
        table.add_column(column, justify="right" if column in objectives else "left")
    for standing, note, parameters in shown:
        table.add_row(str(standing.number), note, format_parameters(parameters), *standing.cells(objectives))
    return table


def _way_on(outcome: Outcome, plan: Plan, model_version: str, page: str) -> dict[str, str]:
    """What a study took, where its things are and what to type next, by title."""
    name, where = plan.options.name, shlex.quote(plan.options.storage)
    lines = {
        "spent": f"{format_hours(outcome.device_hours)} of device time in all (each worker's training and validation), "
        f"{format_hours(outcome.hours)} on the clock just now",
        "used": outcome.used or "nothing is known",
        "model": outcome.best.uri if outcome.best else "damaged (below)",
        "study": plan.folder.uri,
        "MLflow": f"models:/{name}/{model_version}" if model_version else "not written in full",
        "": how_to_open_mlflow(plan.options.storage, page),
        "next": f"{how_to_run('evaluate')} --study {name} --storage {where}",
        "more": "the same command with a larger --trials continues this study",
    }
    if outcome.best and plan.dataset.val.num_rows <= QUICK_ROWS:
        bagcams = f"{how_to_run('tune_bagcams')} --study {name} --storage {where}"
        lines["or"] = f"{bagcams}  # other maps of this very model, nothing is trained"
    return lines


def how_to_open_mlflow(storage: str, page: str = "") -> str:
    """What to type or to open to see what is tracked, at a `page` of it."""
    server, here = os.environ.get("MLFLOW_TRACKING_URI", ""), f"http://127.0.0.1:5000{page}"
    if server.startswith("http"):
        return f"open {redact(server).rstrip('/')}{page}"
    if server:
        return f"mlflow server --backend-store-uri {shlex.quote(redact(server))}, then open {here}"
    return f"make mlflow RUNS={shlex.quote(storage)}, then open {here}"


UNMEASURED = (
    "localization is not measured: test has labels alone. Annotate 100 images of test, and a hit rate of 70 % is "
    "known to 9 points; 400, and to 4.5. Import these alone as test, with --boxes test, and train on that."
)


def print_verdict(verdict: Verdict) -> None:
    """A table per metric of a final evaluation, what its words mean, where things are and what to type next."""
    console, rows, options = _console(126), verdict.rows, verdict.options
    for metric in _metrics(verdict):
        console.print(_judged(verdict, metric))
    if rows[0].label == BASELINE:
        console.print(_standing(verdict), soft_wrap=True, highlight=False)
    for line in _words(rows):
        console.print(line, soft_wrap=True, highlight=False)
    if verdict.shrunk:
        print_shrunk(verdict.shrunk, verdict.images)
    if not verdict.is_measured:
        console.print(UNMEASURED, soft_wrap=True)
    for title, line in {
        "gallery:": verdict.picture,
        "results:": (options.store / options.study[0]).path(EVALUATIONS),
        "MLflow:": how_to_open_mlflow(options.storage),
        "next:": f"{how_to_run('report')} --study {' '.join(options.study)} --storage {shlex.quote(options.storage)}",
    }.items():
        console.print(f"{title:<8} {line}", soft_wrap=True)


def print_training_images(verdict: TrainingVerdict) -> None:
    """The tables of models on the images that trained them."""
    console = _console(126)
    for metric in _metrics(verdict):
        console.print(_judged(verdict, metric, "training"))
    line = "Labels of these images were known, boxes were not. It is no test: a network has seen its training images."
    console.print(line, soft_wrap=True)


def _metrics(verdict: Verdict | TrainingVerdict) -> list[str]:
    """The metrics that get a table: what was maximised and judged by, the field's usual ones, a paper's own."""
    rows = verdict.rows
    named = (name for row in rows for name in row.published)
    first = (verdict.objective, verdict.measure, "gt_known_loc", "top1_loc", "map_50")
    metrics = dict.fromkeys((*first, *(("piou",) if verdict.measure == "pxap" else ()), *named))
    return [name for name in metrics if any(name in row.oracle or name in row.transferred for row in rows)]


def _judged(verdict: Verdict | TrainingVerdict, metric: str, on: str = "test") -> Table:
    """Validation, test transferred with its interval, test oracle; beside rows of a preset what its paper reports."""
    beside = [row for row in verdict.rows if metric in row.published]
    flag = f"{OTHER_DATA}: " if any(row.other_data for row in beside) else ""
    table = Table(
        title=f"{flag}{metric} (%), protocol {verdict.protocol}, {verdict.images} {on} images",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", overflow="fold")  # names give way, numbers never do
    table.add_column("readout > threshold", overflow="fold")
    for name in ("validation", f"{on} transferred", "95 % interval", f"{on} oracle (upper bound)"):
        table.add_column(name, justify="right", width=13 if "interval" in name else 11)
    if beside:
        table.add_column("paper", justify="right", min_width=5)
        table.caption = f"paper: {beside[0].preset}, on its own data{', which these are not' if flag else ''}"
    for row in verdict.rows:
        if metric in row.oracle or metric in row.transferred:
            table.add_row(row.label, row.readout, *_figures(row, metric))
    return table


def _figures(row: Row, metric: str) -> list[str]:
    val, test, oracle = (
        f"{values[metric]:.1f}" if metric in values else "" for values in (row.val, row.transferred, row.oracle)
    )
    low_high = row.intervals.get("transferred", {}).get(metric)
    interval = f"{low_high[0]:.1f} to {low_high[1]:.1f}" if low_high else ""
    paper = [f"{row.published[metric]:.1f}"] if metric in row.published else []
    return [val, test, interval, oracle, *paper]


def _words(rows: Sequence[Row]) -> list[str]:
    """What the tables' words mean, as far as they are in them."""
    setting, _, threshold = rows[-1].readout.rpartition(" > ")
    told = [f"{rows[-1].readout}: the readout's setting {setting}; what is over {threshold} in a map is the object."]
    if any(row.label.endswith(", readout solved") for row in rows):
        told.append(
            "published: trained with the setting of a paper's row and read as that says; readout solved: the same "
            "network, with the readout and threshold that are best on validation."
        )
    return told if setting else told[1:]


def _standing(verdict: Verdict) -> str:
    """The winner on test, the centred box and Top-1 beside it, and whether it beats that box."""
    box, winner, metric = verdict.rows[0], verdict.rows[-1], verdict.measure
    rest = [(f"centred box {metric_name(metric)}", box.transferred.get(metric))]
    rest += [(metric_name(name), winner.transferred.get(name)) for name in ("top1_loc", "cls_top1")]
    beside = ", ".join(f"{name} {value:.1f} %" for name, value in rest if value is not None)
    first = f"{winner.label} on test: {metric_name(metric)} {winner.transferred[metric]:.1f} %; {beside}."
    return f"{first} {against_box(winner, box, metric)}".strip()


def print_costs(found: Sequence[Cost]) -> None:
    """What choosing without the boxes of validation costs on test, beside what they choose and what test would have."""
    table = Table(title="test (%), by what chose on validation; cost: the difference to boxes, paired 95 % interval")
    table.add_column("chosen by", overflow="fold")
    table.add_column("readout > threshold", overflow="fold")
    for metric in found[0].cost:
        for column in (metric_name(metric), "cost", "oracle"):
            table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        cells = []
        for metric, cost in one.cost.items():
            low, high = one.intervals[metric]
            told = "" if one is found[0] else f"{cost:+.1f} [{low:+.1f}, {high:+.1f}]"
            cells += [f"{one.transferred[metric]:.1f}", told, f"{one.oracle[metric]:.1f}"]
        name = f"{said(one.name)}{' (abstains)' if one.reason else ''}"
        table.add_row(name, f"{one.readout} > {format_threshold(one.threshold)}", *cells)
    console = _console(126)
    console.print(table)
    for one in found:
        if one.reason:
            console.print(f"{one.name} abstains: {one.reason}", soft_wrap=True, highlight=False)


def print_rehearsal(plan: Plan, found: Rehearsal) -> None:
    """What a dry run found, and what the study would take."""
    options, config, data, measured, estimate = plan.options, plan.config, plan.dataset, found.measured, found.estimate
    how = "streamed" if found.streamed else "cached on each node"
    if config.shrunk_jpegs:
        how += f" as {plan.training_images}"
    gpu = f", {measured.peak_gpu_bytes / MEBI:,.0f} MiB of GPU memory at most" if measured.peak_gpu_bytes else ""
    each = f"{options.workers} worker{'s' * (options.workers > 1)} on {found.device}"
    table = Table(title=f"Dry run of {options.name!r}: nothing was started", show_header=False, title_justify="left")
    for name, text in (
        ("data", f"{data.uri}: {data.train.num_rows:,} train, {data.val.num_rows:,} val, {len(data.classes)} classes"),
        *(tuple(text.split(": ", 1)) for text in plan.promise.sentences),
        tuple(plan.recipe.split(": ", 1)),
        ("pixels", f"{found.decoded_bytes / MEBI:,.0f} MiB of training images: {how}"),
        ("storage", f"{options.store.uri}: writable"),
        ("MLflow", found.mlflow),
        ("cluster", f"{found.concurrent} trial{'s' * (found.concurrent > 1)} at once, {each} each"),
        ("training", f"{1 / measured.train_seconds:,.1f} images/s a worker{gpu}"),
        ("input", f"a core decodes {1 / measured.decode_seconds:,.0f} images/s"),
        (
            "a validation",
            f"{1e3 * measured.one_setting_seconds:.1f} ms an image; {1e3 * measured.search_seconds:.1f} ms where all "
            f"{measured.settings} readout settings and every threshold are searched",
        ),
        ("longest", found.bound),
        ("a trial", f"{config.recipe.epochs} epochs: {format_hours(estimate.trial_seconds / 3600)}"),
        (
            "the study",
            f"{estimate.trials} trials: at most {format_hours(estimate.device_hours)} of device time, "
            f"{format_hours(estimate.wall_hours)} on the clock",
        ),
        ("kept", f"at most {estimate.storage_bytes / MEBI:,.0f} MiB of checkpoints and models"),
    ):
        table.add_row(name, text)
    _console(110).print(table)


def print_shrunk(count: int, of: int) -> None:
    """Say it where a readout was to see photographs as they are stored, and some were too large for that."""
    print(f"{count} of {of} photographs have more than {STORED_PIXELS / 1e6:.1f} million pixels and were read shrunk.")


def print_settings(counts: Counts, objective: str) -> None:
    """The best readout settings on validation, and what was not read as it is stored."""
    if counts.shrunk:
        print_shrunk(int(counts.shrunk), int(counts.images[0]))
    values_S = selection.best(counts)[objective]
    shown = min(SETTINGS_SHOWN, len(values_S))
    table = Table("setting", objective, title=f"validation, best {shown} of {len(values_S)}")
    for s in (-values_S).argsort(kind="stable")[:shown]:
        table.add_row(str(counts.settings[s]), f"{values_S[s]:.1f}")
    Console(markup=False, emoji=False).print(table)


def print_reproduction(found: Reproduction) -> None:
    """The figures and what differs."""
    console = _console(110)
    flag = f"{label(found)}: " if label(found) else ""
    shown = ("Published beside measured", "Published, not measured", "What differs")
    for section in (section for section in sections(found) if section.title.startswith(shown)):
        table = Table(title=f"{flag}{section.title}", title_justify="left")
        for number, name in enumerate(section.head):
            table.add_column(name, justify="right" if number in section.right else "left", overflow="fold")
        for cells in section.rows:
            table.add_row(*cells)
        console.print(table)
    console.print(f"{flag}{headline(found)}")


def print_rows(rows: Mapping[str, Mapping[str, float]]) -> None:
    """The published figures of rows by id."""
    table = Table("row", "published, %", title=f"{len(rows)} published rows")
    table.columns[0].overflow = "fold"
    for id, published in rows.items():
        table.add_row(id, ", ".join(f"{metric_name(metric)} {value:g}" for metric, value in published.items()))
    Console(width=LIST_WIDTH).print(table)
