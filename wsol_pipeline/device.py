"""Between host and device without making either wait before it has to; and in which arithmetic maps are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`. A GPU copies pinned memory by itself; of other memory the host may wait until the GPU has
    done what it was given before."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to copy tensors to the host; calling what this gives waits, once for all, and returns the copies.

    Tensors that are there already are handed back as they are.
    """
    if not any(tensor.is_cuda for tensor in tensors):
        return lambda: list(tensors)
    copies = [_pinned_like(tensor) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # who waits spins otherwise, on a core that scores maps
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


@contextmanager
def as_models_are_read() -> Iterator[None]:
    """Within, a map is the same in a study as wherever its model is read: without TF32, which rounds the factors of
    float32 to ten bits and PyTorch allows in convolutions, and by kernels that no search has picked, which begins anew
    for each shape of image."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = products.allow_tf32 = cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = before
