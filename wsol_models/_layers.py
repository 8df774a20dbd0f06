"""What more than one method needs: the `Output` of a forward, draws by image, rows of other workers, the detached
second pass, freezing, initialisers.

Shapes: B batch, C channels, H W map size, K classes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call
from torch.nn import functional as F

from wsol_models._lookup import unknown

Reduction = Literal["mean", "none"]  # of a term of a loss: over the batch, or a value per image, B


@dataclass(frozen=True)
class Output:
    """What a forward gives. A method whose losses need more tensors extends it.

    logits_BK: class scores before the softmax.
    features_BCHW: what the linear head reads (`Method.head_weight_KC`), for CAM-like readouts.
    maps_BKHW: the method's own localization maps, if it makes any; None where training makes the target's only (BAS).
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

    offers: what a readout may ask for, as "own maps" (`Output.maps_BKHW`) and "a linear head" (`head_weight_KC`).
    remembers: whether training reads buffers that training has written.
    untraceable: why a compiler cannot make one graph of a training forward, "" if it can.
    """

    offers: ClassVar[frozenset[str]] = frozenset()
    remembers: ClassVar[bool] = False
    untraceable: ClassVar[str] = ""
    config: Any
    num_classes: int
    _ids: Sequence[str] | None = None
    _total: int = 0

    @property
    def head_weight_KC(self) -> Tensor:
        """Weights of the linear head over `Output.features_BCHW`, of methods that offer one."""
        raise NotImplementedError

    def lr_scale(self, name: str) -> float:
        """Learning rate of the parameter `name` in the paper's recipe, as a multiple of the base rate."""
        raise NotImplementedError

    def begin_step(self, epoch: int, ids: Sequence[str], total: int) -> None:
        """Told by a training loop before each forward: the epoch, from 0, the images' names in the data set, and how
        many images the step has, those of other workers included.

        For what starts later in training, for draws that shall not depend on which worker has an image, and for what
        workers exchange.
        """
        self._ids, self._total = ids, total

    def draw(self, count: int, *shape: int) -> Tensor:
        """Numbers in [0, 1) for each of the images, count×shape; by image names if a step was begun, which serve one
        draw."""
        ids, self._ids = self._ids, None
        return torch.rand(count, *shape, device="cpu") if ids is None else draw_by_name(ids, shape)

    def one_class(self, targets: Tensor) -> Tensor:
        """Class indices as they are; of multi-hot rows one class each, all of them equally likely."""
        if targets.ndim == 1:
            return targets
        return (targets * (1 + sent(self.draw(*targets.shape), targets.device))).argmax(1)


def draw_by_name(ids: Sequence[str], shape: Sequence[int]) -> Tensor:
    """Numbers in [0, 1) for every image: a function of its name and of one draw for all, the step's."""
    step = int(torch.randint(2**62, (), device="cpu"))
    digests = [hashlib.blake2b(f"{step}/{name}".encode(), digest_size=7).digest() for name in ids]
    generators = [torch.Generator().manual_seed(int.from_bytes(digest)) for digest in digests]
    return torch.stack([torch.rand(*shape, generator=generator, device="cpu") for generator in generators])


def sent(draws: Tensor, device: torch.device) -> Tensor:
    """What was drawn on the host, on `device`; the host does not wait for what the device is doing, which it may have
    to if memory is not pinned."""
    if device.type == "cuda" and not torch.compiler.is_compiling():
        draws = draws.pin_memory()
    return draws.to(device, non_blocking=True)


