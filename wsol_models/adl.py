"""ADL: attention-based dropout layer.

Choe and Shim, Attention-based Dropout Layer for Weakly Supervised Object Localization, CVPR 2019,
https://arxiv.org/abs/1908.10028

The mean over channels of a feature map is high where the network looks. Dropping what is high hides the most telling
part of the object without a second network or pass; at other steps the same attention, through a sigmoid, multiplies
the features, so that the classifier keeps its accuracy. The layers have no parameters and act in training only.

Positions and details follow https://github.com/clovaai/wsolevaluation: one draw per batch and layer, the same on all
workers; features are not rescaled, the attention is not detached; InceptionV3 has no other dropout beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsol_models import cam
from wsol_models._backbones import Backbone
from wsol_models._layers import require_share

POSITIONS = {
    "vgg": ("pool3", "relu4_3", "relu5_3"),
    "resnet": ("layer3.0", "layer4.0", "layer4"),  # layer4: after its last block
    "inception": ("Mixed_5d", "Mixed_6e", "SPG_A3_2b"),
}


@dataclass(frozen=True)
class Config(cam.Config):
    """drop_rate: probability that a layer drops; otherwise it multiplies. threshold: share of an image's highest
    attention from which on positions are dropped.

    The benchmark's defaults; tuned for ResNet50 on CUB: .24 and .76.
    """

    drop_rate: float = 0.75
    threshold: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(drop_rate=self.drop_rate, threshold=self.threshold)


class AttentionDropout(nn.Module):
    """Drops the highest attention or multiplies with it, by one draw; the identity in evaluation."""

    def __init__(self, drop_rate: float, threshold: float) -> None:
        super().__init__()
        self.drop_rate, self.threshold = drop_rate, threshold

    def forward(self, features_BCHW: Tensor) -> Tensor:
        if not self.training:
            return features_BCHW
        drops = float(torch.rand((), device="cpu")) + self.drop_rate >= 1
        return features_BCHW * (drop_mask(features_BCHW, self.threshold) if drops else importance(features_BCHW))


class Method(cam.Method):
    """CAM with attention-based dropout at the paper's three positions; after the last three stages of networks that the
    paper does not have."""

    untraceable = "each of its layers draws whether it drops"
    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        for layer in backbone.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        self.dropout = AttentionDropout(config.drop_rate, config.threshold)
        self.positions = POSITIONS.get(backbone.family, backbone.names[-3:])

    def extract(self, images_BCHW: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.backbone(images_BCHW, taps, dict.fromkeys(self.positions, self.dropout))


def importance(features_BCHW: Tensor) -> Tensor:
    """Sigmoid of the mean over channels, B×1×H×W."""
    return features_BCHW.mean(1, keepdim=True).sigmoid()


def drop_mask(features_BCHW: Tensor, threshold: float) -> Tensor:
    """1 where the mean over channels is below `threshold` times the image's maximum, else 0, B×1×H×W."""
    attention_B1HW = features_BCHW.mean(1, keepdim=True)
    highest_B111 = attention_B1HW.amax((2, 3), keepdim=True)
    return (attention_B1HW < threshold * highest_B111).to(features_BCHW.dtype)


losses = cam.losses
