"""The live table in terminals of several sizes, without a terminal, and the help of every job."""

import importlib
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rayjobs import train
from wsol_pipeline.console import live, progress, screens
from wsol_pipeline.console.live import TrialLog, TrialTable
from wsol_pipeline.console.progress import is_live
from wsol_pipeline.study.outcome import Outcome
from wsol_pipeline.text import format_hours
from wsol_pipeline.training.checkpoint import Position
from wsol_pipeline.verdict.costs import Cost
from wsol_pipeline.verdict.rows import Row

ROOT = Path(__file__).parents[2]
PARAMETERS = {"lambda_": 0.123456, "alpha": 1.5, "beta": 0.987654, "generator_after": "layer3", "learning_rate": 0.001}
RECORD = {"epoch": 2, "value": 61.25, "searched": True, "loss": 1.0, "images_per_second": 512.0, "device_seconds": 36.0}


def plan(trials=1000):
    """Of a study of trials of 4 epochs of 100 images."""
    options = SimpleNamespace(name="bas-cub", trials=trials, confirm=0, confirm_seeds=2, workers=1)
    train = SimpleNamespace(recipe=SimpleNamespace(epochs=4), objective="max_box_acc_v2", protocol="wsol-v1")
    dataset = SimpleNamespace(train=SimpleNamespace(num_rows=100))
    return SimpleNamespace(options=options, config=train, dataset=dataset)


@pytest.fixture
def clock(monkeypatch):
    """A clock of the screen's that stands until its `now` is set, in seconds."""
    clock = SimpleNamespace(now=1000.0)
    for module in (live, progress):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def table():
    """`table(width, height)`: of a study of 1,000 trials of 4 epochs of 100 images, 2 at once, 10 ended before."""

    def make(width=80, height=24, away=False):
        ledger = SimpleNamespace(
            balance=lambda: {"started": 10, "complete": 7, "pruned": 2, "fail": 1, "running": 0},
            device_seconds=lambda: 3600.0,
            ranking=lambda: [SimpleNamespace(mean=50.0, number=3)],
        )
        shown = TrialTable(plan(), ledger, lambda: away)
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
    ("terminal_name", "tty", "is_redrawn"), [("xterm", True, True), ("dumb", True, False), ("xterm", False, False)]
)
def test_it_lives_on_a_terminal_that_can_be_redrawn(monkeypatch, terminal_name, tty, is_redrawn):
    monkeypatch.setenv("TERM", terminal_name)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as continuous integration sets it: nobody looks at that
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: tty, write=lambda text: None, flush=lambda: None))
    assert is_live() is is_redrawn


def test_time_left_is_told_before_an_epoch_has_ended(table, clock):
    shown = table()
    for number in (10, 11):
        start(shown, number)
        shown("position", number, {"position": Position(0, 10)})
    clock.now += 10
    for number in (10, 11):
        shown("position", number, {"position": Position(0, 60)})
    # 5 images/s each: 20 s an epoch; (988 x 4 + 2 x 3.4) epochs, two at once: 39,588 s
    assert "at most 11.0 h left" in "\n".join(lines(shown))


def test_lines_leave_out_what_only_a_table_shows(capsys):
    log = TrialLog(plan())
    log("started", 3, {"parameters": {}})
    log("launched", 3, {})
    log("position", 3, {"position": Position(1, 2)})
    assert [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()] == ["trial   3 starts"]
    log("stopping", 3, {})
    assert "trial   3 writes a checkpoint and ends" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("details", "line"),
    [
        ({}, "its worker died: another goes on from the last checkpoint"),
        (
            {"kind": "storage", "message": "away"},
            "could not go on (storage: away): another goes on from the last checkpoint",
        ),
        (
            {"kind": "crowded", "message": "CUDA out of memory"},
            "its share of a GPU is too small (CUDA out of memory): it goes on with a whole one, after others",
        ),
    ],
)
def test_what_ended_a_worker_and_how_its_trial_goes_on(capsys, details, line):
    TrialLog(plan())("died", 3, details)
    assert capsys.readouterr().out.endswith(f"] trial   3 {line}\n")


def test_a_line_every_half_minute_tells_how_far_epochs_are(capsys, clock):
    log = TrialLog(plan(trials=4))
    log.begin({**PLANNED, "trials": 4, "done": 1, "concurrent": 2})
    for number in (1, 2):
        log("started", number, {"parameters": {}})
        log("position", number, {"position": Position(0, 0)})
    capsys.readouterr()
    for second in range(1, 61):
        clock.now += 1
        log("position", 1, {"position": Position(0, 2 * second if second < 50 else 100)})
        log("position", 2, {"position": Position(1, second)})
    told = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    # at 30 s: (3.4 + 2.71 + 4 of trial 3) epochs of 100 images at 1.5 a second, two at once: 337 s
    assert told[0] == "trial 1 epoch 1/4 60%, trial 2 epoch 2/4 29%: 3.0 images/s in all, at most 5.6 min left"
    assert told[1].startswith("trial 1 epoch 1/4 validates, trial 2 epoch 2/4 59%: 3.0 images/s in all, ")
    assert len(told) == 2


