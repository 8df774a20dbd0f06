"""The live table in terminals of several sizes, without a terminal, and the help of every job."""

import importlib
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rayjobs import train
from wsol_pipeline.console import screens
from wsol_pipeline.console.live import TrialLog, TrialTable
from wsol_pipeline.console.progress import is_live
from wsol_pipeline.text import format_hours
from wsol_pipeline.training.checkpoint import Position

ROOT = Path(__file__).parents[2]
PARAMETERS = {"lambda_": 0.123456, "alpha": 1.5, "beta": 0.987654, "generator_after": "layer3", "learning_rate": 0.001}
RECORD = {"epoch": 2, "value": 61.25, "searched": True, "loss": 1.0, "images_per_second": 512.0, "device_seconds": 36.0}


@pytest.fixture
def table():
    """`table(width, height)`: of a study of 1,000 trials of 4 epochs of 100 images, 2 at once, 10 ended before."""

    def make(width=80, height=24, away=False):
        options = SimpleNamespace(name="bas-cub", trials=1000, confirm=0, confirm_seeds=2, workers=1)
        train = SimpleNamespace(recipe=SimpleNamespace(epochs=4), objective="max_box_acc_v2", protocol="wsol-v1")
        dataset = SimpleNamespace(train=SimpleNamespace(num_rows=100))
        ledger = SimpleNamespace(
            balance=lambda: {"started": 10, "complete": 7, "pruned": 2, "fail": 1, "running": 0},
            device_seconds=lambda: 3600.0,
            ranking=lambda: [SimpleNamespace(mean=50.0, number=3)],
        )
        shown = TrialTable(SimpleNamespace(options=options, config=train, dataset=dataset), ledger, lambda: away)
        shown.console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, no_color=True)
        shown.size, shown.concurrent = shown.console.size, 2
        return shown

    return make


def lines(shown):
    """What the table draws, without escape sequences."""
    shown.console.print(shown.draw())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.console.file.getvalue()).splitlines()


def start(shown, number):
    shown("started", number, {"parameters": PARAMETERS})
    shown("launched", number, {})


def test_it_tells_counts_best_cost_and_what_is_left(table):
    shown = table()
    start(shown, 10)
    shown("epoch", 10, RECORD)
    text = "\n".join(lines(shown))
    assert "7 complete, 2 pruned, 1 failed, 1 running, 989 to go" in text
    assert "best 50.0 (trial 3)" in text
    assert "1.0 h of device time" in text
    assert "at most 19.8 h left" in text  # (989 x 4 + 2) epochs of 36 s, two at once: 71,244 s
    assert re.search(r"10 .* 2/4 +512 +61\.2 ", text)


def test_what_runs_moves_with_its_position(table):
    shown = table()
    start(shown, 10)
    assert any("starts" in line for line in lines(shown))
    shown("position", 10, {"position": Position(2, 50)})
    assert shown.running[10].epoch == 2
    assert any(" 3/4 " in line for line in lines(shown))
    shown("position", 10, {"position": Position(2, 100)})
    assert any("validates" in line for line in lines(shown))


def test_the_best_is_of_complete_proposals_and_the_last_ended_stay_in_sight(table):
    shown = table()
    for number, value in ((10, 49.0), (11, 51.5), (12, 40.0)):
        start(shown, number)
        shown("complete", number, {"record": {"value": value}})
    shown("started", 13, {"parameters": PARAMETERS, "confirms": 11, "seed": 1})
    assert any("confirms trial 11 with seed 1" in line for line in lines(shown))
    shown("complete", 13, {"record": {"value": 99.0}})
    assert shown.best == (51.5, 11)
    assert shown.counts["complete"] == 11
    assert [row.number for row in shown.finished] == [10, 11, 12, 13]
    assert not shown.running


def test_a_value_of_one_readout_setting_stands_in_parentheses(table):
    shown = table()
    start(shown, 10)
    shown("epoch", 10, {**RECORD, "searched": False})
    assert any("(61.2)" in line for line in lines(shown))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 12)])
