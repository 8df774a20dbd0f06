"""mLDFR: feature recalibration that finds less discriminative parts.

Wang et al., Multi-scale Low-Discriminative Feature Reactivation for Weakly Supervised Object Localization, IEEE
Transactions on Image Processing 2021, https://github.com/wangbo2016/wsol-mLDFR-2020

A classifier's maps show the part that tells classes apart best, since other parts' activations stay low. Two things
raise them: batch normalisation, which brings the channels of a batch to one scale, and a self-attention (SA) after each
of three halvings of the map, which weighs channels and then positions by what the whole image shows. The last halving
gives way to a layer that keeps the map's size; maps of several scales are added up (`readouts/pyramid.py`).

Where the released code and the text differ, this follows the code:

- both branches of SA are batch normalised before the sigmoid, and the maximum over channels comes before the mean;
- `fc`, the 1x1 convolution that makes the class maps, has biases;
- DenseNet161 has its third SA after transition3, not after the fourth halving;
- MobileNetV2 is in the text only: SA after the second, third and fourth halving, new layers as PyTorch starts them.

`bn=False`, the paper's ablation, is in no code. Here every batch norm of the network and of SA goes; ImageNet weights
were trained with them, so what is left has to be trained anew (VGG16 has weights without: backbone `vgg16`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models._backbones import Backbone
from wsol_models._layers import (
    FrozenBatchNorm2d,
    LocalizationMethod,
    Output,
    Reduction,
    classification,
    pooled,
    require_targets,
    select_taps,
    targets_of,
)


@dataclass(frozen=True)
class Config:
    """What is recalibrated, and how.

    sa: self-attention. bn: batch norm, in the network and in SA.
    kernel1, kernel2, kernel3: side of the spatial convolution at the three places of SA, from the input on; odd.
    bn_virtual_batch: images, about, over which batch norm takes its statistics in training; 0: all of a worker's. The
        authors trained on several GPUs without synchronisation: 256 images over 2 to 4 (VGG16: 85 each), DenseNet161's
        128 over 5.
    """

    sa: bool = True
    bn: bool = True
    kernel1: int = 7
    kernel2: int = 5
    kernel3: int = 3
    bn_virtual_batch: int = 0

    layout: ClassVar[str] = "transition"

    def __post_init__(self) -> None:
        for name, size in zip(("kernel1", "kernel2", "kernel3"), self.kernel_sizes, strict=True):
            if size < 1 or size % 2 == 0:
                raise ValueError(f"{name} must be odd and at least 1 but is {size}.")
        if self.bn_virtual_batch < 0 or self.bn_virtual_batch == 1:
            raise ValueError(
                f"bn_virtual_batch must be at least 2 images, or 0 for all, but is {self.bn_virtual_batch}."
            )

    @property
    def kernel_sizes(self) -> tuple[int, int, int]:
        return self.kernel1, self.kernel2, self.kernel3


class Method(LocalizationMethod):
    """Backbone; `sa`: what is inserted after some of its stages; `fc`: class maps, whose means are the logits."""

    offers = frozenset({"own maps", "a linear head"})

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.backbone = config, num_classes, backbone
        places = sa_places(backbone) if config.sa else ()
        self.sa = nn.ModuleDict(
            {
                place: SelfAttention(backbone.stages[place].channels, kernel_size)
                for place, kernel_size in zip(places, config.kernel_sizes, strict=False)
            }
        )
        self.fc = nn.Conv2d(backbone.last.channels, num_classes, 1)
        initialise(self)
        if not config.bn:
            replace_batch_norm(self, lambda layer: nn.Identity())
        elif config.bn_virtual_batch:
            replace_batch_norm(self, lambda layer: ghost(layer, config.bn_virtual_batch))

    @property
    def head_weight_KC(self) -> Tensor:
        """Weights of the linear head over `Output.features_BCHW`."""
        return self.fc.weight.flatten(1)

    def forward(self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()) -> Output:
        """Maps of all classes, in training too: raw, with the bias of `fc`.

        targets: int64 class index per image, or float multi-hot rows; needed by the losses only.
        taps: stages whose features are returned, after their SA. Raises `ValueError` in training on one image with SA
        and batch norm: a channel is then normalised over a single number.
        """
        if targets is not None:
            require_targets(targets, images_BCHW, self.num_classes)
        if self.training and self.config.sa and self.config.bn and len(images_BCHW) == 1:
            raise ValueError(
                "mLDFR normalises each channel's weight over the images of a worker's step: it needs at least 2 (or "
                "sa=False, or bn=False) but got 1."
            )
        features_BCHW, tapped = self.backbone(images_BCHW, taps, dict(self.sa.items()))
        maps_BKHW = self.fc(features_BCHW)
        tapped = select_taps(taps, tapped, self.backbone.names)
        return Output(pooled(maps_BKHW), features_BCHW, maps_BKHW, tapped, targets)

    def lr_scale(self, name: str) -> float:
        """One rate for all."""
        return 1.0


class SelfAttention(nn.Module):
    """SA: X' = X·σ(BN(W GAP(X))) per channel, then Y = X'·σ(BN(k x k convolution of [max_c X', mean_c X'])) per
    position."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), sa_batch_norm(channels))
        spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.spatial = nn.Sequential(spatial, sa_batch_norm(1))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        features_BCHW = features_BCHW * torch.sigmoid(self.channel(features_BCHW.mean((2, 3), keepdim=True)))
        over_channels = [features_BCHW.max(1, keepdim=True).values, features_BCHW.mean(1, keepdim=True)]
        return features_BCHW * torch.sigmoid(self.spatial(torch.cat(over_channels, dim=1)))


