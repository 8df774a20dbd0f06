"""What is computed in where the options leave it to the device."""

import os

import pytest
import torch

from wsol_pipeline.errors import UsageError
from wsol_pipeline.training.arithmetic import WORKSPACE, arithmetic
from wsol_pipeline.training.config import TrainConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def able(monkeypatch):
    """`able(bool)`: pretend a GPU with or without bfloat16; puts back what PyTorch keeps for the process."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    yield lambda has: monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = flags
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("config", "device", "has", "told"),
    [
        ({}, CPU, True, "float32"),
        ({}, CUDA, True, "bfloat16, channels last"),
        ({}, CUDA, False, "float32, channels last"),
        ({"precision": "float32", "channels_last": False}, CUDA, True, "float32"),
        ({"precision": "bfloat16"}, CPU, False, "bfloat16"),
        ({"deterministic": True, "channels_last": True}, CPU, True, "float32, channels last, deterministic"),
        ({"deterministic": True, "compile": True}, CPU, True, "float32, deterministic, compiled"),
        ({"precision": "float64"}, CUDA, True, "float64, channels last"),
    ],
)
def test_the_device_decides_what_is_not_said(able, config, device, has, told):
    able(has)
    assert arithmetic(TrainConfig(**config), device).told == told


def test_bfloat16_is_refused_by_a_gpu_without(able):
    able(False)
    with pytest.raises(UsageError, match="--precision bfloat16 needs a GPU that has it .* say float32, or auto"):
        arithmetic(TrainConfig(precision="bfloat16"), CUDA)


@pytest.mark.parametrize(("before", "after"), [(None, ":4096:8"), (":16:8", ":16:8"), (":0:0", ":4096:8")])
def test_a_workspace_that_cublas_cannot_repeat_with_is_replaced(able, monkeypatch, before, after):
    able(True)
    monkeypatch.setenv(WORKSPACE, before or "")
    arithmetic(TrainConfig(deterministic=True), CUDA).settle()
    assert os.environ[WORKSPACE] == after


@pytest.mark.parametrize(
    ("config", "benchmark", "deterministic"),
    [({}, True, False), ({"precision": "float32"}, True, False), ({"deterministic": True}, False, True)],
)
def test_what_pytorch_keeps_for_the_process_is_set_for_each_run(able, config, benchmark, deterministic):
    able(True)
    arithmetic(TrainConfig(deterministic=not deterministic), CUDA).settle()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    arithmetic(TrainConfig(**config), CUDA).settle()
    assert kept() == (False, False, benchmark)
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def kept() -> tuple[bool, bool, bool]:
    backends = torch.backends
    return backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark
