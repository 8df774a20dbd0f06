"""`wsol`: every job by a word."""

import subprocess
import sys
from pathlib import Path

import pytest

import rayjobs.__main__ as command
from wsol_pipeline.console.command_line import how_to_run
from wsol_pipeline.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_every_job_has_words_and_a_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    known = command.commands()
    assert set(known.values()) == {path.stem for path in (ROOT / "rayjobs").glob("[!_]*.py")}
    assert (known["import"], known["tune bas"], known["evaluate"]) == ("import_dataset", "tune_bas", "evaluate")
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(f"  wsol {words} ") for line in lines) for words in known)


@pytest.mark.parametrize(
    ("words", "near"), [("tun bas", "tune bas"), ("tune bsa", "tune bas"), ("evalute --study a", "evaluate")]
)
def test_unknown_words_are_answered_with_the_nearest(words, near):
    with pytest.raises(UsageError, match=f"Unknown command .* Did you mean '{near}'"):
        command.main(words.split())


def test_it_runs_the_job_with_what_follows(monkeypatch):
    calls = []
    monkeypatch.setattr(command.job("tune_bas"), "main", lambda args: calls.append((args, sys.argv[0])))
    monkeypatch.setattr(sys, "argv", ["wsol"])
    assert command.main(["tune", "bas", "--trials", "3"]) == 0
    assert calls == [(["--trials", "3"], "wsol tune bas")]


def test_the_entry_point_says_version_and_faults_in_a_line_with_code_2():
    def run(*args):
        return subprocess.run([sys.executable, "-m", "rayjobs", *args], cwd=ROOT, capture_output=True, text=True)

    assert run("--version").stdout.startswith("wsol 0.")
    assert run("tune", "bas", "--version").stdout.startswith("wsol 0.")
    for fault in (["tune", "bsa"], ["tune", "bas", "--epocs", "3"], ["tune", "bas", "--config", "/nowhere.yaml"]):
        ended = run(*fault)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
        assert ended.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("started", "told"),
    [("rayjobs/tune_bas.py", "python rayjobs/evaluate.py"), ("wsol tune bas", "wsol evaluate")],
)
def test_the_way_on_is_told_as_the_job_was_started(monkeypatch, started, told):
    monkeypatch.setattr(sys, "argv", [started])
    assert how_to_run("evaluate") == told
    assert how_to_run("tune_bas").endswith("tune_bas.py" if "/" in started else "wsol tune bas")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_words_and_options(capsys, shell):
    assert command.main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert "wsol" in script
    for word in ("evaluate", "tune", "bagcams", "max-device-hours"):
        assert word in script


def test_a_shell_that_is_not_known():
    with pytest.raises(UsageError, match="a shell is one of bash, zsh, fish but got 'tcsh'"):
        command.main(["--completion", "tcsh"])
