"""From the device to the host without making either wait before it has to."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def to_host(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to copy tensors to the host; calling what this gives waits, once for all, and returns the copies.

    Tensors that are there already are handed back as they are.
    """
    if not any(tensor.is_cuda for tensor in tensors):
        return lambda: list(tensors)
    copies = [_pinned_like(tensor) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[Tensor]:
        copied.synchronize()
        return copies

    return wait


def _pinned_like(tensor: Tensor) -> Tensor:
    """Room for `tensor` in pinned memory, in its own layout unless it is a part of another: a fused optimizer refuses
    momentum that lies otherwise than its parameter."""
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, pin_memory=True)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
