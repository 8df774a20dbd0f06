"""How pixels enter a network: one definition for training and evaluation."""

import functools

import torch
from torch import Tensor, nn

from wsol_pipeline.device import to_device

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(
    images_BCHW: Tensor,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """uint8 RGB images as `dtype` on `device`, each channel minus ImageNet's mean, divided by its standard deviation.

    Bytes travel to the device, not floats: a quarter of the traffic. One pass there casts and lays them out.
    """
    images_BCHW = to_device(images_BCHW, device).to(dtype, memory_format=layout)
    mean_C11, std_C11 = _statistics(torch.device(device), dtype)
    return images_BCHW.sub_(mean_C11).div_(std_C11)


@functools.cache
def _statistics(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in bytes, each [3, 1, 1]: made once, since the host waits for what it copies over."""
    with torch.inference_mode(False):
        mean_C11, std_C11 = (
            torch.tensor(numbers, dtype=dtype).view(3, 1, 1) * 255 for numbers in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return mean_C11.to(device), std_C11.to(device)


def dtype_of(network: nn.Module) -> torch.dtype:
    """What a network's images have to be: the type of its parameters, float32 of one without."""
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)
