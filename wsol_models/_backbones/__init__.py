"""Backbones: networks cut into named stages, which methods weave through. One file per family of networks.

Four layouts say where the last two halvings of the map are spent (sizes at 224 px):

- `large`: neither happens, 28x28 to the end;
- `small`: the last but one happens, 14x14;
- `late`: only the last one happens: 28x28 up to the last stages, then 14x14;
- `transition`: as `small`, but a new 1x1 convolution (VGG16: an additional 3x3) stands where the last halving was.

Strides are edited, dilation is never used and no pretrained tensor changes its shape, so ImageNet weights load as they
are. Some layouts add layers, which have no weights to load: `Backbone.is_new`. A new backbone is one entry of
`BACKBONES`.
"""

from torch import nn

from wsol_models._backbones import densenet, googlenet, inception, mobilenet, resnet, tiny, vgg
from wsol_models._backbones.stages import LAYOUTS as LAYOUTS
from wsol_models._backbones.stages import Backbone as Backbone
from wsol_models._backbones.stages import Entry, measure, origin_of
from wsol_models._backbones.stages import Stage as Stage
from wsol_models._backbones.weights import backbone_names as backbone_names
from wsol_models._backbones.weights import body_of, head_of, load_weights, read_weights
from wsol_models._backbones.weights import network_state as network_state
from wsol_models._layers import freeze_batch_norm
from wsol_models._lookup import unknown

BACKBONES: dict[str, Entry] = {
    "resnet18": resnet.RESNET18,
    "resnet50": resnet.RESNET50,
    "vgg16": vgg.VGG16_PLAIN,
    "vgg16_bn": vgg.VGG16_BN,
    "inception_v3": inception.INCEPTION_V3,
    "googlenet": googlenet.GOOGLENET,
    "densenet161": densenet.DENSENET161,
    "mobilenet_v1": mobilenet.MOBILENET_V1,
    "mobilenet_v2": mobilenet.MOBILENET_V2,
    "tiny": tiny.TINY,
}


LATER = "later"  # weights that a state dict of the whole method will bring


def backbone(name: str, layout: str, weights: str | None = None, frozen_batch_norm: bool = False) -> Backbone:
    """A network in one of its layouts.

    weights: "imagenet" (torchvision's, downloaded once), the path of a `.pth` or `.safetensors` state dict of the
        network, None for random ones, or `LATER`: random ones that will be loaded over.
    frozen_batch_norm: keep the stored statistics of every batch norm while training (`FrozenBatchNorm2d`).
    Raises `ValueError` for a name, layout or file that does not fit.
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    entry = BACKBONES[name]
    if layout not in entry.layouts:
        raise ValueError(f"{name} has no layout {layout!r}; it has: {', '.join(entry.layouts)}.")
    if weights == "imagenet" and entry.imagenet is None:
        known = [other for other, candidate in BACKBONES.items() if candidate.imagenet]
        raise ValueError(f"{name} has no 'imagenet' weights; networks that have: {', '.join(known)}.")
    network = entry.network()
    own = network.state_dict(keep_vars=True)  # before the cut, which may replace some
    modules = entry.cut(network, layout)
    origin = origin_of(modules, own)
    state = read_weights(weights, entry, own) if weights and weights != LATER else {}
    brought_added = False
    if weights and weights != LATER:
        brought_added = load_weights(modules, origin, body_of(state, entry), own, weights, type(network).__name__)
    if frozen_batch_norm:
        freeze_batch_norm(nn.ModuleDict(modules))
    return Backbone(
        modules,
        measure(modules),
        origin,
        entry.family,
        entry.head_width,
        head_of(state, entry.head),
        weights == LATER,
        brought_added,
    )
