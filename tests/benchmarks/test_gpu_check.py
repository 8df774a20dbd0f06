"""The check of a GPU: it starts where neither Ray nor MLflow is, and runs to its end where no GPU is."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "benchmarks/gpu_check.py"
ABSENT = (
    "ray", "mlflow", "optuna", "botocore", "s3fs", "aiobotocore", "boto3", "tenacity", "psutil", "rich", "tyro",
    "sklearn", "pycocotools", "yaml",
)  # fmt: skip


def run(*arguments: str, cwd: Path, absent: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The check as a command, on a machine that lacks some packages."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); sys.path.insert(0, {str(CHECK.parent)!r})"
    started = f"import runpy; sys.argv = {[str(CHECK), *arguments]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"{hidden}; {started}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_it_starts_without_ray_and_mlflow(tmp_path):
    ended = run("--device", "cpu", "--quick", "--only", "machine", cwd=tmp_path, absent=ABSENT)
    assert ended.returncode == 0, ended.stderr[-2000:]
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["machine"]["gpu"] == "none"
    assert json.loads((tmp_path / "gpu_check.json").read_text())["machine"] == result["machine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda"], "--device cuda needs a GPU but this machine has none"),
        (["--device", "cpu", "--only", "machine,mapz"], "--only knows machine, steps_equal, .* but got 'mapz'"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_line(tmp_path, arguments, words):
    ended = run(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    (told,) = [line for line in ended.stderr.splitlines() if "error:" in line]
    assert re.search(words, told)


def fails(check):
    yield {"found": 1}
    raise RuntimeError("no kernel for this")


def crashes(check):
    yield {"found": 1}
    time.sleep(0.1)  # the piece is on its way
    os._exit(7)


def hangs(check):
    yield {"found": 1}
    time.sleep(60)


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        (fails, "RuntimeError: no kernel for this"),
        (crashes, "its process ended with 7"),
        (hangs, "cut off after 1 s"),
    ],
)
def test_a_section_that_ends_badly_keeps_what_it_found_and_ends_alone(monkeypatch, tmp_path, capsys, measure, told):
    monkeypatch.syspath_prepend(str(CHECK.parent))
    check = importlib.import_module("gpu_check")
    here = check.Check(check.torch.device("cpu"), True, None, None, time.monotonic() + 4)
    monkeypatch.setattr(check, "SECTIONS", {"bad": (measure, 0.0), "machine": check.SECTIONS["machine"]})
    results = check.run(here, [], tmp_path)
    assert (results["bad"]["found"], results["bad"]["error"]) == (1, told)
    assert results["machine"]["gpu"] == "none"
    assert json.loads((tmp_path / "gpu_check.json").read_text()).keys() == {"bad", "machine"}
    assert told in capsys.readouterr().out


def is_wrong(check):
    yield {"found": {"ok": True, "deeper": {"apart": 1.0, "ok": False}}}


def test_what_is_not_as_it_has_to_be_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(CHECK.parent))
    check = importlib.import_module("gpu_check")
    monkeypatch.setattr(check, "SECTIONS", {"wrong": (is_wrong, 0.0), "machine": check.SECTIONS["machine"]})
    assert check.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == ["wrong"]


@pytest.mark.slow
def test_it_runs_to_its_end_without_a_gpu_ray_and_mlflow(tmp_path):
    ended = run("--device", "cpu", "--quick", "--out", "out", "--seconds", "1500", cwd=tmp_path, absent=ABSENT)
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["failed"] == [], {name: result[name] for name in result["failed"]}
    for name in ("steps_equal", "maps_equal", "compiled_steps", "resumed"):
        assert all(here["ok"] for here in result[name].values() if isinstance(here, dict))
    assert {"cam", "bas"} <= result["compiled_steps"].keys()
    assert result["not_finite"]["ok"]
    assert result["checkpoint"]["ok"]
    assert len(result["two_trials"]["2 at once"]) == 2
    assert {"cam, seed 0", "bas, seed 0"} <= result["ranking"].keys()
    assert ended.returncode == 0
