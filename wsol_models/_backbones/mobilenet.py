"""MobileNetV1 (Howard et al., 2017, https://arxiv.org/abs/1704.04861) and V2 (Sandler et al., CVPR 2018,
https://arxiv.org/abs/1801.04381)."""

from torch import nn
from torchvision import models

from wsol_models._backbones.stages import Entry, set_stride, with_transition

V1_BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class MobileNetV1(nn.Module):
    """Plain ReLU, as in the paper, and the tensor names of its widespread PyTorch form: `model.0.0` ... and `fc`.

    Written out because torchvision has none, and timm's fuses each activation into its batch norm, so that conversion
    to SyncBN or freezing would lose it. There are no weights to download: train, or give a file with these names.
    """

    def __init__(self) -> None:
        super().__init__()
        in_channels = 32
        layers = [nn.Sequential(*convolution(3, in_channels, 3, stride=2))]
        for channels, stride in V1_BLOCKS:
            depthwise = convolution(in_channels, in_channels, 3, stride, groups=in_channels)
            layers.append(nn.Sequential(*depthwise, *convolution(in_channels, channels, 1)))
            in_channels = channels
        self.model = nn.Sequential(*layers)
        self.fc = nn.Linear(in_channels, 1000)


def convolution(in_channels: int, channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def cut_mobilenet_v1(network: MobileNetV1, layout: str) -> dict[str, nn.Module]:
    """`block0` to `block13`. Blocks 6 (28 to 14) and 12 (14 to 7) halve the map last; `late` keeps only the latter."""
    set_stride(network.model.get_submodule("6.0"), 2 if layout == "small" else 1)
    set_stride(network.model.get_submodule("12.0"), 2 if layout == "late" else 1)
    return {f"block{i}": block for i, block in enumerate(network.model)}


def cut_mobilenet_v2(network: models.MobileNetV2, layout: str) -> dict[str, nn.Module]:
    """`features0` to `features18`, numbered as in torchvision.

    The blocks that halve the map last are 7 (28 to 14) and 14 (14 to 7). `late` keeps only the latter, so that BAS
    takes F from `features13`: right before the last strided depthwise convolution, as the paper does in MobileNetV1.
    In `transition` block 14 is a 1x1 convolution; mLDFR says so in its text only, so form and place are our reading.
    """
    set_stride(network.features.get_submodule("7.conv.1.0"), 1 if layout in ("large", "late") else 2)
    set_stride(network.features.get_submodule("14.conv.1.0"), 2 if layout == "late" else 1)
    stages = {f"features{i}": block for i, block in enumerate(network.features)}
    return with_transition(stages, "features14", (96, 160)) if layout == "transition" else stages


MOBILENET_V1 = Entry("mobilenet", MobileNetV1, cut_mobilenet_v1, "fc", layouts=("large", "small", "late"))
MOBILENET_V2 = Entry(
    "mobilenet", models.mobilenet_v2, cut_mobilenet_v2, "classifier.1", models.MobileNet_V2_Weights.IMAGENET1K_V1
)
