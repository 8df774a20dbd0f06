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
images, and all start a step with what rank 0 remembers. A GPU should not wait for the host at every image: there all
images of a step are clustered at once, each from what those before it left a round ago, until a round finds what the
one before it found. That is what one after the other gives, mostly in the second or third round.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models import cam
from wsol_models._backbones import Backbone
from wsol_models._layers import Output, at_least_float32, classification, require_not_negative, sent, targets_of
from wsol_models._lookup import unknown

ADAPTIONS = ("mmd", "dann")
UNIVERSUM, SOURCE, TARGET = range(3)
SAMPLES = 32  # S, per image and domain
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, as multiples of the mean squared distance
LOOK = 8  # steps of k-means on a GPU between two looks at whether it has ended, for which the host waits


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
    untraceable = "its sampler asks whether clusters have settled"
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
        samples = self.sampler(points_BNC, self.one_class(targets)) if begun else drawn(points_BNC, torch.empty(0, 0))
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
        at_once = len(points_BNC) if points_BNC.is_cuda else 1
        parts = zip(points_BNC.detach().split(at_once), classes_B.split(at_once), strict=True)
        with torch.autocast(points_BNC.device.type, enabled=False):  # bfloat16's distances would tie
            clusters = [self.assign(*part) for part in parts]
        return drawn(points_BNC, torch.cat(clusters).cpu())

    @torch.no_grad()
    def assign(self, points_BNC: Tensor, classes_B: Tensor) -> Tensor:
        """The cluster of every position, B×N; the memories learn the centres, from image to image."""
        images_BC = points_BNC.mean(1)
        numbers_B = torch.arange(len(classes_B), device=classes_B.device)
        earlier_BB = numbers_B < numbers_B[:, None]
        centres_BMC = points_BNC.new_zeros(len(points_BNC), 3, points_BNC.shape[2])
        known = self._known(images_BC, centres_BMC, classes_B, torch.zeros_like(earlier_BB))
        for _ in range(len(classes_B)):  # at most: each settles one image more
            clusters_BN, centres_BMC = k_means(points_BNC, torch.stack([known[0], images_BC, known[1]], 1))
            before, known = known, self._known(images_BC, centres_BMC, classes_B, earlier_BB)
            if torch.equal(torch.cat(known, 1), torch.cat(before, 1)):
                break
        universum_BC, class_BC, counts_B1 = self._known(images_BC, centres_BMC, classes_B, torch.ones_like(earlier_BB))
        self.universum_C.copy_(universum_BC[0])
        self.universum_count += len(classes_B)
        self.classes_KC[classes_B], self.counts_K[classes_B] = class_BC, counts_B1[:, 0]
        return clusters_BN

    def _known(
        self, images_BC: Tensor, centres_BMC: Tensor, classes_B: Tensor, seen_BB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is remembered of universum and of each image's class, with how many values the latter is a mean of, once
        the images `seen` by each have left their centres; a class without any begins with its first image's feature."""
        alike_BB = classes_B == classes_B[:, None]
        first_BB = alike_BB & (alike_BB.cumsum(1) == 1)
        counts_B1 = self.counts_K[classes_B][:, None]
        universum_BC, _ = extended(self.universum_C, self.universum_count, seen_BB, centres_BMC[:, UNIVERSUM])
        parts_BX = torch.cat([first_BB & (counts_B1 == 0), alike_BB & seen_BB], 1)
        values_XC = torch.cat([images_BC, centres_BMC[:, TARGET]])
        return universum_BC, *extended(self.classes_KC[classes_B], counts_B1, parts_BX, values_XC)


class ReversedGradient(torch.autograd.Function):
    """The identity, whose backward changes the gradient's sign: https://arxiv.org/abs/1409.7495"""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return -gradients


def extended(mean_BC: Tensor, counts_B1: Tensor, parts_BX: Tensor, values_XC: Tensor) -> tuple[Tensor, Tensor]:
    """Means over `counts` values and those of `values` that each has as parts, and how many these are then."""
    added_B1 = parts_BX.sum(1, keepdim=True)
    sums_BC = (parts_BX.double() @ values_XC.double()).to(mean_BC.dtype)  # in float32 a GPU may round factors
    counts_B1 = counts_B1 + added_B1
    return mean_BC + (sums_BC - added_B1 * mean_BC) / counts_B1.clamp(min=1), counts_B1


def drawn(points_BNC: Tensor, clusters_BN: Tensor) -> Samples:
    """Samples of images by their positions' clusters, which are on the host; without any, empty ones that are part of
    the graph."""
    positions = points_BNC.shape[1]
    kept, sources, targets = [], [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for number, clusters_N in enumerate(clusters_BN):
        source, target = shuffled(clusters_N == SOURCE), shuffled(clusters_N == TARGET)
        if len(source) >= SAMPLES - 1 and len(target) >= SAMPLES:
            kept.append(number)
            sources.append(number * positions + source[: SAMPLES - 1])
            targets.append(number * positions + target[:SAMPLES])
    flat_PC = points_BNC.flatten(0, 1)

    def picked(places: Tensor) -> Tensor:
        return flat_PC[sent(places, flat_PC.device)]

    images_I1C = points_BNC.mean(1, keepdim=True)[sent(torch.tensor(kept, dtype=torch.int64), points_BNC.device)]
    source_ISC = picked(torch.cat(sources).view(-1, SAMPLES - 1))
    target_ISC = picked(torch.cat(targets).view(-1, SAMPLES))
    universum_UC = picked((clusters_BN.flatten() == UNIVERSUM).nonzero()[:, 0])
    return Samples(torch.cat([images_I1C, source_ISC], 1), target_ISC, universum_UC)


def shuffled(members_N: Tensor) -> Tensor:
    """The positions of members in random order."""
    found = members_N.nonzero()[:, 0]
    return found[torch.randperm(len(found), device="cpu")]


def k_means(points_NC: Tensor, centres_MC: Tensor, steps: int = 300, tolerance: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from given centres: the cluster of each point and the centres, as scikit-learn's `KMeans`.

    It ends when no point changes its cluster or, by the tolerance relative to the points' variance, no centre moves.
    With more dimensions before these, each set of points ends by itself.
    """
    offset_1C = points_NC.mean(-2, keepdim=True)  # scikit-learn's precaution for float32
    points_NC, centres_MC = points_NC - offset_1C, centres_MC - offset_1C
    limit = tolerance * points_NC.var(-2, correction=0).mean(-1)
    clusters_N, moves = nearest(points_NC, centres_MC), torch.ones_like(limit, dtype=torch.bool)
    for step in range(1, steps + 1):
        moved_MC = averages(points_NC, clusters_N, centres_MC)
        nearest_N = nearest(points_NC, moved_MC)
        ends = ((moved_MC - centres_MC).square().sum((-2, -1)) <= limit) | (nearest_N == clusters_N).all(-1)
        centres_MC = torch.where(moves[..., None, None], moved_MC, centres_MC)
        clusters_N = torch.where(moves[..., None], nearest_N, clusters_N)
        moves = moves & ~ends
        if step % (LOOK if points_NC.is_cuda else 1) == 0 and not moves.any():
            break
    return clusters_N, centres_MC + offset_1C


def nearest(points_NC: Tensor, centres_MC: Tensor) -> Tensor:
    """The closest centre of each point, the first among equals, N."""
    distances_NM = centres_MC.square().sum(-1)[..., None, :] - 2 * points_NC @ centres_MC.mT
    return distances_NM.argmin(-1)


def averages(points_NC: Tensor, clusters_N: Tensor, centres_MC: Tensor) -> Tensor:
    """The mean of each cluster, M×C. A cluster without points takes over the one that is farthest from its centre, the
    next one the next."""
    positions, clusters = points_NC.shape[-2], centres_MC.shape[-2]
    members_MN = F.one_hot(clusters_N, clusters).mT.bool()
    distances_N = (points_NC - centres_MC.take_along_dim(clusters_N[..., None], -2)).square().sum(-1)
    empty_M = ~members_MN.any(-1)
    farthest = distances_N.topk(min(clusters, positions)).indices
    taken_M = farthest.gather(-1, (empty_M.cumsum(-1) - 1).clamp(0, farthest.shape[-1] - 1))
    takes_M = empty_M & (distances_N.amax(-1, keepdim=True) > 0)
    taken_MN = F.one_hot(taken_M, positions).bool() & takes_M[..., None]
    members_MN = ((members_MN & ~taken_MN.any(-2, keepdim=True)) | taken_MN).to(points_NC.dtype)
    counts_M1 = members_MN.sum(-1, keepdim=True)
    means_MC = members_MN @ points_NC / counts_M1.clamp(min=1)
    return torch.where(counts_M1 > 0, means_MC, means_MC.take_along_dim(counts_M1.argmax(-2, keepdim=True), -2))


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
