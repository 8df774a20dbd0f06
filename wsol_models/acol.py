"""ACoL: adversarial complementary learning.

Zhang et al., Adversarial Complementary Learning for Weakly Supervised Object Localization, CVPR 2018,
https://arxiv.org/abs/1804.06962

Two classifiers A and B read the same features, but for B those are erased where A's map of the class is high. So B has
to find other parts of the object than A. The map is the maximum of both, each from 0 to 1.

As https://github.com/clovaai/wsolevaluation: logits are A's; A's map, from 0 to 1, is constant for the gradients of B;
without targets the erased class is A's most probable one. VGG16 has wider pooling windows than CAM's, an average-pool
before the heads and no conv6; InceptionV3 ends at Mixed_6e. On ResNets only layer4 has a higher learning rate there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsol_models._backbones import Backbone
from wsol_models._layers import (
    LocalizationMethod,
    Output,
    Reduction,
    classification,
    classifier,
    he_,
    min_max,
    pooled,
    require_not_negative,
    require_share,
    require_targets,
    select_taps,
    targets_of,
    xavier_,
)

ENDS = {"vgg": "relu5_3", "inception": "Mixed_6e"}  # the heads replace what the layouts add to the networks


@dataclass(frozen=True)
class Config:
    """threshold: δ, value of A's map from which on features are erased for B; .57 tuned for ResNet50 on CUB.

    large: 28x28 maps at 224 px (else 14x14).
    head_width: channels of the heads' hidden convolutions. Default: the backbone's (1024 in the benchmark).
    head_lr_scale: learning rate of the heads relative to the backbone's. Default: the benchmark's, 10 but on ResNets 1.
    layer4_lr_scale: of the last layer of a ResNet.
    """

    threshold: float = 0.7
    large: bool = True
    head_width: int | None = None
    head_lr_scale: float | None = None
    layer4_lr_scale: float = 10.0

    def __post_init__(self) -> None:
        require_share(threshold=self.threshold)
        require_not_negative(head_lr_scale=self.head_lr_scale or 0, layer4_lr_scale=self.layer4_lr_scale)
        if self.head_width is not None and self.head_width < 1:
            raise ValueError(f"head_width must be at least 1 but is {self.head_width}.")

    @property
    def layout(self) -> str:
        return "large" if self.large else "small"


@dataclass(frozen=True, kw_only=True)
class ComplementaryOutput(Output):
    """What the losses need beside A's logits: B's."""

    logits_b_BK: Tensor


class Method(LocalizationMethod):
    """Backbone, `classifier_A` and, on erased features, `classifier_B`."""

    offers = frozenset({"own maps", "a linear head"})

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.backbone = backbone.until(ENDS.get(backbone.family, backbone.names[-1]))
        self._pools = overlapping_pools(self.backbone) if backbone.family == "vgg" else {}
        channels, width = self.backbone.last.channels, config.head_width or backbone.head_width
        self.classifier_A = classifier(channels, width, num_classes)
        self.classifier_B = classifier(channels, width, num_classes)
        for head in (self.classifier_A, self.classifier_B):
            (he_ if backbone.family == "resnet" else xavier_)(head)

    @property
    def head_weight_KC(self) -> Tensor:
        """Weights of A's linear layer over `Output.features_BCHW`."""
        return self.classifier_A.get_parameter("maps.weight").flatten(1)

    def forward(
        self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()
    ) -> ComplementaryOutput:
        """targets: int64 class index per image, or float multi-hot rows: the class whose map erases, or one of them.

        Without targets it is A's most probable class. `maps_BKHW`, not in training, depends on it: the map of class y
        is the benchmark's where y is the target. taps: stages whose features are returned.
        """
        if targets is not None:
            require_targets(targets, images_BCHW, self.num_classes)
        features_BCHW, tapped = self.backbone(images_BCHW, taps, self._pools)
        hidden_BCHW, maps_a_BKHW = self.classifier_A(features_BCHW)
        logits_BK = pooled(maps_a_BKHW)
        classes_B = logits_BK.argmax(1) if targets is None else self.one_class(targets)
        left_B1HW = complement(maps_a_BKHW, classes_B, self.config.threshold)
        _, maps_b_BKHW = self.classifier_B(features_BCHW * left_B1HW)
        return ComplementaryOutput(
            logits_BK,
            hidden_BCHW,
            None if self.training else fused(maps_a_BKHW, maps_b_BKHW),
            select_taps(taps, tapped, self.backbone.names),
            targets,
            logits_b_BK=pooled(maps_b_BKHW),
        )

    def lr_scale(self, name: str) -> float:
        """The benchmark's groups: by name, heads and backbone; layer4 and the rest of a ResNet."""
        if name.startswith("classifier_"):
            default = 1.0 if self.backbone.family == "resnet" else 10.0
            return default if self.config.head_lr_scale is None else self.config.head_lr_scale
        return self.config.layer4_lr_scale if ".layer4." in name else 1.0


def overlapping_pools(backbone: Backbone) -> dict[str, nn.Module]:
    """Give VGG16's poolings windows of 3; what comes after stages beside: pool5, and pool4 where the layout has none,
    both without stride, and the average-pool."""
    for name in backbone.names:
        if name.startswith("pool"):
            backbone.set_submodule(name, nn.MaxPool2d(3, 2, padding=1))
    smooth = nn.MaxPool2d(3, 1, padding=1)
    inserted: dict[str, nn.Module] = {"relu5_3": nn.Sequential(smooth, nn.AvgPool2d(3, 1, padding=1))}
    return inserted if "pool4" in backbone.names else {"relu4_3": smooth, **inserted}


@torch.no_grad()
def complement(maps_BKHW: Tensor, classes_B: Tensor, threshold: float) -> Tensor:
    """0 where the class's map, from 0 to 1, reaches the threshold, else 1, B×1×H×W."""
    rows_B = torch.arange(len(maps_BKHW), device=maps_BKHW.device)
    attention_BHW = min_max(maps_BKHW[rows_B, classes_B])
    return (attention_BHW < threshold)[:, None].to(maps_BKHW.dtype)


@torch.no_grad()
def fused(maps_a_BKHW: Tensor, maps_b_BKHW: Tensor) -> Tensor:
    """The larger of both maps, each from 0 to 1."""
    return torch.maximum(min_max(maps_a_BKHW), min_max(maps_b_BKHW))


def losses(output: Output, config: Config, reduction: Reduction = "mean") -> dict[str, Tensor]:
    """Classification by A and by B."""
    targets = targets_of(output)
    assert isinstance(output, ComplementaryOutput)
    scores = {"a": output.logits_BK, "b": output.logits_b_BK}
    return {name: classification(logits_BK, targets, reduction) for name, logits_BK in scores.items()}
