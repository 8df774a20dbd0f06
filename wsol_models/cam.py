"""CAM: class activation maps, the baseline every other method is measured against.

Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016, https://arxiv.org/abs/1512.04150
A classifier with global average pooling and one linear layer already knows where its evidence is: the same linear layer
applied at every position, before the pooling, is a map per class. Nothing is added to training. Networks,
initialisation and learning rates follow the benchmark https://github.com/clovaai/wsolevaluation; maps are read by
`readouts/cam.py`. Where the benchmark (InceptionV3) or BagCAMs (all networks) has a 1x1 convolution before the pooling,
the linear layer after it gives the same scores for a fraction of the work.
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
    he_,
    pooled,
    require_not_negative,
    require_targets,
    scored,
    select_taps,
    targets_of,
    xavier_,
)


@dataclass(frozen=True)
class Config:
    """CAM has no loss weights.

    large: 28x28 maps at 224 px (else 14x14): the last two halvings are left out (else only the last one).
    pretrained_head: start from the classifier of the loaded weights instead of a new one; the benchmark does with
        ResNet50 on ILSVRC.
    head_lr_scale: learning rate, relative to the backbone's, of `fc` and of layers that the backbone has beyond the
        pretrained network (VGG16: conv6; InceptionV3: SPG_A3_1b, SPG_A3_2b).
    layer4_lr_scale: of the last layer of a ResNet (10 in the benchmark; 1 in the recipe of BagCAMs).
    """

    large: bool = True
    pretrained_head: bool = False
    head_lr_scale: float = 10.0
    layer4_lr_scale: float = 10.0

    def __post_init__(self) -> None:
        require_not_negative(head_lr_scale=self.head_lr_scale, layer4_lr_scale=self.layer4_lr_scale)

    @property
    def layout(self) -> str:
        return "large" if self.large else "small"


class Method(LocalizationMethod):
    """Backbone, global average pooling and `fc`."""

    offers = frozenset({"a linear head"})

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.backbone = backbone
        self.fc = nn.Linear(backbone.last.channels, num_classes)
        initialise(backbone, self.fc)
        if config.pretrained_head and not backbone.awaits_weights:
            self._load_head(backbone.head)

    @property
    def head_weight_KC(self) -> Tensor:
        """Weights of the linear head over `Output.features_BCHW`."""
        return self.fc.weight

    def forward(self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()) -> Output:
        """targets: int64 class index per image, or float multi-hot rows; needed by the losses only.

        taps: stages whose features are returned.
        """
        if targets is not None:
            require_targets(targets, images_BCHW, self.num_classes)
        features_BCHW, tapped = self.extract(images_BCHW, taps)
        logits_BK = scored(self.fc, pooled(features_BCHW))
        return Output(logits_BK, features_BCHW, taps=select_taps(taps, tapped, self.backbone.names), targets=targets)

    def extract(self, images_BCHW: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of the last stage and of the tapped ones."""
        return self.backbone(images_BCHW, taps)

    def lr_scale(self, name: str) -> float:
        """The benchmark's groups: new layers and a ResNet's layer4 x10."""
        if name.startswith("fc.") or self.backbone.is_new(name.removeprefix("backbone.")):
            return self.config.head_lr_scale
        return self.config.layer4_lr_scale if ".layer4." in name else 1.0

    def _load_head(self, head: tuple[Tensor, Tensor] | None) -> None:
        if head is None or head[0].shape != self.fc.weight.shape:
            wanted = f"{self.num_classes} classes over {self.fc.in_features} channels"
            found = "none" if head is None else f"one of {len(head[1])} over {head[0].shape[1]}"
            raise ValueError(f"pretrained_head needs a classifier of {wanted}; weights have {found}.")
        with torch.no_grad():
            self.fc.weight.copy_(head[0])
            self.fc.bias.copy_(head[1])


def initialise(backbone: Backbone, fc: nn.Linear) -> None:
    """The benchmark's: He for convolutions added to VGG16, Xavier for InceptionV3's and its head, N(0, .01) else."""
    for layer in backbone.new_layers():
        (xavier_ if backbone.family == "inception" else he_)(layer)
    if backbone.family == "inception":
        nn.init.xavier_uniform_(fc.weight)
    else:
        nn.init.normal_(fc.weight, std=0.01)
    nn.init.zeros_(fc.bias)


def losses(output: Output, config: Config, reduction: Reduction = "mean") -> dict[str, Tensor]:
    """Classification: see `classification`."""
    return {"cls": classification(output.logits_BK, targets_of(output), reduction)}
