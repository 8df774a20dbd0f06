"""A network for tests and demonstrations."""

from itertools import pairwise

from torch import nn

from wsol_models._backbones.stages import Entry, set_stride


class Tiny(nn.Module):
    """16x16 maps at 64 px, no batch norm, trains from scratch in seconds."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        self.blocks = nn.ModuleList(tiny_block(a, b) for a, b in pairwise(widths))
        self.fc = nn.Linear(widths[-1], 1000)


def tiny_block(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, width in enumerate((in_channels, channels)):
        convolution = nn.Conv2d(width, channels, 3, stride=1 if i else 2, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(8, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def cut_tiny(network: Tiny, layout: str) -> dict[str, nn.Module]:
    """`block1` to `block4`, each of which halves the map at first; in `transition` block 4 starts with a 1x1."""
    set_stride(network.blocks.get_submodule("2.0"), 1 if layout in ("large", "late") else 2)
    set_stride(network.blocks.get_submodule("3.0"), 2 if layout == "late" else 1)
    if layout == "transition":
        network.blocks.set_submodule("3.0", nn.Conv2d(64, 64, 1))
    return {f"block{i}": block for i, block in enumerate(network.blocks, start=1)}


TINY = Entry("tiny", Tiny, cut_tiny, "fc", head_width=64)