def rows_of_all_workers(rows: Tensor, total: int) -> tuple[Tensor, int]:
    """Rows (the first dimension) of the whole step, in its order, and the place where this worker's begin.

    `total` is how many they are: the first workers have one row more where it does not divide, as the loop's plan has
    it, so no worker has to ask the others how many they have. Constants for gradients. Without other workers: the rows
    themselves.
    """
    if not _has_workers():
        return rows.detach(), 0
    if total < 1:
        raise ValueError("Workers exchange rows of a step but were not told how many it has: call begin_step before.")
    world = distributed.get_world_size()
    counts = [total // world + (rank < total % world) for rank in range(world)]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])  # what is gathered has to be of one size
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(gathered, padded)
    parts = [part[:count] for part, count in zip(gathered, counts, strict=True)]
    return torch.cat(parts), sum(counts[: distributed.get_rank()])


def sum_of_all_workers(values: Tensor) -> Tensor:
    """The sum over the step's workers, of equal shape on each: a constant for gradients."""
    values = values.detach().clone()
    if _has_workers():
        distributed.all_reduce(values)
    return values


def _has_workers() -> bool:
    return distributed.is_available() and distributed.is_initialized()


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
    """Raise `ValueError` unless there is one int64 class index per image, or one float multi-hot row with a class.

    Whether a row has a class is looked up on a CPU only: of a GPU's rows the host would have to wait for.
    """
    if targets.ndim == 1:
        require_class_indices(targets, images_BCHW)
    elif targets.shape != (images_BCHW.shape[0], num_classes) or not targets.is_floating_point():
        raise ValueError(
            f"Targets must be one int64 class index per image, shape ({len(images_BCHW)},), or float multi-hot rows, "
            f"shape ({len(images_BCHW)}, {num_classes}), but are {targets.dtype} of shape {tuple(targets.shape)}."
        )
    elif targets.is_cpu and not torch.compiler.is_compiling() and not targets.any(1).all():
        raise ValueError("Every image must be of at least one class but a multi-hot row of targets has none.")


def classification(logits_BK: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of the class; of several classes the multi-label soft margin: binary cross-entropy of each, mean
    over classes."""
    if targets.ndim == 2:
        return F.multilabel_soft_margin_loss(at_least_float32(logits_BK), targets, reduction=reduction)
    return F.cross_entropy(logits_BK, targets, reduction=reduction)


def reduced(terms_B: Tensor, reduction: Reduction) -> Tensor:
    """Terms of the images as they are, B, or their mean over the batch."""
    return terms_B if reduction == "none" else terms_B.mean()


def require_not_negative(**values: float) -> None:
    """Raise `ValueError` for the first value that is negative, infinite or NaN."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a finite number >= 0 but is {value}.")


def require_share(**values: float) -> None:
    """Raise `ValueError` for the first value that is not between 0 and 1, both included."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1 but is {value}.")


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


def pooled(maps_BKHW: Tensor) -> Tensor:
    """Means over the positions, B×K, float32 at least: as logits, a half type's would have eight bits."""
    return maps_BKHW.mean((2, 3), dtype=torch.promote_types(maps_BKHW.dtype, torch.float32))


def scored(head: nn.Module, pooled_features: Tensor) -> Tensor:
    """What a linear head makes of pooled features, outside of autocast: bfloat16's logits would tie."""
    with without_autocast(pooled_features.device.type):
        return head(pooled_features.to(next(head.parameters()).dtype))


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Within, products are of the type of their factors."""
    available = torch.amp.is_autocast_available(device)  # not on "meta", where a study's plan looks at a method
    return torch.autocast(device, enabled=False) if available else nullcontext()


def min_max(maps: Tensor) -> Tensor:
    """Every map (the last two dimensions) from 0 to 1, float32 at least; a constant one is 0."""
    maps = at_least_float32(maps)
    low = maps.amin((-2, -1), keepdim=True)
    span = maps.amax((-2, -1), keepdim=True) - low
    return (maps - low) / span.clamp(min=torch.finfo(maps.dtype).tiny)


class Head(nn.Sequential):
    """Layers of which the last is linear: gives its input too."""

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden features and class maps."""
        *hidden, maps = self.children()
        for layer in hidden:
            features_BCHW = layer(features_BCHW)
        return features_BCHW, maps(features_BCHW)


def classifier(in_channels: int, width: int, num_classes: int) -> Head:
    """Two 3x3 convolutions and a 1x1 one, whose class maps have the logits as their means (ACoL, and BAS after it)."""
    head = Head()
    head.add_module("hidden1", nn.Conv2d(in_channels, width, 3, padding=1))
    head.add_module("relu1", nn.ReLU(inplace=True))
    head.add_module("hidden2", nn.Conv2d(width, width, 3, padding=1))
    head.add_module("relu2", nn.ReLU(inplace=True))
    head.add_module("maps", nn.Conv2d(width, num_classes, 1))
    return head
