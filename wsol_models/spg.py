"""SPG: self-produced guidance.

Zhang et al., Self-produced Guidance for Weakly-supervised Object Localization, ECCV 2018,
https://arxiv.org/abs/1807.08902

Where a class map is very high there is object, where it is very low there is none: pseudo masks that teach branches on
earlier, finer features to tell foreground from background, pixel by pixel. B2 learns from the class map, B1 from B2, C
on the last features from both, and as all share the network, the class map gets better too.

As https://github.com/clovaai/wsolevaluation: branches, targets and losses are at the size of the images. The mean of a
branch's loss is over the pixels that its masks keep in the whole batch, of all workers.
The map is the class map, read by `readouts/cam.py`. InceptionV3: B2 reads Mixed_6d, one block before the text's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models._backbones import Backbone
from wsol_models._layers import (
    LocalizationMethod,
    Output,
    at_least_float32,
    classification,
    min_max,
    pooled,
    require_not_negative,
    require_share,
    require_targets,
    scored,
    select_taps,
    sum_of_all_workers,
    targets_of,
    xavier_,
)

IGNORED = 255  # of a pseudo mask, beside 0 and 1
FEW = 30  # pixels of foreground below which the threshold is lowered
RELAXED = 0.7  # of an image's maximum: the lowered threshold


@dataclass(frozen=True)
class Config:
    """Above `_high` a pixel of a pseudo mask is foreground, below `_low` background, between it is ignored.

    attention: of the class map, from 0 to 1, which teaches B2. b2: of B2's probability, which teaches B1. fused: of the
        mean of B1's and B2's, which teaches C. The benchmark's defaults; tuned for ResNet50 on CUB: .41, .35, .24, .21,
        .12, .06.
    large: 28x28 maps at 224 px (else 14x14).
    head_lr_scale: learning rate of all new layers relative to the backbone's. Default: the benchmark's, 10 but on
        ResNets 1.
    layer4_lr_scale: of the last layer of a ResNet.
    """

    attention_high: float = 0.7
    attention_low: float = 0.01
    b2_high: float = 0.5
    b2_low: float = 0.05
    fused_high: float = 0.7
    fused_low: float = 0.1
    large: bool = True
    head_lr_scale: float | None = None
    layer4_lr_scale: float = 10.0

    def __post_init__(self) -> None:
        for name in ("attention", "b2", "fused"):
            high, low = getattr(self, f"{name}_high"), getattr(self, f"{name}_low")
            require_share(**{f"{name}_high": high, f"{name}_low": low})
            if low > high:
                raise ValueError(f"{name}_low must not be above {name}_high ({high}) but is {low}.")
        require_not_negative(head_lr_scale=self.head_lr_scale or 0, layer4_lr_scale=self.layer4_lr_scale)

    @property
    def layout(self) -> str:
        return "large" if self.large else "small"


@dataclass(frozen=True, kw_only=True)
class GuidedOutput(Output):
    """What the losses need, at the images' size: the class map from 0 to 1 and the branches' logits of foreground."""

    attention_BHW: Tensor
    b1_BHW: Tensor
    b2_BHW: Tensor
    c_BHW: Tensor


class Method(LocalizationMethod):
    """Backbone and `fc`; `B1`, `B2` with a common `B_shared`, and `C`: the branches. VGG16 has two more convolutions,
    `A3`, in place of conv6."""

    offers = frozenset({"a linear head"})

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        is_vgg = backbone.family == "vgg"
        self.backbone = backbone.until("relu5_3") if is_vgg else backbone
        if "pool4" in self.backbone.names:
            self.backbone.set_submodule("pool4", nn.MaxPool2d(3, 2, padding=1))
        self.places = guided_places(self.backbone)
        width = 512 if backbone.family in ("vgg", "inception") else backbone.head_width
        channels, in_1, in_2 = self.backbone.last.channels, *(channels_at(self.backbone, p) for p in self.places)
        self.A3 = nn.Sequential(convolution(512, 512), convolution(512, 512)) if is_vgg else nn.Identity()
        self.B1, self.B2 = convolution(in_1, width), convolution(in_2, width)
        self.B_shared = nn.Sequential(convolution(width, width), nn.Conv2d(width, 1, 1))
        self.C = nn.Sequential(convolution(channels, min(width, 512)), nn.Conv2d(min(width, 512), 1, 1))
        self.fc = nn.Linear(channels, num_classes)
        self._initialise()

    @property
    def head_weight_KC(self) -> Tensor:
        """Weights of the linear head over `Output.features_BCHW`."""
        return self.fc.weight

    def forward(self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()) -> Output:
        """targets: int64 class index per image, or float multi-hot rows, of which one class is drawn to guide.

        In training with targets: a `GuidedOutput`. Otherwise the branches are not run. taps: stages whose features are
        returned.
        """
        if targets is not None:
            require_targets(targets, images_BCHW, self.num_classes)
        kept: dict[str, Tensor] = {}
        keepers = {place: partial(keep, kept, place) for place in self.places}
        features_BCHW, tapped = self.backbone(images_BCHW, taps, keepers)
        features_BCHW = self.A3(features_BCHW)
        logits_BK = scored(self.fc, pooled(features_BCHW))
        tapped = select_taps(taps, tapped, self.backbone.names)
        if targets is None or not self.training:
            return Output(logits_BK, features_BCHW, taps=tapped, targets=targets)
        b1_B1HW, b2_B1HW = (
            self.B_shared(branch(kept[place])) for branch, place in zip((self.B1, self.B2), self.places, strict=True)
        )
        enlarge = partial(enlarged, size=images_BCHW.shape[2:])
        return GuidedOutput(
            logits_BK,
            features_BCHW,
            taps=tapped,
            targets=targets,
            attention_BHW=min_max(enlarge(self._class_maps(features_BCHW, self.one_class(targets)))),
            b1_BHW=enlarge(b1_B1HW),
            b2_BHW=enlarge(b2_B1HW),
            c_BHW=enlarge(self.C(features_BCHW)),
        )

    def lr_scale(self, name: str) -> float:
        """The benchmark's groups: by name, all that is new, with VGG16's blocks 4 and 5, and the rest; layer4 and the
        rest of a ResNet."""
        default = 1.0 if self.backbone.family == "resnet" else 10.0
        new = default if self.config.head_lr_scale is None else self.config.head_lr_scale
        if ".layer4." in name:
            return self.config.layer4_lr_scale
        part = name.removeprefix("backbone.")
        return new if part == name or part.startswith(("relu4_", "relu5_")) or self.backbone.is_new(part) else 1.0

    @torch.no_grad()
    def _class_maps(self, features_BCHW: Tensor, classes_B: Tensor) -> Tensor:
        """The linear head at every position, of one class per image, B×1×H×W."""
        weights_BC = self.fc.weight[classes_B].to(features_BCHW.dtype)
        return torch.einsum("bchw,bc->bhw", features_BCHW, weights_BC)[:, None]

    def _initialise(self) -> None:
        for layer in (self.A3, self.B1, self.B2, self.B_shared, self.C, *self.backbone.new_layers()):
            xavier_(layer)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)


def guided_places(backbone: Backbone) -> tuple[str, str]:
    """What B1 and B2 read: the first features at the size of the last map and some later ones; of networks that the
    benchmark does not have, the last stages but two and but one."""
    if backbone.family == "vgg":
        return ("pool4" if "pool4" in backbone.names else "relu4_3"), "relu5_3"
    if backbone.family == "inception":
        return ("Mixed_6a.0" if "Mixed_6a.0" in backbone.places else "Mixed_5d"), "Mixed_6d"
    return ("layer3.0", "layer3") if backbone.family == "resnet" else (backbone.names[-3], backbone.names[-2])


def channels_at(backbone: Backbone, place: str) -> int:
    """Channels of the features at a place; those within a stage have the stage's, but for a pooling in front of it."""
    return backbone.stages["Mixed_5d" if place == "Mixed_6a.0" else place.split(".")[0]].channels


