"""`make reliability` in short: what needs no cluster, a few times each; and when a row passes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.row import Injection, Result, Row

ROOT = Path(__file__).parents[2]
ROW = Row("kill", "a kill", 2, "batches", 4, 60.0, lambda times, folder: iter(()))


@pytest.mark.parametrize(
    ("rows", "times"),
    [
        ("exits checkpoints object-store", 1),
        ("schedule", 1),
        pytest.param("schedule-ray", 2, marks=pytest.mark.chaos),
        pytest.param("world-size worker-kill stuck", 3, marks=pytest.mark.chaos),
        pytest.param("driver-kill", 6, marks=pytest.mark.chaos),
        pytest.param("node-kill", 2, marks=pytest.mark.chaos),
        pytest.param("preemption", 3, marks=pytest.mark.chaos),
    ],
)
@pytest.mark.timeout(1800)
def test_faults_cost_what_they_may(rows, times, tmp_path):
    command = [sys.executable, "-m", "tests.reliability", "--only", *rows.split(), "--times", str(times)]
    ended = subprocess.run([*command, "--json", str(tmp_path / "out.json")], cwd=ROOT, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert {name: (row["injected"], row["passed"]) for name, row in found.items()} == dict.fromkeys(
        rows.split(), (times, True)
    )


@pytest.mark.parametrize(
    ("injections", "reason"),
    [
        ([Injection("a", 4, 60.0), Injection("b")], ""),
        ([Injection("a")], "only 1 of 2 were injected"),
        ([Injection("a"), Injection("b", 5)], "b: 5 batches lost"),
        ([Injection("a", 0, 61.0), Injection("b")], "a: 61 s until work went on"),
        ([Injection("a"), Injection("b", wrong="other weights")], "b: other weights"),
    ],
)
def test_a_row_passes_within_its_limits_alone(injections, reason):
    assert Result(ROW, 2, injections).reason == reason


def test_a_row_tells_the_worst_and_the_median():
    found = Result(ROW, 3, [Injection("a", 1, 2.0), Injection("b", 3, 9.0), Injection("c", 0, 4.0)]).to_dict()
    assert found["lost"] == {"unit": "batches", "worst": 3, "may_lose": 4}
    assert found["seconds"] == {"median": 4.0, "worst": 9.0, "within": 60.0}
    assert found["passed"]
    assert Result(ROW, 3, [], "OSError: gone").to_dict()["reason"] == "OSError: gone"
