"""GoogLeNet (Szegedy et al., CVPR 2015, https://arxiv.org/abs/1409.4842): torchvision's layers, a stage each.

Only mLDFR uses it: layout `transition`, with that paper's `dropout` of whole channels at the end. As with InceptionV3,
images are normalised as for every other network.
"""

import functools

from torch import nn
from torchvision import models

from wsol_models._backbones.stages import Entry, with_transition


def cut_googlenet(network: models.GoogLeNet, layout: str) -> dict[str, nn.Module]:
    """The transition stands in place of maxpool4."""
    stages = dict(network.named_children())
    for name in ("avgpool", "dropout", "fc"):
        del stages[name]
    return with_transition(stages, "maxpool4", (832, 832)) | {"dropout": nn.Dropout2d(0.2)}


GOOGLENET = Entry(
    "googlenet",
    functools.partial(models.googlenet, aux_logits=False, init_weights=False),  # its own draws take seconds
    cut_googlenet,
    "fc",
    models.GoogLeNet_Weights.IMAGENET1K_V1,
    layouts=("transition",),
    unused=("aux1.", "aux2."),
)
