"""VGG16 (Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556), without its fully connected layers.

Stages are named after their last layer: `relu1_2`, `pool1`, `relu2_2`, `pool2`, `relu3_3`, `pool3`, `relu4_3`, `pool4`,
`relu5_3`. Layouts `large` and `small` end with the benchmark's `conv6` (3x3, 1024 channels) and `relu6`.
"""

import functools

from torch import nn
from torchvision import models
from torchvision.models import vgg

from wsol_models._backbones.stages import Entry, transition


class VGG16(nn.Module):
    """`features` of torchvision's network; its classifier would be nine tenths of all parameters."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.features = vgg.make_layers(vgg.cfgs["D"], batch_norm)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)


def cut_vgg(network: VGG16, layout: str) -> dict[str, nn.Module]:
    """pool5 is gone everywhere, pool4 in `large` too. `late` is `small` without conv6: BAS takes F from relu4_3."""
    stages = blocks(network.features)
    del stages["pool5"]
    if layout == "large":
        del stages["pool4"]
    if layout == "transition":
        stages["transition"] = transition(512, 1024, kernel_size=3)
    if layout in ("large", "small"):
        stages["conv6"] = nn.Conv2d(512, 1024, 3, padding=1)
        stages["relu6"] = nn.ReLU()  # not in place: readouts tap conv6 before it
    return stages


def blocks(features: nn.Sequential) -> dict[str, nn.Module]:
    """The five blocks of convolutions and the pooling after each."""
    stages: dict[str, nn.Module] = {}
    layers: list[nn.Module] = []
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            block, depth = len(stages) // 2 + 1, sum(isinstance(member, nn.Conv2d) for member in layers)
            stages |= {f"relu{block}_{depth}": nn.Sequential(*layers), f"pool{block}": layer}
            layers = []
        else:
            layers.append(layer)
    return stages


def entry(batch_norm: bool, imagenet: models.WeightsEnum) -> Entry:
    return Entry("vgg", functools.partial(VGG16, batch_norm), cut_vgg, "classifier.6", imagenet)


VGG16_PLAIN = entry(False, models.VGG16_Weights.IMAGENET1K_V1)
VGG16_BN = entry(True, models.VGG16_BN_Weights.IMAGENET1K_V1)
