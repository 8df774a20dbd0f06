"""ResNet (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385): `stem` and `layer1` to `layer4` of torchvision."""

from torch import nn
from torchvision import models

from wsol_models._backbones.stages import Entry, set_stride


def cut_resnet(network: models.ResNet, layout: str) -> dict[str, nn.Module]:
    """`late` halves the map by max-pooling in front of layer4 (BAS). In layer4 of `transition`, both strided
    convolutions of the first block are new 1x1 ones without stride (mLDFR); the batch norm behind them stays."""
    for name in strided(network.layer3):
        set_stride(network.layer3.get_submodule(name), 1 if layout in ("large", "late") else 2)
    for name in strided(network.layer4):
        set_stride(network.layer4.get_submodule(name), 1)
        if layout == "transition":
            old = network.layer4.get_submodule(name)
            assert isinstance(old, nn.Conv2d)
            network.layer4.set_submodule(name, nn.Conv2d(old.in_channels, old.out_channels, 1))
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)}
    stages |= {f"layer{i}": network.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)}
    if layout == "late":
        stages["layer4"] = nn.Sequential(nn.MaxPool2d(2), *network.layer4)
    return stages


def strided(layer: nn.Module) -> tuple[str, str]:
    """Names of the convolutions of a layer that halve the map: the first 3x3 with a stride, and the shortcut's."""
    bottleneck = hasattr(layer.get_submodule("0"), "conv3")
    return ("0.conv2" if bottleneck else "0.conv1"), "0.downsample.0"


RESNET18 = Entry("resnet", models.resnet18, cut_resnet, "fc", models.ResNet18_Weights.IMAGENET1K_V1)
RESNET50 = Entry("resnet", models.resnet50, cut_resnet, "fc", models.ResNet50_Weights.IMAGENET1K_V1)
