"""Segmentation networks by name: torchvision's, and DeepLabV2 as the field's tables have it.

All read RGB images normalised by ImageNet's mean and deviation. A network of K classes has K + 1 outputs, 0 the
background. What it was started from is part of every result: weights that were trained on masks of pixels
(torchvision's `COCO_WITH_VOC_LABELS_V1`, DeepLab's COCO file) are another supervision than image labels, and are
refused unless asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models import segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.lraspp import LRASPP

from wsol_models._backbones.weights import read_file
from wsol_models._layers import freeze_batch_norm
from wsol_models._lookup import unknown
from wsol_models.segmentation import deeplabv2
from wsol_models.segmentation.losses import nearest, pixel_cross_entropy

SUPERVISIONS = ("labels", "full")
PIXEL_WEIGHTS = "COCO_WITH_VOC_LABELS_V1"  # torchvision's, of 20 classes and background


@dataclass(frozen=True)
class Entry:
    """A network. `recipe`: crop (px), learning rate at a batch of 32, weight decay, epochs. `body`: prefix of the names
    of its backbone in a file of the classifier's. `lacks`: what a batch of one image a worker cannot train."""

    make: Callable[[int], nn.Module]
    imagenet: models.WeightsEnum | None
    crop: int
    lr: float = 0.02
    weight_decay: float = 1e-4
    body: str = ""
    full: models.WeightsEnum | None = None
    pools: bool = False  # batch norm over one value per image


def _deeplabv3(name: str) -> Callable[[int], nn.Module]:
    make = getattr(segmentation, name)
    return lambda labels: make(weights=None, weights_backbone=None, num_classes=labels, aux_loss=True)


def _lraspp(labels: int) -> nn.Module:
    return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=labels)


def _lraspp_v2(labels: int) -> nn.Module:
    """The head of LRASPP on MobileNetV2: strides 8 (32 channels) and 16 (dilated; 1280 channels)."""
    features = models.mobilenet_v2().features
    for block in features[14:18]:
        convolution = block.conv[1][0]
        convolution.stride, convolution.dilation, convolution.padding = (1, 1), (2, 2), (2, 2)
    body = IntermediateLayerGetter(features, {"6": "low", "18": "high"})
    return LRASPP(body, 32, 1280, labels)


NETWORKS: dict[str, Entry] = {
    "deeplabv2_resnet101": Entry(deeplabv2.Network, models.ResNet101_Weights.IMAGENET1K_V1, 321, 2.5e-4, 5e-4),
    "deeplabv3_resnet101": Entry(_deeplabv3("deeplabv3_resnet101"), models.ResNet101_Weights.IMAGENET1K_V1, 480,
                                 full=segmentation.DeepLabV3_ResNet101_Weights[PIXEL_WEIGHTS], pools=True),
    "deeplabv3_resnet50": Entry(_deeplabv3("deeplabv3_resnet50"), models.ResNet50_Weights.IMAGENET1K_V1, 480,
                                full=segmentation.DeepLabV3_ResNet50_Weights[PIXEL_WEIGHTS], pools=True),
    "lraspp_mobilenet_v2": Entry(_lraspp_v2, models.MobileNet_V2_Weights.IMAGENET1K_V1, 321, weight_decay=1e-6,
                                 body="features."),
    "lraspp_mobilenet_v3_large": Entry(_lraspp, models.MobileNet_V3_Large_Weights.IMAGENET1K_V1, 321, weight_decay=1e-6,
                                       body="features.",
                                       full=segmentation.LRASPP_MobileNet_V3_Large_Weights[PIXEL_WEIGHTS]),
}  # fmt: skip


