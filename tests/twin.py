"""Pretended CUDA: a `Twin` says that it is on cuda:0 and holds CPU data.

Operations run on the CPU with real values. What a GPU would refuse (mixed devices, numpy) raises, and every point where
the host would wait for the device (a value read, a copy that blocks, a shape that depends on values) is noted with its
line. So devices and waits are told without a GPU; CUDA's kernels are not.
"""

import collections
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda:0")
READS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
PACKAGES = ("wsol_models", "wsol_pipeline")


class Waits(collections.Counter[str]):
    """How often the host waited, by what for and the line of ours that did."""

    def note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if any(name in frame.filename for name in PACKAGES)]
        at = f"{ours[-1].filename.split('/')[-1]}:{ours[-1].lineno}" if ours else "outside"
        self[f"{what} at {at}"] += 1


waits = Waits()
_issued = [0]  # operations so far


class Twin(torch.Tensor):
    """Autograd and autocast see a CPU tensor; Python, and every operation, one on cuda:0."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Twin":
        twin = torch.Tensor._make_subclass(cls, held, held.requires_grad)
        twin.held = held
        return twin

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            waits.note("copy to the host")
            return self.detach().held.to(dtype=dtype, memory_format=memory_format or torch.preserve_format)
        same = {"dtype": dtype, "memory_format": memory_format}
        return super().to(copy=kwargs.get("copy", False), **{k: v for k, v in same.items() if v is not None})

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def tolist(self) -> Any:
        waits.note("tolist")
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self) -> str:
        return f"Twin{tuple(self.shape)}"


def run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation with a Twin among its inputs, or that is told a CUDA device, done on the CPU."""
    _issued[0] += 1
    name = operation._schema.name.split("::")[1]
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    kwargs, on_device = dict(kwargs), any(isinstance(tensor, Twin) for tensor in tensors)
    kwargs.pop("pin_memory", None)
    if kwargs.get("device") is not None:
        is_cuda = torch.device(kwargs["device"]).type == "cuda"
        if name == "_to_copy" and is_cuda and not on_device and not _is_free(args[0], kwargs):
            waits.note("copy to the device")
        on_device |= is_cuda  # beside a Twin C++ says "cpu": where it sees it
        kwargs["device"] = torch.device("cpu")
    elif name == "copy_":
        on_device, blocks = isinstance(args[0], Twin), not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        if blocks and on_device is not isinstance(args[1], Twin):
            waits.note("copy_")
    elif on_device:
        _check(name, operation, args, tensors)
    with _disable_current_modes():
        result = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
    if args and isinstance(args[0], torch.Tensor) and result is _held(args[0]):
        return args[0]  # in place
    return tree_map(_twin, result) if on_device else result


def _is_free(tensor: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a GPU copies a host's tensor by itself: of memory that is not pinned the driver may wait."""
    return bool(kwargs.get("non_blocking")) and getattr(tensor, "is_in_pinned_memory", False)


def _check(name: str, operation: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    strangers = [tensor for tensor in tensors if not isinstance(tensor, Twin)]
    if any(tensor.ndim for tensor in strangers) and not _in_backward():
        raise RuntimeError(f"Expected all tensors to be on the same device: {operation}")
    if name in READS:
        waits.note(name)
    if name in INDEXING:
        mask = any(index.dtype in (torch.bool, torch.uint8) for index in args[1] if index is not None)
        if mask and (name == "index" or args[2].numel() > 1):  # one value is filled in, without asking where
            waits.note("index by a mask")


def _in_backward() -> bool:
    """Whether C++ does a backward of its own: its zeros are where it takes its inputs to be, which a GPU's are."""
    callers = [frame.name for frame in traceback.extract_stack(limit=10)]
    return "_engine_run_backward" in callers and "backward" not in callers[callers.index("_engine_run_backward") :]


def _one_hot(classes: torch.Tensor, count: int) -> torch.Tensor:
    """`F.one_hot`, whose C++ looks at its values on a CPU only."""
    return (classes[..., None] == torch.arange(count, device=classes.device)).long()


def _grouped(tensors: Any, *args: Any) -> Any:
    """What `torch._C` groups by the device that C++ sees, by the one that Python does."""
    of_twins = any(isinstance(tensor, Twin) for column in tensors for tensor in column)
    groups = _GROUP(tensors, *args)
    return {(CUDA if of_twins else device, dtype): group for (device, dtype), group in groups.items()}


_GROUP = torch._C._group_tensors_by_device_and_dtype


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Twin) else value


def _twin(value: Any) -> Any:
    return Twin(value) if isinstance(value, torch.Tensor) and not isinstance(value, Twin) else value


class _Mode(TorchDispatchMode):
    """Catches factories and copies that name a CUDA device, and pinned memory."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = operation._schema.name.split("::")[1]
        if name in ("pin_memory", "_pin_memory"):
            pinned = args[0].detach().clone()
            pinned.is_in_pinned_memory = True
            return pinned
        if any(issubclass(kind, Twin) for kind in types) or kwargs.get("device") is not None:
            return run(operation, args, kwargs)
        kwargs.pop("pin_memory", None)
        return operation(*args, **kwargs)


class Event:
    """`torch.cuda.Event`, for which the host waits when it is asked to."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, stream: Any = None) -> None:
        self.at = _issued[0]

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        if _issued[0] > self.at:
            waits["a flag of the step before"] += 1  # the device has work meanwhile
        else:
            waits.note("event")


@contextmanager
def pretended(monkeypatch: Any) -> Iterator[Waits]:
    """Within, there is a GPU; gives what the host has waited for since, to be cleared at will."""
    autocast = torch.autocast
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.nn.functional, "one_hot", _one_hot)
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
    monkeypatch.setattr(torch, "autocast", lambda device_type, *args, **options: autocast("cpu", *args, **options))
    torch._C._ensureCUDADeviceGuardSet()
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # else `torch.tensor` asks the driver
    waits.clear()
    try:
        with _Mode():
            yield waits
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)


def moved(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers on the pretended device, in their layout."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(Twin(parameter.detach()), parameter.requires_grad)
        part._buffers.update({name: Twin(buffer) for name, buffer in part._buffers.items() if buffer is not None})
    return module
