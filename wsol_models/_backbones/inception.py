"""InceptionV3 (Szegedy et al., CVPR 2016, https://arxiv.org/abs/1512.00567): torchvision's layers, a stage each.

Layouts `large` and `small` are the benchmark's (https://github.com/clovaai/wsolevaluation): padding in the stem,
Mixed_6a without stride, an end at Mixed_6e, then the new `SPG_A3_1b`, `SPG_A3_2b` and a last stage `dropout`, so that
heads on top have none of their own. `late` is BAS's: the same up to Mixed_6e, then the network's own last three blocks.
`transition` keeps torchvision's unpadded stem, as mLDFR does. Images are normalised as for every other network: the
authors leave out the other scale (torchvision's `transform_input`) that the ImageNet weights were trained with.
"""

import functools
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from wsol_models._backbones.stages import Entry, with_transition


class Reduction(nn.Module):
    """Mixed_6a or Mixed_7a with any stride and padded by 1: torchvision's pooling has neither as an option."""

    def __init__(self, block: nn.Module, stride: int) -> None:
        super().__init__()
        self.stride = stride
        for name, layer in block.named_children():
            convolution = layer.get_submodule("conv")
            assert isinstance(convolution, nn.Conv2d)
            if convolution.stride == (2, 2):
                convolution.stride, convolution.padding = (stride, stride), (1, 1)
            self.add_module(name, layer)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Each branch is the chain of layers `<branch>_1`, `<branch>_2`, ...; the pooled features come last."""
        outputs = []
        for _, layers in groupby(self.named_children(), key=lambda item: item[0].split("_")[0]):
            outputs.append(functools.reduce(lambda features, item: item[1](features), layers, features_BCHW))
        return torch.cat([*outputs, F.max_pool2d(features_BCHW, 3, self.stride, padding=1)], dim=1)


def cut_inception(network: models.Inception3, layout: str) -> dict[str, nn.Module]:
    stages = dict(network.named_children())
    for name in ("avgpool", "dropout", "fc"):
        del stages[name]
    if layout == "transition":
        return with_transition(stages, "Mixed_7a", (768, 1280))
    network.Conv2d_1a_3x3.conv.padding = (1, 1)
    for name in ("maxpool1", "maxpool2"):
        stages[name] = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
    stages["Mixed_6a"] = Reduction(network.Mixed_6a, stride=1)
    if layout == "late":
        return stages | {"Mixed_7a": Reduction(network.Mixed_7a, stride=2)}
    if layout == "small":
        stages["Mixed_6a"] = nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), stages["Mixed_6a"])
    for name in ("Mixed_7a", "Mixed_7b", "Mixed_7c"):
        del stages[name]
    return stages | {"SPG_A3_1b": spg_a3(768), "SPG_A3_2b": spg_a3(1024), "dropout": nn.Dropout(0.5)}


def spg_a3(in_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.5), nn.Conv2d(in_channels, 1024, 3, padding=1), nn.ReLU(inplace=True))


INCEPTION_V3 = Entry(
    "inception",
    functools.partial(models.inception_v3, aux_logits=False, init_weights=False),  # its own draws take seconds
    cut_inception,
    "fc",
    models.Inception_V3_Weights.IMAGENET1K_V1,
    unused=("AuxLogits.",),
)