class Network(nn.Module):
    """A network with what is its own in training: losses, groups of the optimizer."""

    def __init__(self, name: str, num_classes: int, frozen_batch_norm: bool = False) -> None:
        super().__init__()
        self.name, self.entry = name, NETWORKS[name]
        self.net = self.entry.make(num_classes + 1)
        if frozen_batch_norm:
            freeze_batch_norm(self.net)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Logits by name, [B, K + 1, ...]: "out", and what else is trained."""
        return self.net(images_BCHW)

    @torch.no_grad()
    def scores(self, images_BCHW: Tensor) -> Tensor:
        """Logits of the images' size, [B, K + 1, H, W]."""
        size = list(images_BCHW.shape[2:])
        return F.interpolate(self.eval()(images_BCHW)["out"], size, mode="bilinear", align_corners=False)

    @property
    def is_multi_scale(self) -> bool:
        return isinstance(self.net, deeplabv2.Network)

    def losses(self, outputs: Mapping[str, Tensor], labels_BHW: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The sum of cross-entropies of each output over pixels with a label, and their number.

        DeepLabV2's outputs meet labels of their own size, others are enlarged to the labels'.
        """
        if not self.is_multi_scale:
            return {name: pixel_cross_entropy(logits, labels_BHW) for name, logits in outputs.items()}
        return {
            name: pixel_cross_entropy(logits, nearest(labels_BHW, logits.shape[2:])) for name, logits in outputs.items()
        }

    def groups(self, lr: float, weight_decay: float) -> list[dict[str, object]]:
        """The optimizer's groups; new layers learn ten times as fast as the backbone."""
        if isinstance(self.net, deeplabv2.Network):
            return deeplabv2.groups(self.net, lr, weight_decay)
        parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.net.named_parameters():
            parts[name.startswith("backbone.")].append(parameter)
        return [{"params": parts[True], "lr": lr, "weight_decay": weight_decay},
                {"params": parts[False], "lr": 10 * lr, "weight_decay": weight_decay}]  # fmt: skip


AUXILIARY = 0.5  # weight of a loss beside the main one; DeepLabV2's four have 1


def total(losses: Mapping[str, tuple[Tensor, Tensor]], multi_scale: bool) -> Tensor:
    """The loss: means over pixels with a label, 0 where there are none, weighted."""
    means = {name: summed / count.clamp(min=1) for name, (summed, count) in losses.items()}
    return torch.stack(
        [mean * (AUXILIARY if name == "aux" and not multi_scale else 1) for name, mean in means.items()]
    ).sum()


def build(
    name: str,
    num_classes: int,
    weights: str | None = None,
    *,
    supervision: str = "labels",
    frozen_batch_norm: bool = False,
) -> Network:
    """A network in training mode.

    weights: of its backbone: "imagenet" (torchvision's, downloaded once), a state dict (`.pth`, `.safetensors`), None
        for random ones; with `supervision` "full" also "COCO_WITH_VOC_LABELS_V1" (its head is left out).
    Raises `ValueError` for an unknown name, for weights that do not fit, or that have seen masks of pixels.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    if supervision not in SUPERVISIONS:
        raise unknown("supervision", supervision, SUPERVISIONS)
    network = Network(name, num_classes, frozen_batch_norm)
    if weights:
        _load(network, weights, supervision)
    return network.train()


def check_weights(weights: str | None, supervision: str) -> None:
    """Raise `ValueError` for weights whose name says that they have seen masks of pixels."""
    if weights and supervision != "full" and "coco" in Path(weights).name.lower():
        raise _saw_masks(weights)


def _saw_masks(weights: str) -> ValueError:
    return ValueError(
        f"Weights {weights} were trained on masks of pixels, so that the result would not be of image labels alone: "
        "take 'imagenet' or a classifier's file, or say --supervision full, which the result then bears."
    )


def _load(network: Network, weights: str, supervision: str) -> None:
    check_weights(weights, supervision)
    state, entry = _state(weights, network.entry, network), network.entry
    if supervision != "full" and any(
        name.startswith(("classifier.low", "classifier.4", "aspp.", "base.aspp.")) for name in state
    ):
        raise _saw_masks(weights)
    if isinstance(network.net, deeplabv2.Network):
        deeplabv2.load(network.net, state, weights)
        return
    body, own = network.net.get_submodule("backbone"), network.net.get_submodule("backbone").state_dict()
    found = {_own_name(name, entry): tensor for name, tensor in state.items()}
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"Weights {weights} are not of {network.name}: {len(missing)} tensors missing {missing[:3]}.")
    try:
        body.load_state_dict({name: found[name] for name in own if name in found}, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"Weights {weights} do not fit {network.name}: {str(error).splitlines()[-1].strip()}"
        ) from error


def _state(weights: str, entry: Entry, network: Network) -> dict[str, Tensor]:
    known = {"imagenet": entry.imagenet, PIXEL_WEIGHTS: entry.full}
    if weights not in known:
        return read_file(weights, own=network.net.state_dict())
    found = known[weights]
    if found is None:
        raise ValueError(f"{network.name} has no weights {weights!r}.")
    return dict(found.get_state_dict(progress=False, check_hash=True, weights_only=True))


def _own_name(name: str, entry: Entry) -> str:
    """The name in the backbone of a tensor of the classifier's file, or of a whole segmentation network's."""
    return name.removeprefix("backbone.").removeprefix(entry.body)
