"""Every benchmark runs and ends with a line of JSON. What it measures is not judged: a test machine is never quiet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHORT = {
    "evaluation": ["--maps", "4", "--loops", "1"],
    "crop": ["--images", "32", "--rounds", "1"],
    "readout": ["--classes", "5", "--rounds", "1", "--backbone", "tiny"],
    "dataset": ["--sizes", "64", "128", "--photographs", "20"],
    "small_jpegs": ["--images", "40", "--rounds", "1"],
    "shards": ["--images", "100", "--rounds", "1"],
    "memory": ["--images", "100"],
    "step": ["--pairs", "1", "--size", "32", "--batch", "2", "--backbone", "resnet18"],
    "step_compiled": ["--pairs", "1", "--size", "32", "--batch", "2", "--backbone", "resnet18"],
    "step_bcam": ["--pairs", "1", "--size", "32", "--batch", "2", "--backbone", "resnet18"],
    "solving": ["--quick"],
    "startup": ["--quick"],
    "study": ["--quick"],
    "training": ["--quick"],
    "trial": ["--quick"],
    "thousand": ["--trials", "6", "--epochs", "4", "--settings", "3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_it_runs(name, tmp_path):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *SHORT[name]]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.loads(ended.stdout.splitlines()[-1])["benchmark"] == name