def convolution(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True))


def keep(kept: dict[str, Tensor], place: str, features_BCHW: Tensor) -> Tensor:
    """Remember the features at a place, which go on unchanged."""
    kept[place] = features_BCHW
    return features_BCHW


def enlarged(maps_B1HW: Tensor, size: Sequence[int]) -> Tensor:
    """One map per image, bilinear, B×H×W in float32 at least."""
    return F.interpolate(at_least_float32(maps_B1HW), tuple(size), mode="bilinear")[:, 0]


@torch.no_grad()
def pseudo_mask(attention_BHW: Tensor, high: float, low: float) -> Tensor:
    """1 above `high` (or above .7 of the image's maximum, if these are less than 30 pixels), then 0 below `low`; 255 on
    the rest, which is ignored."""
    foreground_BHW = attention_BHW > high
    few_B11 = foreground_BHW.sum((1, 2), keepdim=True) < FEW
    lowered_BHW = attention_BHW > RELAXED * attention_BHW.amax((1, 2), keepdim=True)
    mask_BHW = torch.full_like(attention_BHW, IGNORED)
    mask_BHW = mask_BHW.masked_fill(torch.where(few_B11, lowered_BHW, foreground_BHW), 1)
    return mask_BHW.masked_fill(attention_BHW < low, 0)


def guidance(logits_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the pixels of the batch that the mask does not ignore.

    Several workers each divide by the kept pixels of an average image of all, so that the mean of what they return,
    weighted by their numbers of images, is the one over all pixels.
    """
    kept_BHW = mask_BHW != IGNORED
    losses_BHW = F.binary_cross_entropy_with_logits(logits_BHW, mask_BHW * kept_BHW, reduction="none")
    counts_2 = kept_BHW.new_zeros(2, dtype=torch.int64)
    counts_2[0], counts_2[1] = kept_BHW.sum(), len(kept_BHW)
    kept, images = sum_of_all_workers(counts_2).to(losses_BHW.dtype)
    return (losses_BHW * kept_BHW).sum((1, 2)).mean() / (kept / images)


def losses(output: Output, config: Config) -> dict[str, Tensor]:
    """Classification and the three guided branches, each with weight 1. Raises `ValueError` without a training pass."""
    if not isinstance(output, GuidedOutput):
        raise ValueError("SPG losses need a forward in training mode with targets: call method.train() first.")
    b1_BHW, b2_BHW = output.b1_BHW.detach().sigmoid(), output.b2_BHW.detach().sigmoid()
    of_attention = pseudo_mask(output.attention_BHW, config.attention_high, config.attention_low)
    of_b2 = pseudo_mask(b2_BHW, config.b2_high, config.b2_low)
    of_both = pseudo_mask((b1_BHW + b2_BHW) / 2, config.fused_high, config.fused_low)
    return {
        "cls": classification(output.logits_BK, targets_of(output)),
        "b2": guidance(output.b2_BHW, of_attention),
        "b1": guidance(output.b1_BHW, of_b2),
        "c": guidance(output.c_BHW, of_both),
    }
