"""IRN: boundaries of classes, learnt from confident labels of pairs of pixels (Ahn, Cho and Kwak, CVPR 2019,
https://arxiv.org/abs/1904.05044).

The backbone is frozen; two branches read its stages. Boundaries are trained by how alike pixels on both sides are
labelled, and are all that the walk needs; the displacements of instances share nothing with them that is trained, so
they are left out unless asked for. Constants are those of the authors' code.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models._backbones import Backbone, backbone
from wsol_models.segmentation.walk import Direction, affinity, directions

EPSILON = 1e-5
IGNORED = 255
STRIDE = 4  # pixels per cell of the boundary map
RADIUS = 10  # of pairs in training, in cells
Sums = dict[str, tuple[Tensor, Tensor]]  # name of a part of the loss -> its sum, and over how many pairs


class Block(nn.Sequential):
    """1x1 convolution without bias, group norm, bilinear enlargement, ReLU: in this order."""

    def __init__(self, channels: int, width: int, groups: int, scale: int = 1) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width)]
        if scale > 1:
            layers.append(nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False))
        super().__init__(*layers, nn.ReLU())


class BoundaryBranch(nn.Module):
    """Logits of boundaries, one for each cell of the first stage that is tapped."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        scales = [stride // STRIDE for stride in strides]
        self.blocks = nn.ModuleList(
            Block(*pair) for pair in ((c, 32, 4, s) for c, s in zip(channels, scales, strict=True))
        )
        self.head = nn.Conv2d(32 * len(channels), 1, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[B, H, W] at stride 4."""
        size = features[0].shape[2:]
        wide = [block(f)[..., : size[0], : size[1]] for block, f in zip(self.blocks, features, strict=True)]
        return self.head(torch.cat(wide, 1))[:, 0]


class DisplacementBranch(nn.Module):
    """(dy, dx) from each cell to the middle of its instance, for five tapped stages as ResNet50 has them."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        shapes = [(64, 8, 1), (128, 16, 1), (256, 16, 1), (256, 16, 2), (256, 16, 2)]
        self.blocks = nn.ModuleList(Block(c, *shape) for c, shape in zip(channels, shapes, strict=True))
        self.join = Block(768, 256, 16, 2)
        self.head = nn.Sequential(Block(448, 256, 16), nn.Conv2d(256, 2, 1, bias=False))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[B, 2, H, W] at stride 4."""
        first, second, *deep = (block(f) for block, f in zip(self.blocks, features, strict=True))
        size, wide = deep[0].shape[2:], second.shape[2:]
        joined = self.join(torch.cat([f[..., : size[0], : size[1]] for f in deep], 1))
        return self.head(torch.cat([first, second, joined[..., : wide[0], : wide[1]]], 1))


class Network(nn.Module):
    """A frozen backbone and the branches over it."""

    def __init__(self, network: Backbone, displacement: bool = False) -> None:
        super().__init__()
        self.backbone = network.requires_grad_(False)
        self.taps = taps_of(network)
        stages = [network.stages[name] for name in self.taps]
        channels = [stage.channels for stage in stages]
        self.boundary = BoundaryBranch(channels, [stage.stride for stage in stages])
        self.displacement = DisplacementBranch(channels) if displacement else None

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Boundary logits [B, H, W] at stride 4, and displacements [B, 2, H, W] of a network that has them."""
        with torch.no_grad():
            _, tapped = self.backbone(images_BCHW, self.taps)
        features = [tapped[name] for name in self.taps]
        return self.boundary(features), self.displacement(features) if self.displacement else None


def build(name: str, weights: str | None = None, displacement: bool = False) -> Network:
    """IRN on a backbone in its layout `small`: of ResNet50 the strides 2, 2, 2, 1 of its four stages."""
    return Network(backbone(name, "small", weights), displacement)


def taps_of(network: Backbone) -> tuple[str, ...]:
    """The stages that the branches read: all from stride 4 on, or the last of each stride where these are over five."""
    deep = {name: stage.stride for name, stage in network.stages.items() if stage.stride >= STRIDE}
    if len(deep) <= 5:
        return tuple(deep)
    return tuple({stride: name for name, stride in deep.items()}.values())


@torch.no_grad()
def boundary_map(network: Network, image_CHW: Tensor, pad: int = 512) -> Tensor:
    """e in 0..1, [ceil(H / 4), ceil(W / 4)]: the mean of the logits of an image and its mirror.

    As the authors' code an image within `pad` px is padded to that with zeros, at the right and below; a larger one,
    which that code cuts, stays.
    """
    height, width = image_CHW.shape[1:]
    beside = (0, pad - width, 0, pad - height) if max(height, width) <= pad else (0, 0, 0, 0)
    views = torch.stack([image_CHW, image_CHW.flip(-1)])
    logits_BHW, _ = network.eval()(F.pad(views, beside))
    logits_BHW = logits_BHW[:, : -(-height // STRIDE), : -(-width // STRIDE)]
    return ((logits_BHW[0] + logits_BHW[1].flip(-1)) / 2).sigmoid()


def inner(planes: Tensor, direction: Direction, radius: int) -> tuple[Tensor, Tensor]:
    """Sources and other ends of the pairs of a direction, [..., H - R + 1, W - 2R + 2] each.

    Sources keep R - 1 cells from the left, right and lower edge, whatever the direction.
    """
    (dy, dx), margin = direction, radius - 1
    rows, columns = planes.shape[-2] - margin, planes.shape[-1] - 2 * margin
    ends = planes[..., dy : dy + rows, margin + dx : margin + dx + columns]
    return planes[..., :rows, margin : margin + columns], ends


def pair_masks(labels_BHW: Tensor, direction: Direction, radius: int = RADIUS) -> dict[str, Tensor]:
    """Which pairs are both background, both of one class, or of two labels; a pair with an ignored end is none."""
    source, end = inner(labels_BHW, direction, radius)
    known, equal = (source != IGNORED) & (end != IGNORED), source == end
    return {"background": known & equal & (source == 0), "foreground": known & equal & (source > 0),
            "negative": known & ~equal}  # fmt: skip


def boundary_sums(logits_BHW: Tensor, labels_BHW: Tensor, radius: int = RADIUS) -> Sums:
    """-ln of (1 less) the affinities of all pairs that are (un)like, with their number. A direction at a time: the
    pairs of all 152 of them would take gigabytes."""
    boundary_BHW = logits_BHW.sigmoid()
    totals = {
        name: [logits_BHW.new_zeros(()), logits_BHW.new_zeros(())] for name in ("background", "foreground", "negative")
    }
    for direction in directions(radius):
        a_BHW = _inner_affinity(boundary_BHW, direction, radius)
        for name, mask_BHW in pair_masks(labels_BHW, direction, radius).items():
            values = -(1 + EPSILON - a_BHW if name == "negative" else a_BHW + EPSILON).log()
            totals[name][0] = totals[name][0] + (values * mask_BHW).sum()
            totals[name][1] = totals[name][1] + mask_BHW.sum()
    return {name: (total, count) for name, (total, count) in totals.items()}


def _inner_affinity(boundary_BHW: Tensor, direction: Direction, radius: int) -> Tensor:
    """Affinities of the pairs of `inner`: those of all pairs of the image, cut to these."""
    (_, dx), margin = direction, radius - 1
    rows, columns = boundary_BHW.shape[-2] - margin, boundary_BHW.shape[-1] - 2 * margin
    left = margin - max(-dx, 0)
    return affinity(boundary_BHW, direction)[..., :rows, left : left + columns]


def displacement_sums(displacements_B2HW: Tensor, labels_BHW: Tensor, radius: int = RADIUS) -> Sums:
    """L1 of the differences of like pairs: of foreground to the direction, of background to nothing; for two numbers a
    pair."""
    totals = {name: [displacements_B2HW.new_zeros(()), displacements_B2HW.new_zeros(())] for name in ("fg", "bg")}
    for direction in directions(radius):
        source, end = inner(displacements_B2HW, direction, radius)
        masks, wanted = pair_masks(labels_BHW, direction, radius), source.new_tensor(direction).view(2, 1, 1)
        for name, mask, target in (("fg", masks["foreground"], wanted), ("bg", masks["background"], 0 * wanted)):
            totals[name][0] = totals[name][0] + ((source - end - target).abs() * mask[:, None]).sum()
            totals[name][1] = totals[name][1] + 2 * mask.sum()
    return {name: (total, count) for name, (total, count) in totals.items()}


def boundary_loss(sums: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """½ (L+ + L-), L+ = ½ mean over background pairs + ½ mean over foreground pairs. A mean of none is 0."""
    mean = {name: total / (count + EPSILON) for name, (total, count) in sums.items()}
    return 0.5 * (0.5 * mean["background"] + 0.5 * mean["foreground"] + mean["negative"])


def displacement_loss(sums: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """½ (D_fg + D_bg)."""
    return 0.5 * sum(total / (count + EPSILON) for total, count in sums.values())  # type: ignore[return-value]
