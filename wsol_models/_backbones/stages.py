"""A network as named stages: what methods weave through, and what every file of this folder makes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision import models

from wsol_models._lookup import unknown

LAYOUTS = ("large", "small", "late", "transition")
PROBE_SIZES = (64, 128)  # px
Insertion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """What a stage hands on. `stride`: pixels of the input per cell of its map."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """Named stages in order.

    stages: name -> channels and stride, measured when the network is built.
    origin: name of each tensor here -> its name in the network that was cut; layers that a layout adds have none.
    family: name of the network's file, by which papers choose initialisations.
    head_width: channels of convolutional heads that methods put on top.
    head: weight and bias of the pretrained classifier (K×C and K), if the loaded weights had one.
    brought_added: the loaded weights had the layers that the layout adds.
    awaits_weights: a state dict of the whole method will be loaded: nothing can be started from `head` yet.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        stages: Mapping[str, Stage],
        origin: Mapping[str, str],
        family: str,
        head_width: int = 1024,
        head: tuple[Tensor, Tensor] | None = None,
        awaits_weights: bool = False,
        brought_added: bool = False,
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.stages = dict(stages)
        self.origin = dict(origin)
        self.family = family
        self.head_width = head_width
        self.head = head
        self.awaits_weights = awaits_weights
        self.brought_added = brought_added

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.stages)

    @property
    def last(self) -> Stage:
        return next(reversed(self.stages.values()))

    @property
    def places(self) -> tuple[str, ...]:
        """Where `forward` can insert a module: after a stage, or after a child of a sequential one, as `layer3.0`."""
        found = []
        for name in self.names:
            stage = self.get_submodule(name)
            found += [f"{name}.{child}" for child, _ in stage.named_children()] if type(stage) is nn.Sequential else []
            found.append(name)
        return tuple(found)

    def forward(
        self, features_BCHW: Tensor, taps: Sequence[str] = (), inserted: Mapping[str, Insertion] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of the last stage, and those of the tapped stages that are here.

        inserted: place (see `places`) -> what changes (or keeps) the features there, for methods that sit inside the
        network; a tap of the same name comes after it. Places of stages that are not here are left to who has them.

        With constant parameters (`detached_call`) the earliest tap becomes a leaf that requires its gradient, so a
        gradient readout differentiates from there on and nothing before it is kept.
        """
        tapped = {}
        for name in self.stages:
            features_BCHW = run(self.get_submodule(name), name, features_BCHW, inserted or {})
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

    def is_new(self, name: str) -> bool:
        """Whether the tensor `name` belongs to a layer that the layout adds, for which there are no weights to load."""
        return name not in self.origin

    def new_layers(self) -> list[nn.Module]:
        """The layers that the layout adds, for a method to start; none if the weights brought them."""
        if self.brought_added:
            return []
        owners = [name.rpartition(".")[0] for name, _ in self.named_parameters() if self.is_new(name)]
        return [self.get_submodule(owner) for owner in dict.fromkeys(owners)]

    def _position(self, stage: str) -> int:
        if stage not in self.stages:
            raise unknown("stage", stage, self.names)
        return self.names.index(stage)

    def _slice(self, names: Sequence[str]) -> "Backbone":
        modules = {name: self.get_submodule(name) for name in names}
        stages = {name: self.stages[name] for name in names}
        return Backbone(modules, stages, self.origin, self.family, self.head_width, brought_added=self.brought_added)


def run(module: nn.Module, place: str, features_BCHW: Tensor, inserted: Mapping[str, Insertion]) -> Tensor:
    """`module`, child by child if something is inserted within, then what is inserted after it."""
    if any(other.startswith(f"{place}.") for other in inserted):
        for name, child in module.named_children():
            features_BCHW = run(child, f"{place}.{name}", features_BCHW, inserted)
    else:
        features_BCHW = module(features_BCHW)
    return inserted[place](features_BCHW) if place in inserted else features_BCHW


@dataclass(frozen=True)
class Entry:
    """One network.

    network: makes it, with random weights. cut: edits its strides for a layout and names its stages.
    layouts: those of `LAYOUTS` that it has.
    head: name of its linear classifier. unused: prefixes of other tensors in its weights that no stage has.
    rename: name of a tensor in a file of weights -> its name in the network.
    """

    family: str
    network: Callable[[], nn.Module]
    cut: Callable[[Any, str], dict[str, nn.Module]]
    head: str
    imagenet: models.WeightsEnum | None = None
    layouts: tuple[str, ...] = LAYOUTS
    unused: tuple[str, ...] = ()
    rename: Callable[[str], str] = str
    head_width: int = 1024


def set_stride(convolution: nn.Module, stride: int) -> None:
    assert isinstance(convolution, nn.Conv2d)
    convolution.stride = (stride, stride)


def transition(in_channels: int, channels: int, kernel_size: int = 1) -> nn.Sequential:
    """What mLDFR puts in place of the last halving: a convolution, new batch norm, ReLU."""
    convolution = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def with_transition(stages: Mapping[str, nn.Module], name: str, channels: tuple[int, int]) -> dict[str, nn.Module]:
    """The stages with a 1x1 `transition` in place of the one called `name`."""
    return {
        ("transition" if key == name else key): transition(*channels) if key == name else stage
        for key, stage in stages.items()
    }


def origin_of(modules: Mapping[str, nn.Module], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of each tensor of the stages -> its name in the network, for those that are in `own`: what the network had
    before it was cut."""
    names = {id(tensor): name for name, tensor in own.items()}
    return {
        f"{stage}.{name}": names[id(tensor)]
        for stage, module in modules.items()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if id(tensor) in names
    }


def measure(modules: Mapping[str, nn.Module]) -> dict[str, Stage]:
    """Channels and stride of every stage, from the shapes of two images of different size.

    Two, since a layer without padding takes cells off the border: the stride is how many more pixels make one more.
    """
    small, large = (shapes(modules, size) for size in PROBE_SIZES)
    pixels = PROBE_SIZES[1] - PROBE_SIZES[0]
    return {name: Stage(large[name][1], pixels // (large[name][2] - small[name][2])) for name in modules}


@torch.no_grad()
def shapes(modules: Mapping[str, nn.Module], size: int) -> dict[str, torch.Size]:
    """Shape of every stage's features for an image of `size` pixels; on the meta device, so nothing is computed."""
    found, features_BCHW = {}, torch.empty(1, 3, size, size, device="meta")
    for name, module in modules.items():
        state = {key: tensor.to("meta") for key, tensor in module.state_dict().items()}
        features_BCHW = functional_call(module.eval(), state, (features_BCHW,))
        module.train()
        found[name] = features_BCHW.shape
    return found
