"""What a training's time went to."""

import contextlib
import threading
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


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(*told)`: what was used of a pretended GPU that its driver says `told` of, and then nothing any more."""

    def use(*told):
        answers, over = iter(told), threading.Event()

        def utilization(device):
            assert device == torch.device("cuda", 1)
            with contextlib.suppress(StopIteration):
                return next(answers)
            over.set()
            raise ModuleNotFoundError("nvidia-ml-py")

        monkeypatch.setattr(used, "_EACH", 0.001)
        monkeypatch.setattr(torch.cuda, "utilization", utilization)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        spent = Used(torch.device("cuda", 1))
        with spent.watching():
            assert over.wait(20)
        return spent

    return use


def test_the_driver_is_asked_how_busy_the_gpu_is(gpu):
    spent = gpu(40, 80)
    assert spent.take() == {used.BUSY: 0.6, used.PEAK: 7.0}
    assert spent.take() == {used.PEAK: 7.0}


def test_without_nvml_nothing_is_said_of_it(gpu):
    assert gpu().take() == {used.PEAK: 7.0}


def test_a_cpu_is_not_watched(monkeypatch):
    monkeypatch.setattr(used.Used, "_watch", None)
    with Used(torch.device("cpu")).watching():
        pass


def test_a_sentence_says_the_shares():
    first = {STEPS: 10.0, INPUT: 2.0, VALIDATION: 3.0}
    second = {STEPS: 20.0, INPUT: 3.0, VALIDATION: 7.0, CHECKPOINTS: 5.0}
    records = [{"used": first}, {"used": second}]
    assert used.told(records) == "Of 50 s of its training: 60 % steps, 10 % input, 20 % validation, 10 % checkpoints."
    records[0]["used"] = first | {used.PEAK: 11.2e9}
    assert used.told(records).endswith("10 % checkpoints; 11.2 GB of a GPU at most.")
    records[0]["used"][used.BUSY], records[1]["used"][used.BUSY] = 0.5, 0.9  # of 15 and of 35 seconds
    assert used.told(records).endswith("11.2 GB of a GPU at most; the GPU had work for 78 % of the time.")
    assert used.told([]) == ""


def test_every_record_says_what_its_epoch_used(make_config, fit):
    """The checkpoint of an epoch is written after its record: it stands in the next one."""
    first, last = (record["used"] for record in fit(make_config("cam")).yielded)
    assert {*first} == {STEPS, INPUT, VALIDATION}
    assert {*last} == {STEPS, INPUT, VALIDATION, CHECKPOINTS}
