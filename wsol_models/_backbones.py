"""Backbones: networks of torchvision cut into named stages, which methods weave through.

Three layouts say where the last two halvings of the map are spent (sizes at 224 px):

- `large`: neither happens, 28x28 to the end;
- `small`: the last but one happens, 14x14;
- `late`: only the last one happens: 28x28 up to the last stages, then 14x14.

Strides are edited, dilation is never used and no parameter changes its shape, so ImageNet weights load as they are.
A new backbone is one entry of `BACKBONES`.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from wsol_models._layers import freeze_batch_norm
from wsol_models._lookup import unknown

LAYOUTS = ("large", "small", "late")
PROBE_SIZE = 64  # px: the smallest input whose map is not smaller than 2x2 in any stage here


@dataclass(frozen=True)
class Stage:
    """What a stage hands on. `stride`: pixels of the input per cell of its map."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """Named stages in order.

    stages: name -> channels and stride, measured when the network is built.
    origin: name of each tensor here -> its name in the network that was cut.
    head_width: channels of convolutional heads that methods put on top.
    head: weight and bias of the pretrained classifier (K×C and K), if the loaded weights had one.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        stages: Mapping[str, Stage],
        origin: Mapping[str, str],
        head_width: int = 1024,
        head: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.stages = dict(stages)
        self.origin = dict(origin)
        self.head_width = head_width
        self.head = head

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.stages)

    @property
    def last(self) -> Stage:
        return next(reversed(self.stages.values()))

    def forward(self, features_BCHW: Tensor, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of the last stage, and those of the tapped stages that are here.

        With constant parameters (`detached_call`) the earliest tap becomes a leaf that requires its gradient, so a
        gradient readout differentiates from there on and nothing before it is kept.
        """
        tapped = {}
        for name in self.stages:
            features_BCHW = self.get_submodule(name)(features_BCHW)
            if name in taps:
                if torch.is_grad_enabled() and not features_BCHW.requires_grad:
                    features_BCHW = features_BCHW.detach().requires_grad_()
                tapped[name] = features_BCHW
        return features_BCHW, tapped

    def until(self, stage: str) -> "Backbone":
        """The stages up to and including `stage`; modules are shared, not copied."""
        return self._slice(self.names[: self._position(stage) + 1])

    def after(self, stage: str) -> "Backbone":
        """The stages after `stage`: the identity if it is the last one."""
        return self._slice(self.names[self._position(stage) + 1 :])

    def _position(self, stage: str) -> int:
        if stage not in self.stages:
            raise unknown("stage", stage, self.names)
        return self.names.index(stage)

    def _slice(self, names: Sequence[str]) -> "Backbone":
        modules = {name: self.get_submodule(name) for name in names}
        return Backbone(modules, {name: self.stages[name] for name in names}, self.origin, self.head_width)


@dataclass(frozen=True)
class Entry:
    """One network. `cut` edits its strides for a layout and names its stages; `head` names its linear classifier."""

    network: Callable[[], nn.Module]
    cut: Callable[[Any, str], dict[str, nn.Module]]
    head: str
    imagenet: models.WeightsEnum | None = None
    head_width: int = 1024


def cut_resnet(network: models.ResNet, layout: str) -> dict[str, nn.Module]:
    """Stem and four layers. `late` halves the map by max-pooling in front of layer4 (BAS)."""
    for layer, stride in ((network.layer3, 2 if layout == "small" else 1), (network.layer4, 1)):
        strided = "0.conv2" if hasattr(layer[0], "conv3") else "0.conv1"  # the 3x3 of a bottleneck or a basic block
        set_stride(layer.get_submodule(strided), stride)
        set_stride(layer.get_submodule("0.downsample.0"), stride)
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    layers = {f"layer{i}": network.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)}
    if layout == "late":
        layers["layer4"] = nn.Sequential(nn.MaxPool2d(2), *network.layer4)
    return {"stem": stem} | layers


def set_stride(convolution: nn.Module, stride: int) -> None:
    assert isinstance(convolution, nn.Conv2d)
    convolution.stride = (stride, stride)


def cut_mobilenet_v2(network: models.MobileNetV2, layout: str) -> dict[str, nn.Module]:
    """`features0` to `features18`, numbered as in torchvision.

    The blocks that halve the map last are 7 (28 to 14) and 14 (14 to 7). `late` keeps only the latter, so that BAS
    takes F from `features13`: right before the last strided depthwise convolution, as the paper does in MobileNetV1.
    """
    set_stride(network.features.get_submodule("7.conv.1.0"), 2 if layout == "small" else 1)
    set_stride(network.features.get_submodule("14.conv.1.0"), 2 if layout == "late" else 1)
    return {f"features{i}": block for i, block in enumerate(network.features)}


class Tiny(nn.Module):
    """A network for tests and demonstrations: 16x16 maps at 64 px, no batch norm, trains from scratch in seconds."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        self.blocks = nn.ModuleList(tiny_block(a, b) for a, b in pairwise(widths))
        self.fc = nn.Linear(widths[-1], 1000)


def tiny_block(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, width in enumerate((in_channels, channels)):
        convolution = nn.Conv2d(width, channels, 3, stride=1 if i else 2, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(8, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def cut_tiny(network: Tiny, layout: str) -> dict[str, nn.Module]:
    set_stride(network.blocks.get_submodule("2.0"), 2 if layout == "small" else 1)
    set_stride(network.blocks.get_submodule("3.0"), 2 if layout == "late" else 1)
    return {f"block{i}": block for i, block in enumerate(network.blocks, start=1)}


BACKBONES: dict[str, Entry] = {
    "resnet18": Entry(models.resnet18, cut_resnet, "fc", models.ResNet18_Weights.IMAGENET1K_V1),
    "resnet50": Entry(models.resnet50, cut_resnet, "fc", models.ResNet50_Weights.IMAGENET1K_V1),
    "mobilenet_v2": Entry(
        models.mobilenet_v2, cut_mobilenet_v2, "classifier.1", models.MobileNet_V2_Weights.IMAGENET1K_V1
    ),
    "tiny": Entry(Tiny, cut_tiny, "fc", head_width=64),
}


def backbone(name: str, layout: str, weights: str | None = None, frozen_batch_norm: bool = False) -> Backbone:
    """A network in one of `LAYOUTS`.

    weights: "imagenet" (torchvision's, downloaded once), the path of a `.pth` or `.safetensors` state dict of the
        torchvision network, or None for torchvision's random initialisation.
    frozen_batch_norm: keep the stored statistics of every batch norm while training (`FrozenBatchNorm2d`).
    Raises `ValueError` for a name, layout or file that does not fit.
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    entry = BACKBONES[name]
    network = entry.network()
    head = load_weights(network, read_weights(name, weights), entry.head, weights) if weights else None
    modules = entry.cut(network, layout)
    origin = origin_of(modules, network)
    if frozen_batch_norm:
        freeze_batch_norm(nn.ModuleDict(modules))
    return Backbone(modules, measure(modules), origin, entry.head_width, head)


def origin_of(modules: Mapping[str, nn.Module], network: nn.Module) -> dict[str, str]:
    """Name of each tensor of the stages -> its name in the network that they were cut from."""
    names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    return {
        f"{stage}.{name}": names[id(tensor)]
        for stage, module in modules.items()
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def network_state(method: nn.Module) -> dict[str, Tensor]:
    """The backbone's tensors of a method under the network's own names: `weights` for another method or layout."""
    parts = [module for module in method.modules() if isinstance(module, Backbone)]
    return {part.origin[name]: tensor for part in parts for name, tensor in part.state_dict().items()}


@torch.no_grad()
def measure(modules: Mapping[str, nn.Module]) -> dict[str, Stage]:
    """Channels and stride of every stage, from one small image in eval mode."""
    stages = {}
    parameter = next(p for module in modules.values() for p in module.parameters())
    features_BCHW = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=parameter.device)
    for name, module in modules.items():
        features_BCHW = module.eval()(features_BCHW)
        module.train()
        stages[name] = Stage(features_BCHW.shape[1], PROBE_SIZE // features_BCHW.shape[2])
    return stages


def read_weights(name: str, weights: str) -> dict[str, Tensor]:
    """The state dict that `weights` means for the backbone `name`."""
    if weights == "imagenet":
        imagenet = BACKBONES[name].imagenet
        if imagenet is None:
            known = [other for other, entry in BACKBONES.items() if entry.imagenet]
            raise ValueError(f"{name} has no 'imagenet' weights; networks that have: {', '.join(known)}.")
        return dict(imagenet.get_state_dict(progress=False, check_hash=True))
    if Path(weights).suffix not in (".pth", ".safetensors") or not Path(weights).is_file():
        raise ValueError(f"Weights must be 'imagenet' or an existing .pth or .safetensors file but are {weights!r}.")
    try:
        if weights.endswith(".safetensors"):
            return load_file(weights)
        return dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError) as error:
        raise ValueError(f"{weights} is not a state dict of tensors: {str(error).splitlines()[0]}") from error


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], head: str, source: str | None
) -> tuple[Tensor, Tensor] | None:
    """Load `state` into `network`, all but the classifier `head`, which is returned (K×C, K) if the state has one.

    Raises `ValueError` if tensors are missing, left over or of another shape.
    """
    top = head.split(".")[0] + "."  # the classifier's whole branch: methods put their own head there
    body = {key: tensor for key, tensor in state.items() if not key.startswith(top)}
    try:
        missing, unexpected = network.load_state_dict(body, strict=False)
    except RuntimeError as error:
        raise ValueError(f"Weights {source} do not fit {type(network).__name__}: {error}") from error
    missing = [key for key in missing if not key.startswith(top)]
    if missing or unexpected:
        raise ValueError(
            f"Weights {source} are not of a {type(network).__name__}: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}."
        )
    if f"{head}.weight" not in state or f"{head}.bias" not in state:
        return None
    return state[f"{head}.weight"], state[f"{head}.bias"]