def sa_batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.01)


def sa_places(backbone: Backbone) -> list[str]:
    """The stages that SA follows: those that halve the map for the last three times; of DenseNet161 the last is
    transition3, which has lost its halving."""
    strides = [1, *(stage.stride for stage in backbone.stages.values())]
    halving = [name for i, name in enumerate(backbone.names) if strides[i + 1] > strides[i]]
    first, second, third = halving[-3:]
    return [first, second, "transition3" if backbone.family == "densenet" else third]


class GhostBatchNorm2d(nn.Module):
    """Batch norm over virtual batches (Hoffer et al., NIPS 2017, https://arxiv.org/abs/1705.08741): in training each is
    normalised with its own statistics, and moves the running ones in its turn.

    A batch is cut into equal parts whose size is as near to `size` as it can be and at least 2. Not an
    `nn.BatchNorm2d`, so that a conversion to SyncBN does not undo it.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, whole: nn.BatchNorm2d, size: int) -> None:
        super().__init__()
        assert whole.momentum is not None
        self.weight, self.bias, self.eps = whole.weight, whole.bias, whole.eps
        self.momentum, self.size = whole.momentum, size
        self.register_buffer("running_mean", whole.running_mean)
        self.register_buffer("running_var", whole.running_var)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        images = len(features_BCHW)
        parts = max(1, min(round(images / self.size), images // 2)) if self.training else 1
        return torch.cat([self._normalised(part) for part in features_BCHW.tensor_split(parts)])

    def _normalised(self, features_BCHW: Tensor) -> Tensor:
        return F.batch_norm(
            features_BCHW, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum,
            self.eps,
        )  # fmt: skip


def ghost(layer: nn.Module, size: int) -> nn.Module:
    """A frozen batch norm has no batch statistics and stays."""
    return GhostBatchNorm2d(layer, size) if isinstance(layer, nn.BatchNorm2d) else layer


def replace_batch_norm(module: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put `make(layer)` in place of every batch norm below `module`."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.set_submodule(name, make(layer))


def initialise(method: Method) -> None:
    """The authors': Xavier-normal and no bias for SA and `fc`, a normal of .01 cut at two deviations for GoogLeNet.

    New layers of the network, unless its weights brought them: ResNet's as SA, with the batch norm behind them back at
    1 and 0 (but for its running statistics); GoogLeNet's as its SA, InceptionV3's the same with .1; of other networks
    they stay PyTorch's.
    """
    backbone, top = method.backbone, nn.ModuleList([method.sa, method.fc])
    new_layers = nn.ModuleList(backbone.new_layers())
    if backbone.family == "googlenet":
        truncated_normal_(nn.ModuleList([top, new_layers]), 0.01)
        return
    xavier_normal_(top)
    if backbone.family == "inception":
        truncated_normal_(new_layers, 0.1)
    if backbone.family == "resnet" and len(new_layers):
        xavier_normal_(new_layers)
        for layer in normalising(backbone.get_submodule("layer4.0")):
            nn.init.ones_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))


def normalising(block: nn.Module) -> list[nn.Module]:
    """The batch norms behind the new layers of a ResNet's block: its strided convolution and its shortcut's."""
    bottleneck = hasattr(block, "conv3")
    return [block.get_submodule("bn2" if bottleneck else "bn1"), block.get_submodule("downsample.1")]


def xavier_normal_(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for every convolution below `module`."""
    for layer in convolutions(module):
        nn.init.xavier_normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def truncated_normal_(module: nn.Module, std: float) -> None:
    """Weights within two standard deviations of 0 for every convolution below `module`; biases stay as they are."""
    for layer in convolutions(module):
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def losses(output: Output, config: Config, reduction: Reduction = "mean") -> dict[str, Tensor]:
    """Classification: see `classification`."""
    return {"cls": classification(output.logits_BK, targets_of(output), reduction)}
