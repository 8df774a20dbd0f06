"""DeepLabV2 on ResNet101, at three scales (Chen et al., TPAMI 2018, https://arxiv.org/abs/1606.00915).

As https://github.com/kazuto1011/deeplab-pytorch has it, which the field's papers train: the halvings of the last two
stages become dilations 2 and 4, four dilated convolutions are summed, batch norm is frozen. It reads BGR values less a
mean, which `prepare` makes of what all networks here get.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from wsol_models._layers import freeze_batch_norm
from wsol_models.segmentation.losses import maximum

SCALES = (0.5, 0.75)  # beside the image itself
MEAN_BGR = (104.008, 116.669, 122.675)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PARTS = {"reduce": ("conv1", "bn1"), "conv3x3": ("conv2", "bn2"), "increase": ("conv3", "bn3"),
          "shortcut": ("downsample.0", "downsample.1")}  # fmt: skip


class Aspp(nn.Module):
    """The sum of four 3x3 convolutions of dilations 6, 12, 18, 24."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        for number, dilation in enumerate((6, 12, 18, 24)):
            layer = nn.Conv2d(channels, labels, 3, padding=dilation, dilation=dilation)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            self.add_module(f"c{number}", layer)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return torch.stack([layer(features_BCHW) for layer in self.children()]).sum(0)


class Network(nn.Module):
    """The network at one scale and at all: training gives the logits of each, and their maximum."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.body = dilated_resnet101()
        self.aspp = Aspp(2048, labels)
        freeze_batch_norm(self.body)
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_("bn" not in name and "downsample.1" not in name)

    def at_one_scale(self, images_BCHW: Tensor) -> Tensor:
        return self.aspp(self.body(images_BCHW))

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Logits [B, L, ceil(H / 8), ceil(W / 8)]: "out", the maximum over scales, and each scale's by its name."""
        images_BCHW = prepare(images_BCHW)
        logits = {"1": self.at_one_scale(images_BCHW)}
        for scale in SCALES:
            small = F.interpolate(images_BCHW, scale_factor=scale, mode="bilinear", align_corners=False)
            logits[f"{scale:g}"] = self.at_one_scale(small)
        return {"out": maximum(list(logits.values()))} | logits


def dilated_resnet101() -> nn.Sequential:
    """torchvision's ResNet101 without its head, output stride 8, strides in the first 1x1 as MSRA has them."""
    network = models.resnet101(replace_stride_with_dilation=[False, True, True])
    network.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    first = network.layer2[0]
    first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
    for layer, dilation in ((network.layer3, 2), (network.layer4, 4)):
        for block in layer:  # torchvision gives the first block the dilation before
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    stem = nn.Sequential()
    for name in ("conv1", "bn1", "relu", "maxpool"):
        stem.add_module(name, network.get_submodule(name))
    body = nn.Sequential()
    body.add_module("stem", stem)
    for number in (1, 2, 3, 4):
        body.add_module(f"layer{number}", network.get_submodule(f"layer{number}"))
    return body


def prepare(images_BCHW: Tensor) -> Tensor:
    """BGR 0..255 less the mean, of RGB images that were normalised by ImageNet's mean and deviation."""
    column = lambda values: images_BCHW.new_tensor(values).view(3, 1, 1)  # noqa: E731
    pixels = (images_BCHW * column(IMAGENET_STD) + column(IMAGENET_MEAN)) * 255
    return pixels.flip(1) - column(MEAN_BGR)


def groups(network: Network, lr: float, decay: float = 5e-4) -> list[dict[str, object]]:
    """The optimizer's groups: convolutions of the body; weights of the head at 10, biases of the head at 20 times."""
    head = dict(network.aspp.named_parameters())
    body = [parameter for parameter in network.body.parameters() if parameter.requires_grad]
    weights, biases = ([p for name, p in head.items() if name.endswith(end)] for end in ("weight", "bias"))
    return [
        {"params": body, "lr": lr, "weight_decay": decay},
        {"params": weights, "lr": 10 * lr, "weight_decay": decay},
        {"params": biases, "lr": 20 * lr, "weight_decay": 0.0},
    ]


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names of deeplab-pytorch, or of torchvision's ResNet101, under ours."""
    return {_ours(name.removeprefix("base.")): tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _ours(name: str) -> str:
    part = name.split(".")
    if part[0] == "aspp":
        return name
    if part[:2] == ["layer1", "conv1"]:
        return ".".join(["body.stem", {"conv": "conv1", "bn": "bn1"}[part[2]], *part[3:]])
    if len(part) > 4 and part[1].startswith("block"):
        stage, block = int(part[0][-1]) - 1, int(part[1].removeprefix("block")) - 1
        layer = _PARTS[part[2]][part[3] == "bn"]
        return ".".join([f"body.layer{stage}.{block}", layer, *part[4:]])
    return f"body.{name}" if part[0].startswith("layer") else f"body.stem.{name}"


def load(network: Network, state: Mapping[str, Tensor], source: str) -> Sequence[str]:
    """Load a file's tensors; returns the names that it lacks, which only the head's may be. Raises `ValueError`."""
    ours = renamed(state)
    own = network.state_dict()
    missing = [name for name in own if name not in ours and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in ours if name not in own and not name.endswith("num_batches_tracked")]
    if unexpected or any(not name.startswith("aspp.") for name in missing):
        raise ValueError(f"Weights {source} are not of a ResNet101: {len(missing)} tensors missing {missing[:3]}, "
                         f"{len(unexpected)} unexpected {unexpected[:3]}.")  # fmt: skip
    network.load_state_dict({name: tensor for name, tensor in ours.items() if name in own}, strict=False)
    return missing
