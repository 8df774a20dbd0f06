"""CutMix: a patch of another image, and a share of its label.

Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019,
https://arxiv.org/abs/1905.04899

Dropping a region of an image makes a classifier look at all parts of an object but wastes pixels. CutMix fills the
region from another image and mixes the two labels by area: as regularising, with nothing wasted, and maps get better
because the network has to tell from less which object is where. Nothing is mixed in evaluation.

As https://github.com/clovaai/wsolevaluation: one box and one permutation per batch, which may be spread over workers:
the draws are equal on all of them, and they exchange the patches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from wsol_models import cam
from wsol_models._layers import (
    Output,
    Reduction,
    classification,
    require_share,
    rows_of_all_workers,
    sent,
    targets_of,
)


@dataclass(frozen=True)
class Config(cam.Config):
    """beta: β, both parameters of the Beta distribution of λ, the share of an image that stays. probability: of a
    batch to be mixed.

    The benchmark's defaults; tuned for ResNet50 on CUB: 1.35 and .34.
    """

    beta: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(probability=self.probability)
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be a positive finite number but is {self.beta}.")


@dataclass(frozen=True, kw_only=True)
class MixedOutput(Output):
    """Of mixed images: beside `targets`, those of the images that the patches came from, and λ, the share that the
    former's pixels have."""

    patch_targets: Tensor
    share: float


class Method(cam.Method):
    """CAM of mixed images."""

    untraceable = "the box that it pastes has another size in each step"
    config: Config

    def forward(self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()) -> Output:
        """As CAM's; in training with targets of mixed images, unless the batch's draw spares it."""
        mixes = self.training and targets is not None and float(torch.rand((), device="cpu")) < self.config.probability
        if not mixes or targets is None:
            return super().forward(images_BCHW, targets, taps=taps)
        targets_of_all, start = rows_of_all_workers(targets, self._total)
        permutation = sent(torch.randperm(len(targets_of_all), device="cpu"), targets.device)
        partners_B = permutation[start : start + len(targets)]
        box = draw_box(images_BCHW, self.config.beta)
        patches_of_all, _ = rows_of_all_workers(images_BCHW[:, :, box[0], box[1]], self._total)
        images_BCHW, share = paste(images_BCHW, patches_of_all[partners_B], *box)
        output = super().forward(images_BCHW, targets, taps=taps)
        parts = {field.name: getattr(output, field.name) for field in fields(output)}
        return MixedOutput(**parts, patch_targets=targets_of_all[partners_B], share=share)


def draw_box(images_BCHW: Tensor, beta: float) -> tuple[slice, slice]:
    """Rows and columns of a box with the images' aspect ratio and 1 - λ of their area, λ ~ Beta(β, β), round a uniform
    centre; what lies outside is cut off."""
    share = float(torch.distributions.Beta(beta, beta).sample())
    height, width = images_BCHW.shape[2:]
    return cut(height, share, draw_below(height)), cut(width, share, draw_below(width))


def draw_below(size: int) -> int:
    return int(torch.randint(size, (), device="cpu"))


def cut(size: int, share: float, centre: int) -> slice:
    """int(size·√(1 - λ)) pixels, an odd one less, round `centre`, as far as they are in 0 .. size."""
    half = int(size * math.sqrt(1 - share)) // 2
    return slice(max(centre - half, 0), min(centre + half, size))


def paste(images_BCHW: Tensor, patches_BCHW: Tensor, rows: slice, columns: slice) -> tuple[Tensor, float]:
    """The images with the box of their partners, and the share of pixels that are still their own."""
    mixed_BCHW = images_BCHW.clone()
    mixed_BCHW[:, :, rows, columns] = patches_BCHW
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed_BCHW, 1 - area / images_BCHW[0, 0].numel()


def losses(output: Output, config: Config, reduction: Reduction = "mean") -> dict[str, Tensor]:
    """Classification; of mixed images λ of it by their own targets and 1 - λ by the patches'."""
    classified = classification(output.logits_BK, targets_of(output), reduction)
    if isinstance(output, MixedOutput):
        patches = classification(output.logits_BK, output.patch_targets, reduction)
        classified = output.share * classified + (1 - output.share) * patches
    return {"cls": classified}
