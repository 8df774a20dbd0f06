"""What a training's time went to."""

from types import SimpleNamespace

import pytest
import torch

from wsol_pipeline.training import used
from wsol_pipeline.training.used import CHECKPOINTS, INPUT, STEPS, VALIDATION, Used


@pytest.fixture
def clock(monkeypatch):
    """`clock.now`: the seconds that pass only when the test says so."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(used.time, "monotonic", lambda: clock.now)
    return clock


def test_seconds_are_those_within_and_begin_anew_when_they_are_taken(clock):
    spent = Used(torch.device("cpu"))

    def batches():
        for item in range(3):
            clock.now += 2
            yield item

    for _ in spent.waiting(batches()):
        with spent.timing(STEPS):
            clock.now += 5
    with spent.timing(VALIDATION):
        clock.now += 1
    assert spent.take() == {INPUT: 6.0, STEPS: 15.0, VALIDATION: 1.0}
    assert spent.take() == {}


def test_a_sentence_says_the_shares():
    first = {STEPS: 10.0, INPUT: 2.0, VALIDATION: 3.0}
    second = {STEPS: 20.0, INPUT: 3.0, VALIDATION: 7.0, CHECKPOINTS: 5.0}
    records = [{"used": first}, {"used": second}]
    assert used.told(records) == "Of 50 s of its training: 60 % steps, 10 % input, 20 % validation, 10 % checkpoints."
    records[0]["used"] = first | {used.PEAK: 11.2e9}
    assert used.told(records).endswith("10 % checkpoints; 11.2 GB of a GPU at most.")
    assert used.told([]) == ""


def test_every_record_says_what_its_epoch_used(make_config, fit):
    """The checkpoint of an epoch is written after its record: it stands in the next one."""
    first, last = (record["used"] for record in fit(make_config("cam")).yielded)
    assert {*first} == {STEPS, INPUT, VALIDATION}
    assert {*last} == {STEPS, INPUT, VALIDATION, CHECKPOINTS}
