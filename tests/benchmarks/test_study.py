"""The shares of a trial in `benchmarks/study.py`, worked out by hand."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_shares_of_a_trial(monkeypatch):
    """Passes of 1, 3 (a rung), 1 and, last, 4 + 1 seconds: the search, then the images at what was chosen."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shares = importlib.import_module("study").shares
    records = [
        {"seconds": 10.0, "device_seconds": 10.0 + validation, "searched": searched, "final": final}
        for validation, searched, final in [(1, False, False), (3, True, False), (1, False, False), (5, True, True)]
    ]
    expected = {"training": 40, "one setting": 3, "searched at rungs": 3, "searched at the end": 4}
    assert shares(records) == pytest.approx({name: seconds / 50 for name, seconds in expected.items()})
