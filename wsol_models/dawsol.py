"""DA-WSOL: localization as domain adaption; DAOL in the tables of BagCAMs.

Zhu et al., Weakly Supervised Object Localization as Domain Adaption, CVPR 2022, https://arxiv.org/abs/2203.01714

A classifier is trained on pooled features and then applied to every position, which is another domain. In every image
positions that look like the image (source) and those of its object that do not (target) are brought together in
distribution, and those of neither (universum: background) are drawn to 0. A sampler tells the three apart by k-means,
which starts from centres that it remembers.

As in the code with BagCAMs (https://github.com/zh460045050/BagCAMs) both terms begin in the second epoch, which the
training loop has to tell (`begin_step`), and the sampler has 32 features of each domain per image. Where nothing is
said about it, this is our reading: memories are means over all centres so far; a class's also over its first image's
feature. `uda="dann"` is one linear discriminator behind a gradient reversal.

Memories advance from image to image, so this method is exempt from N workers equalling one: each remembers its own
images, and all start a step with what rank 0 remembers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models import cam
from wsol_models._backbones import Backbone
from wsol_models._layers import Output, at_least_float32, classification, require_not_negative, targets_of
from wsol_models._lookup import unknown

ADAPTIONS = ("mmd", "dann")
UNIVERSUM, SOURCE, TARGET = range(3)
SAMPLES = 32  # S, per image and domain
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, as multiples of the mean squared distance


@dataclass(frozen=True)
class Config(cam.Config):
    """beta: β, weight of the adaption term. universum: weight of the universum term (.3 is the code's default, 2 its
    script's for ResNet50 on CUB).

    uda: "mmd", maximum mean discrepancy, or "dann", an adversary.
    first_epoch: in which both terms begin, counted from 0.
    """

    beta: float = 0.3
    universum: float = 2.0
    uda: Literal["mmd", "dann"] = "mmd"
    first_epoch: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(beta=self.beta, universum=self.universum, first_epoch=self.first_epoch)
        if self.uda not in ADAPTIONS:
            raise unknown("value of uda", self.uda, ADAPTIONS)


@dataclass(frozen=True)
class Samples:
    """Features of the I images that have enough of both domains, and of all U positions of the universum."""

    source_ISC: Tensor
    target_ISC: Tensor
    universum_UC: Tensor


@dataclass(frozen=True, kw_only=True)
class AdaptionOutput(Output):
    """What the losses need: samples, none before the first epoch of the terms, and under "dann" the discriminator's
    logits of being target, of source and target samples, I×2S."""

    samples: Samples
    domain_IS: Tensor | None


class Method(cam.Method):
    """CAM, and a sampler whose memories are saved with it."""

    remembers = True
    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        channels = backbone.last.channels
        self.sampler = Sampler(num_classes, channels)
        self.discriminator = nn.Linear(channels, 1) if config.uda == "dann" else None
        self.epoch = 0

    def begin_step(self, epoch: int, ids: Sequence[str], total: int) -> None:
        super().begin_step(epoch, ids, total)
        self.epoch = epoch

    def forward(self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()) -> Output:
        """As CAM's; in training with targets an `AdaptionOutput`. Of several classes one is drawn for the sampler."""
        output = super().forward(images_BCHW, targets, taps=taps)
        if targets is None or not self.training:
            return output
        points_BNC = at_least_float32(output.features_BCHW).flatten(2).transpose(1, 2)
        begun = self.epoch >= self.config.first_epoch
        samples = self.sampler(points_BNC, self.one_class(targets)) if begun else gathered(points_BNC, [], [], [])
        parts: dict[str, Any] = {field.name: getattr(output, field.name) for field in fields(output)}
        return AdaptionOutput(**parts, samples=samples, domain_IS=self._domains(samples))

    def lr_scale(self, name: str) -> float:
        return self.config.head_lr_scale if name.startswith("discriminator.") else super().lr_scale(name)

    def _domains(self, samples: Samples) -> Tensor | None:
        if self.discriminator is None:
            return None
        both_ISC = ReversedGradient.apply(torch.cat([samples.source_ISC, samples.target_ISC], 1))
        return self.discriminator(both_ISC)[..., 0]


class Sampler(nn.Module):
    """Tells source, target and universum apart in every image, and remembers centres of universum and classes."""

    universum_C: Tensor
    universum_count: Tensor
    classes_KC: Tensor
    counts_K: Tensor

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("universum_C", torch.zeros(channels))
        self.register_buffer("universum_count", torch.zeros(()))
        self.register_buffer("classes_KC", torch.zeros(num_classes, channels))
        self.register_buffer("counts_K", torch.zeros(num_classes))

    def forward(self, points_BNC: Tensor, classes_B: Tensor) -> Samples:
        """points_BNC: features of all positions. An image's own, pooled feature is its first source sample."""
        sources, targets, universum = [], [], []
        for points_NC, label in zip(points_BNC, classes_B.tolist(), strict=True):
            clusters_N = self.assign(points_NC.detach(), label)
            universum.append(points_NC[clusters_N == UNIVERSUM])
            source, target = draw(points_NC, clusters_N == SOURCE), draw(points_NC, clusters_N == TARGET)
            if len(source) >= SAMPLES - 1 and len(target) >= SAMPLES:
                sources.append(torch.cat([points_NC.mean(0, keepdim=True), source[: SAMPLES - 1]]))
                targets.append(target[:SAMPLES])
        return gathered(points_BNC, sources, targets, universum)

    @torch.no_grad()
    def assign(self, points_NC: Tensor, label: int) -> Tensor:
        """The cluster of every position of one image, N; the memories learn its centres."""
        image_C = points_NC.mean(0)
        if self.counts_K[label] == 0:
            remember(self.classes_KC[label], self.counts_K[label], image_C)
        start_3C = torch.stack([self.universum_C, image_C, self.classes_KC[label]])
        clusters_N, centres_3C = k_means(points_NC, start_3C)
        remember(self.universum_C, self.universum_count, centres_3C[UNIVERSUM])
        remember(self.classes_KC[label], self.counts_K[label], centres_3C[TARGET])
        return clusters_N


class ReversedGradient(torch.autograd.Function):
    """The identity, whose backward changes the gradient's sign: https://arxiv.org/abs/1409.7495"""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return -gradients


def remember(mean_C: Tensor, count: Tensor, value_C: Tensor) -> None:
    """Make one more value part of a mean, in place."""
    count += 1
    mean_C += (value_C - mean_C) / count


def draw(points_NC: Tensor, members_N: Tensor) -> Tensor:
    """The members in random order."""
    found = members_N.nonzero()[:, 0]
    return points_NC[found[torch.randperm(len(found), device="cpu").to(found.device, non_blocking=True)]]


def gathered(
    points_BNC: Tensor, sources: Sequence[Tensor], targets: Sequence[Tensor], universum: Sequence[Tensor]
) -> Samples:
    """Samples of all images; where there are none, empty ones that are part of the graph."""
    none_0SC = points_BNC[:0, :1].expand(0, SAMPLES, -1)
    return Samples(
        torch.stack([*sources]) if sources else none_0SC,
        torch.stack([*targets]) if targets else none_0SC,
        torch.cat([*universum, points_BNC[0, :0]]),
    )


def k_means(points_NC: Tensor, centres_MC: Tensor, steps: int = 300, tolerance: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from given centres: the cluster of each point and the centres, as scikit-learn's `KMeans`.

    It ends when no point changes its cluster or, by the tolerance relative to the points' variance, no centre moves.
    """
    offset_C = points_NC.mean(0)  # scikit-learn's precaution for float32
    points_NC, centres_MC = points_NC - offset_C, centres_MC - offset_C
    limit = tolerance * points_NC.var(0, correction=0).mean()
    clusters_N = nearest(points_NC, centres_MC)
    for _ in range(steps):
        moved_MC = averages(points_NC, clusters_N, centres_MC)
        shift, centres_MC = (moved_MC - centres_MC).square().sum(), moved_MC
        before_N, clusters_N = clusters_N, nearest(points_NC, centres_MC)
        if shift <= limit or torch.equal(clusters_N, before_N):
            break
    return clusters_N, centres_MC + offset_C


def nearest(points_NC: Tensor, centres_MC: Tensor) -> Tensor:
    """The closest centre of each point, the first among equals, N."""
    distances_NM = centres_MC.square().sum(1) - 2 * points_NC @ centres_MC.T
    return distances_NM.argmin(1)


def averages(points_NC: Tensor, clusters_N: Tensor, centres_MC: Tensor) -> Tensor:
    """The mean of each cluster, M×C. A cluster without points takes over the one that is farthest from its centre."""
    members_MN = F.one_hot(clusters_N, len(centres_MC)).T.to(points_NC.dtype)
    empty = (members_MN.sum(1) == 0).nonzero()[:, 0]
    distances_N = (points_NC - centres_MC[clusters_N]).square().sum(1)
    if len(empty) and distances_N.max() > 0:
        farthest = distances_N.topk(len(empty)).indices
        members_MN[:, farthest] = 0
        members_MN[empty, farthest] = 1
    counts_M1 = members_MN.sum(1, keepdim=True)
    means_MC = members_MN @ points_NC / counts_M1.clamp(min=1)
    return torch.where(counts_M1 > 0, means_MC, means_MC[counts_M1.argmax()])


def discrepancy(source_ISC: Tensor, target_ISC: Tensor) -> Tensor:
    """Maximum mean discrepancy of source s and target t in linear time, mean over the images; 0 if there are none.

    (1/S) Σ_i k(s_i, s_j) + k(t_i, t_j) - k(s_i, t_j) - k(s_j, t_i) with j = i + 1, after the last one the first. k is
    a sum of Gaussian kernels, whose bandwidths are multiples of the mean d² over all pairs of an image's samples; for
    gradients that is a constant.
    """
    both_ITC = torch.cat([source_ISC, target_ISC], 1).detach()
    centred_IX = (both_ITC - both_ITC.mean(1, keepdim=True)).flatten(1)
    mean_I1 = 2 * centred_IX.square().sum(1, keepdim=True) / (both_ITC.shape[1] - 1)
    next_source_ISC, next_target_ISC = source_ISC.roll(-1, 1), target_ISC.roll(-1, 1)
    alike_IS = kernel(source_ISC, next_source_ISC, mean_I1) + kernel(target_ISC, next_target_ISC, mean_I1)
    across_IS = kernel(source_ISC, next_target_ISC, mean_I1) + kernel(next_source_ISC, target_ISC, mean_I1)
    return mean_or_zero(alike_IS - across_IS)


def kernel(a_ISC: Tensor, b_ISC: Tensor, mean_I1: Tensor) -> Tensor:
    """Σ_w exp(-d² / (w·mean)) of the bandwidths w, for each pair of a and b, I×S."""
    ratio_IS = (a_ISC - b_ISC).square().sum(2) / mean_I1.clamp(min=torch.finfo(mean_I1.dtype).tiny)
    return torch.stack([torch.exp(-ratio_IS / width) for width in BANDWIDTHS]).sum(0)


def domain_confusion(domain_IS: Tensor) -> Tensor:
    """Binary cross-entropy of telling target (second half of the samples) from source; 0 if there are no samples."""
    labels_IS = torch.zeros_like(domain_IS)
    labels_IS[:, domain_IS.shape[1] // 2 :] = 1
    return mean_or_zero(F.binary_cross_entropy_with_logits(domain_IS, labels_IS, reduction="none"))


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean; of no values 0, still in the graph."""
    return values.sum() / max(values.numel(), 1)


def losses(output: Output, config: Config) -> dict[str, Tensor]:
    """Classification, adaption and universum, already weighted. Raises `ValueError` without a training pass."""
    if not isinstance(output, AdaptionOutput):
        raise ValueError("DA-WSOL losses need a forward in training mode with targets: call method.train() first.")
    samples = output.samples
    adaption = (
        discrepancy(samples.source_ISC, samples.target_ISC)
        if output.domain_IS is None
        else domain_confusion(output.domain_IS)
    )
    return {
        "cls": classification(output.logits_BK, targets_of(output)),
        "uda": config.beta * adaption,
        "universum": config.universum * mean_or_zero(samples.universum_UC),
    }
