"""DenseNet161 (Huang et al., CVPR 2017, https://arxiv.org/abs/1608.06993). Only mLDFR uses it: layout `transition`.

Stages: `pool0` (the stem), `denseblock1`, `transition1`, ... `denseblock4`, `norm5` (with the ReLU that follows it).
"""

import re

from torch import nn
from torchvision import models

from wsol_models._backbones.stages import Entry


def cut_densenet(network: models.DenseNet, layout: str) -> dict[str, nn.Module]:
    """The last halving, the pooling of transition3, is left out: the 1x1 convolution before it is the network's own."""
    layers: dict[str, nn.Module] = dict(network.features.named_children())
    stem = nn.Sequential(*(layers.pop(name) for name in ("conv0", "norm0", "relu0", "pool0")))
    *kept, _pool = layers["transition3"].children()
    layers["transition3"] = nn.Sequential(*kept)
    layers["norm5"] = nn.Sequential(layers["norm5"], nn.ReLU(inplace=True))
    return {"pool0": stem, **layers}


def rename(key: str) -> str:
    """torchvision's file of weights is older than its code: `denselayer1.norm.1` is `denselayer1.norm1` today."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)


DENSENET161 = Entry(
    "densenet",
    models.densenet161,
    cut_densenet,
    "classifier",
    models.DenseNet161_Weights.IMAGENET1K_V1,
    layouts=("transition",),
    rename=rename,
)