def test_a_thousand_trials_fit_the_window(table, width, height):
    shown = table(width, height, away=True)
    for number in range(10, 1000):
        start(shown, number)
        if number % 3 == 0:
            shown("failed", number, {"kind": "out_of_memory", "message": "x" * 500})
    drawn = lines(shown)
    assert max(map(len, drawn)) <= width
    assert len(drawn) < height
    assert any(re.search(r"\+ 6\d\d more", line) for line in drawn)
    assert any("MLflow is away" in line for line in drawn)


def test_a_resized_terminal_is_cleared_once(table):
    shown = table(120)
    start(shown, 10)
    lines(shown)
    assert "\x1b[2J" not in shown.console.file.getvalue()
    shown.console.width = 70
    assert max(map(len, lines(shown)[-4:])) <= 70
    lines(shown)
    assert shown.console.file.getvalue().count("\x1b[2J") == 1


@pytest.mark.parametrize(
    ("terminal_name", "tty", "live"), [("xterm", True, True), ("dumb", True, False), ("xterm", False, False)]
)
def test_it_lives_on_a_terminal_that_can_be_redrawn(monkeypatch, terminal_name, tty, live):
    monkeypatch.setenv("TERM", terminal_name)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as continuous integration sets it: nobody looks at that
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: tty, write=lambda text: None, flush=lambda: None))
    assert is_live() is live


def test_lines_leave_out_what_only_a_table_shows(capsys):
    log = TrialLog(4, "pxap")
    log("launched", 3, {})
    log("position", 3, {"position": Position(1, 2)})
    assert capsys.readouterr().out == ""
    log("stopping", 3, {})
    assert "trial   3 writes a checkpoint and ends" in capsys.readouterr().out


def test_lines_begin_with_what_will_be_measured(capsys):
    told = ("validation: chooses by pxap", "test: measures pxap")
    numbers = {"trials": 3, "done": 0, "adopted": [], "concurrent": 1, "workers": 1, "device": "cpu"}
    TrialLog(4, "pxap").begin({**numbers, "pruning": "nothing is pruned", "measures": told})
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.partition("] ")[2] for line in lines] == [*told, "nothing is pruned"]


def test_what_an_interrupted_study_keeps(capsys):
    balance = {"complete": 2, "pruned": 1, "fail": 0}
    folder = SimpleNamespace(uri="runs/s")
    kept = {3: Position(1, 96), 4: Position(2, 0), 5: None}
    screens.print_interrupted(balance, kept, {3}, folder)
    first, *trials = capsys.readouterr().out.strip().splitlines()
    assert "2 complete, 1 pruned, 0 failed" in first
    assert trials == [
        "trial   3 goes on: checkpoint after 1 epochs + 96 images, written now",
        "trial   4 goes on: checkpoint after 2 epochs, the last one it wrote",
        "trial   5 goes on: nothing is trained yet",
    ]


@pytest.mark.parametrize(("hours", "text"), [(0.005, "18 s"), (0.5, "30.0 min"), (19.8, "19.8 h")])
def test_hours_are_told_in_a_unit_that_suits(hours, text):
    assert format_hours(hours) == text


@pytest.mark.parametrize("job", ["tune_bas", "train", "evaluate", "import_dataset", "report", "tune_bagcams"])
@pytest.mark.parametrize("width", [80, 120])
def test_help_fits_the_terminal_and_says_what_happens_by_default(monkeypatch, capsys, job, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"rayjobs.{job}").main(["--help"])
    told = capsys.readouterr().out
    _usage, *rest = told.splitlines()
    assert max(map(len, rest)) <= width
    assert f"python rayjobs/{job}.py" in told
    assert "None" not in told


def test_help_groups_options_by_what_they_are_about(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        train.main(["--help"])
    told = capsys.readouterr().out
    groups = re.findall(r"^\W+((?:\w+ )?)options \W+$", told, re.MULTILINE)
    assert groups == ["", "what ", "training ", "readout ", "reading ", "machine ", "search ", "limits "]
    assert re.search(r"--name STR .*?\(default: train\)", told, re.DOTALL)  # the job's own, in the group of all jobs
