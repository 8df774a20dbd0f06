"""What more than one method needs: the `Output` of a forward, the detached second pass, freezing, initialisers.

Shapes: B batch, C channels, H W map size, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from wsol_models._lookup import unknown


@dataclass(frozen=True)
class Output:
    """What a forward gives. A method whose losses need more tensors extends it.

    logits_BK: class scores before the softmax.
    features_BCHW: what the linear head reads (`Method.head_weight_KC`), for CAM-like readouts.
    maps_BKHW: the method's own localization maps, if it makes any; None in training, where only the target's is made.
    taps: features of the stages asked for, by stage name.
    targets: the targets the losses are to use, which need not be those handed in (CutMix mixes them).
    """

    logits_BK: Tensor
    features_BCHW: Tensor
    maps_BKHW: Tensor | None = None
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Tensor | None = None


class LocalizationMethod(nn.Module):
    """What every `Method` is: a network that scores classes and from which maps can be read.

    offers: what a readout may ask for, of "own maps" (`Output.maps_BKHW`) and "a linear head" (`head_weight_KC`).
    """

    offers: ClassVar[frozenset[str]] = frozenset()
    config: Any
    num_classes: int

    @property
    def head_weight_KC(self) -> Tensor:
        """Weights of the linear head over `Output.features_BCHW`, of methods that offer one."""
        raise NotImplementedError

    def lr_scale(self, name: str) -> float:
        """Learning rate of the parameter `name` in the paper's recipe, as a multiple of the base rate."""
        raise NotImplementedError


def targets_of(output: Output) -> Tensor:
    """The targets that the losses need. Raises `ValueError` if the forward had none."""
    if output.targets is None:
        raise ValueError("Losses need targets but the forward was run without: call method(images, targets).")
    return output.targets


def require_class_indices(targets: Tensor, images_BCHW: Tensor) -> None:
    """Raise `ValueError` unless there is one int64 class index per image."""
    if targets.shape != images_BCHW.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"Targets must be one int64 class index per image, shape ({len(images_BCHW)},), "
            f"but are {targets.dtype} of shape {tuple(targets.shape)}."
        )


def require_targets(targets: Tensor, images_BCHW: Tensor, num_classes: int) -> None:
    """Raise `ValueError` unless there is one int64 class index per image, or one float multi-hot row with a class."""
    if targets.ndim == 1:
        require_class_indices(targets, images_BCHW)
    elif targets.shape != (len(images_BCHW), num_classes) or not targets.is_floating_point():
        raise ValueError(
            f"Targets must be one int64 class index per image, shape ({len(images_BCHW)},), or float multi-hot rows, "
            f"shape ({len(images_BCHW)}, {num_classes}), but are {targets.dtype} of shape {tuple(targets.shape)}."
        )
    elif not targets.any(1).all():
        raise ValueError("Every image must be of at least one class but a multi-hot row of targets has none.")


def require_not_negative(**values: float) -> None:
    """Raise `ValueError` for the first value that is negative, infinite or NaN."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a finite number >= 0 but is {value}.")


def select_taps(names: Sequence[str], features: Mapping[str, Tensor], stages: Sequence[str]) -> dict[str, Tensor]:
    """Features of the stages asked for. Raises `ValueError` for a stage the backbone lacks."""
    for name in names:
        if name not in features:
            raise unknown("stage", name, stages)
    return {name: features[name] for name in names}


def detached_call(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    """`module(*inputs, **options)` with its parameters as constants: gradients reach the inputs, never the weights.

    The module's mode stays as it is, so batch norm in training normalises with the statistics of these inputs; the
    running statistics it then updates are copies. No module is copied, and the caller's stays untouched.
    """
    constants = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module, constants | buffers, inputs, options)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics in training too; scale and shift stay trainable parameters.

    Not an `nn.BatchNorm2d`, so that neither `train()` nor a conversion to SyncBN brings batch statistics back.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, trained: nn.BatchNorm2d) -> None:
        super().__init__()
        if trained.running_mean is None or trained.running_var is None:
            raise ValueError("A batch norm without running statistics cannot be frozen.")
        self.weight, self.bias, self.eps = trained.weight, trained.bias, trained.eps
        self.register_buffer("running_mean", trained.running_mean)
        self.register_buffer("running_var", trained.running_var)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return F.batch_norm(features_BCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def freeze_batch_norm(module: nn.Module) -> None:
    """Put a `FrozenBatchNorm2d` in place of every batch norm below `module`. For networks whose stored statistics must
    not be replaced: tiny batches, or batch norm folded into the convolutions."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child))
        else:
            freeze_batch_norm(child)


def xavier_(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every convolution below `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def he_(module: nn.Module) -> None:
    """Kaiming-normal weights over the outputs and zero biases for every convolution below `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is a half type, where a division by a small epsilon would overflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
