"""The check of a GPU: it starts where neither Ray nor MLflow is, and runs to its end where no GPU is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "benchmarks/gpu_check.py"
ABSENT = (
    "ray", "mlflow", "optuna", "botocore", "s3fs", "aiobotocore", "boto3", "tenacity", "psutil", "rich", "tyro",
    "sklearn", "pycocotools", "yaml",
)  # fmt: skip


def run(*arguments: str, cwd: Path, absent: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The check as a command, on a machine that lacks some packages."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))"
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


@pytest.mark.slow
def test_it_runs_to_its_end_without_a_gpu(tmp_path):
    ended = run("--device", "cpu", "--quick", "--out", "out", cwd=tmp_path)
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["failed"] == [], {name: result[name] for name in result["failed"]}
    assert all(method["ok"] for method in result["steps_equal"].values() if isinstance(method, dict))
    assert result["not_finite"]["names the step"]
    assert result["not_finite"]["weights untouched"]
    assert ended.returncode == 0