@pytest.mark.parametrize(("seconds", "told"), [(100, ": 0.30 images/s in all"), (10, ": 3.0 images/s in all")])
def test_a_pace_that_is_not_known_is_not_told_and_a_slow_one_is_no_zero(capsys, clock, seconds, told):
    log = TrialLog(plan(trials=1))
    log.begin({**PLANNED, "trials": 1})
    log("started", 1, {"parameters": {}})
    clock.now += 31
    log("position", 1, {"position": Position(0, 30)})
    assert "images/s" not in capsys.readouterr().out.splitlines()[-1]
    clock.now += seconds
    log("position", 1, {"position": Position(0, 60)})
    clock.now += 31
    log("position", 1, {"position": Position(0, 60)})
    assert told in capsys.readouterr().out


def test_an_epoch_of_a_slow_network_is_no_zero_and_long_passes_tell_pace_and_time_left(capsys, clock, monkeypatch):
    record = {"epoch": 1, "loss": 1.0, "value": 50.0, "searched": True, "images_per_second": 0.42}
    assert TrialLog(plan())._epoch(record).endswith("(all settings)  0.42 images/s")
    monkeypatch.setattr(progress, "is_live", lambda: False)
    with progress.progress("evidence", 100) as add:
        clock.now += 6
        add(12)
        clock.now += 1
        add(1)
    assert capsys.readouterr().out == "  evidence: 12/100 images, 2.0 a second, 44 s left\n"


PLANNED = {
    "trials": 3, "done": 0, "adopted": [], "concurrent": 1, "workers": 1, "device": "cpu", "recipe": "recipe: a",
    "images": "exact pixels", "pruning": "nothing is pruned", "measures": ("validation: chooses by pxap", "test: measures pxap"),
}  # fmt: skip


def test_lines_begin_with_what_will_be_trained_and_measured(capsys):
    TrialLog(plan()).begin(PLANNED)
    _, *lines = capsys.readouterr().out.splitlines()
    told = ["recipe: a", "training images: exact pixels", *PLANNED["measures"], "nothing is pruned"]
    assert [line.partition("] ")[2] for line in lines] == told


@pytest.mark.parametrize(("adopted", "told"), [([0], "continues trial 0"), ([0, 1], "continues trials 0, 1")])
def test_what_goes_on_is_told_without_a_guess_at_what_ended_it(capsys, adopted, told):
    TrialLog(plan()).begin({**PLANNED, "adopted": adopted})
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"] {told}")


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


@pytest.mark.parametrize(("rows", "quick"), [(150, True), (5000, False)])
def test_the_last_screen_of_a_study_explains_its_words_and_names_what_is_quick(capsys, rows, quick):
    study = plan()
    study.rule, study.folder, study.options.storage = None, SimpleNamespace(uri="runs/bas-cub"), "runs"
    study.dataset.val = SimpleNamespace(num_rows=rows)
    balance = {"started": 0, "complete": 0, "pruned": 0, "fail": 0}
    best = SimpleNamespace(uri="runs/bas-cub/final")
    screens.print_outcome(
        Outcome(balance, [], best, {}, 0.5, doubt="In 1,000 redraws ...", standing="Validation, ..."),
        study,
        "1",
        "/#/e",
    )
    told = capsys.readouterr().out
    assert "(A redraw: as many images drawn from these" in told
    assert "\nValidation, ...\n" in told
    assert "open http://127.0.0.1:5000/#/e\n" in told
    assert "30.0 min of device time in all (each worker's training and validation)" in told
    assert ("tune_bagcams.py --study bas-cub --storage runs" in told) is quick


def test_the_last_screen_of_an_evaluation_explains_what_its_rows_are_called():
    nothing = {"val": {}, "transferred": {}, "oracle": {}, "intervals": {}}
    ours = Row("a: winner", "5 > 0.100", **nothing)
    (told,) = screens._words([ours])
    assert told == "5 > 0.100: the readout's setting 5; what is over 0.100 in a map is the object."
    told = screens._words([Row("a: published, readout solved", "5 > 0.100", **nothing), ours])
    assert told[1].startswith("published: trained with the setting of a paper's row")


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
    assert groups == ["", "what ", "training ", "readout ", "selection ", "reading ", "machine ", "search ", "limits "]
    assert re.search(r"--name STR .*?\(default: train\)", told, re.DOTALL)  # the job's own, in the group of all jobs


def cost(name, by, off, reason=""):
    """Of a selector by whose choice `by` percent are hit, 1 under the most that test allows."""
    names = ("max_box_acc_v2", "gt_known_loc")
    each = dict.fromkeys(names, by)
    best, interval = dict.fromkeys(names, by + 1), dict.fromkeys(names, (off - 10.0, off + 10.0))
    return Cost(
        name, "layer4/grad_x_meangrad/code/object", 0.123, each, dict.fromkeys(names, off), interval, best, reason
    )


def test_costs_show_the_oracle_what_a_selector_hides_and_why_it_abstains(capsys):
    names = ["boxes", "detector:rpn.csv+otsu", "evidence"]
    screens.print_costs(
        [cost(names[0], 61.5, 0.0), cost(names[1], 40.5, -21.0), cost(names[2], 30.5, -31.0, "gain low")]
    )
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 126
    assert told.count("oracle") == 2
    assert "(uses boxes" in told
    assert "of COCO)" in told
    first, second = (line for line in told.splitlines() if "61.5" in line or "40.5" in line)
    assert re.findall(r"\d\d\.\d", first) == ["61.5", "62.5"] * 2
    assert second.count("40.5 │ -21.0 [-31.0, -11.0] │   41.5") == 2
    assert "evidence abstains: gain low" in told
