"""BAS: background activation suppression.

Wu et al., Background Activation Suppression for Weakly Supervised Object Localization, CVPR 2022,
https://arxiv.org/abs/2112.00580, and its extension, IJCV 2024, https://arxiv.org/abs/2309.12943

A generator predicts a foreground map M per class from features F of the middle of the network. Multiplied with what the
map leaves over, 1 - M, the features should tell nothing about the class any more: the loss is the activation S^b that
remains, as a share of the whole one S. Unlike cross-entropy it keeps growing with the part of the object that the map
misses. An area term keeps the map small, a classification term on the foreground keeps it on the object.

The defaults are the extension on CUB with ResNet50, as in https://github.com/wpy1999/BAS-Extension. Where that code and
the text differ, this follows the code, but for the value of a clamped ratio (1 as in the text; same gradients). The
extension's form for segmentation seeds (images of several classes) is `segmentation=True` with multi-hot targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models._backbones import Backbone
from wsol_models._layers import (
    Head,
    LocalizationMethod,
    Output,
    Reduction,
    at_least_float32,
    classifier,
    detached_call,
    pooled,
    reduced,
    require_not_negative,
    require_targets,
    select_taps,
    targets_of,
    without_autocast,
    xavier_,
)
from wsol_models._lookup import unknown

EPSILON = 1e-8  # ε of L_bas; the papers print e^-8
MASKED = ("features", "image")


@dataclass(frozen=True)
class Config:
    """Weights of the loss L = L_cls + α L_frg + β L_ac + λ L_bas and where the generator sits.

    lambda_: λ, background activation suppression. alpha: α, foreground region guidance. beta: β, area constraint; the
        extension suggests β = α + λ.
    generator_after: the stage whose features F the generator reads; stages after it are F2. Default: the deepest stage
        before the last halving of the map (ResNet50: layer3, F 28x28 at 224 px; VGG16: relu4_3; InceptionV3: Mixed_6e;
        MobileNetV1: block11). The network is the same for every position, halvings included: from the last stage F is
        14x14 and F2 the identity.
    mask: what 1 - M_f is multiplied with: F, or the image (enlarged bilinearly), which then passes the whole network
        again; the papers' ablation found features better.
    relu_class_maps: ReLU on the class maps before the pooling: the conference version. The extension has it False and
        clips S and S^b at 0 instead.
    segmentation: the extension's network for segmentation seeds: the last halving is left out, both heads have no
        biases, the classifier is one 1x1 convolution and the generator sits before the last stage.
    head_width: channels of the two hidden convolutions of the classifier. Default: the backbone's (1024 in the papers).
    foreground_head: for segmentation, one more generator, of a map of all objects whatever their class (Table 13). It
        reads detach(F), draws nothing from the stream of random numbers and reaches no other layer: the rest of the
        network is what it is without it. foreground_attached: its gradient goes into F.
    head_lr_scale: learning rate of generator and classifier relative to the backbone's. bias_lr_scale: of every bias
        relative to its group's.
    """

    lambda_: float = 1.0
    alpha: float = 0.5
    beta: float = 1.5
    generator_after: str | None = None
    mask: Literal["features", "image"] = "features"
    relu_class_maps: bool = False
    segmentation: bool = False
    head_width: int | None = None
    foreground_head: bool = False
    foreground_attached: bool = False
    head_lr_scale: float = 10.0
    bias_lr_scale: float = 2.0

    def __post_init__(self) -> None:
        require_not_negative(lambda_=self.lambda_, alpha=self.alpha, beta=self.beta)
        require_not_negative(head_lr_scale=self.head_lr_scale, bias_lr_scale=self.bias_lr_scale)
        if self.mask not in MASKED:
            raise unknown("value of mask", self.mask, MASKED)
        if self.foreground_head and not self.segmentation:
            raise ValueError("foreground_head is of the network for segmentation: set segmentation to true.")
        if self.head_width is not None and self.head_width < 1:
            raise ValueError(f"head_width must be at least 1 but is {self.head_width}.")

    @property
    def layout(self) -> str:
        return "small" if self.segmentation else "late"


@dataclass(frozen=True, kw_only=True)
class TrainingOutput(Output):
    """What the losses need: the class that drives map and suppression of each image (its target, or one of them), the
    class maps (on F2's grid; their means are the logits), that class's map M_f (on F's grid) and the logits of what was
    masked."""

    classes_B: Tensor
    class_maps_BKHW: Tensor
    foreground_BHW: Tensor
    background_logits_BK: Tensor
    objects_BHW: Tensor | None = None  # the map of all objects, and the logits of what it leaves
    without_objects_BK: Tensor | None = None


class Method(LocalizationMethod):
    """F1, F2: the backbone up to the generator and after it; `classifier_loc`: generator; `classifier_cls`: head."""

    offers = frozenset({"own maps", "a linear head", "background suppression"})

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.stage_names = config, num_classes, backbone.names
        stage = config.generator_after or default_position(backbone, config.segmentation)
        self.F1, self.F2 = backbone.until(stage), backbone.after(stage)
        bias, channels = not config.segmentation, backbone.last.channels
        self.classifier_loc = nn.Conv2d(self.F1.last.channels, num_classes, 3, padding=1, bias=bias)
        if config.segmentation:
            self.classifier_cls = linear_classifier(channels, num_classes)
        else:
            self.classifier_cls = classifier(channels, config.head_width or backbone.head_width, num_classes)
        for head in (self.classifier_loc, self.classifier_cls):
            initialise(head, backbone.family)
        if config.foreground_head:
            with torch.random.fork_rng(devices=[]):
                self.generator_fg = nn.Conv2d(self.F1.last.channels, 1, 3, padding=1, bias=False)
                initialise(nn.ModuleList([self.generator_fg]), backbone.family)

    @property
    def head_weight_KC(self) -> Tensor:
        """Weights of the linear head over `Output.features_BCHW`."""
        return self.classifier_cls.get_parameter("maps.weight").flatten(1)

    def forward(self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()) -> Output:
        """targets: int64 class index per image, or float multi-hot rows. taps: stages whose features are returned.

        In training with targets: a `TrainingOutput` with the map of one class only, since no loss sees the others.
        Otherwise the maps of all classes, in [0, 1], and no masked pass. Of several classes one is drawn at random.
        """
        if targets is not None:
            require_targets(targets, images_BCHW, self.num_classes)
        features_BCHW, shallow = self.F1(images_BCHW, taps)
        deep_BCHW, deeper = self.F2(features_BCHW, taps)
        hidden_BCHW, class_maps_BKHW = self.classifier_cls(deep_BCHW)
        class_maps_BKHW = self._rectified(class_maps_BKHW)
        logits_BK = pooled(class_maps_BKHW)
        tapped = select_taps(taps, shallow | deeper, self.stage_names)
        if targets is None or not self.training:
            maps_BKHW = torch.sigmoid(self.classifier_loc(features_BCHW))
            return Output(logits_BK, hidden_BCHW, maps_BKHW, tapped, targets)
        classes_B = self.one_class(targets)
        foreground_BHW = self._foreground(features_BCHW, classes_B)
        background_BK = self.background_logits(images_BCHW, features_BCHW, foreground_BHW)
        objects = self._objects(images_BCHW, features_BCHW) if self.config.foreground_head else {}
        return TrainingOutput(
            logits_BK,
            hidden_BCHW,
            taps=tapped,
            targets=targets,
            classes_B=classes_B,
            class_maps_BKHW=class_maps_BKHW,
            foreground_BHW=foreground_BHW,
            background_logits_BK=background_BK,
            **objects,
        )

    def lr_scale(self, name: str) -> float:
        """Backbone 1, heads x10, biases twice their group; batch norm has biases too."""
        scale = self.config.head_lr_scale if "classifier" in name or "generator_fg" in name else 1.0
        return self.config.bias_lr_scale * scale if name.endswith("bias") else scale

    def objects(self, images_BCHW: Tensor) -> Tensor:
        """The map of all objects, of a network with `foreground_head`: in [0, 1], B×1×H×W on F's grid."""
        features_BCHW, _ = self.F1(images_BCHW)
        return torch.sigmoid(self.generator_fg(features_BCHW))

    def _objects(self, images_BCHW: Tensor, features_BCHW: Tensor) -> dict[str, Tensor]:
        seen_BCHW = features_BCHW if self.config.foreground_attached else features_BCHW.detach()
        objects_BHW = torch.sigmoid(self.generator_fg(seen_BCHW))[:, 0]
        left_BK = self.background_logits(images_BCHW, features_BCHW, objects_BHW)
        return {"objects_BHW": objects_BHW, "without_objects_BK": left_BK}

    def _foreground(self, features_BCHW: Tensor, classes_B: Tensor) -> Tensor:
        generator = self.classifier_loc
        return torch.sigmoid(convolution_of_class(features_BCHW, generator.weight, generator.bias, classes_B))

    def background_logits(self, images_BCHW: Tensor, features_BCHW: Tensor, foreground_BHW: Tensor) -> Tensor:
        """score_1, B×K, of F^b = detach(F)·(1 - M_f): trains F1 and generator through M_f, and nothing else."""
        left_B1HW = 1 - foreground_BHW[:, None]
        if self.config.mask == "image":
            left_B1HW = F.interpolate(left_B1HW, images_BCHW.shape[2:], mode="bilinear")
            background_BCHW, _ = detached_call(self.F1, images_BCHW * left_B1HW)
        else:
            background_BCHW = features_BCHW.detach() * left_B1HW.to(features_BCHW.dtype)
        deep_BCHW, _ = detached_call(self.F2, background_BCHW)
        _, class_maps_BKHW = detached_call(self.classifier_cls, deep_BCHW)
        return pooled(self._rectified(class_maps_BKHW))

    def _rectified(self, class_maps_BKHW: Tensor) -> Tensor:
        return F.relu(class_maps_BKHW) if self.config.relu_class_maps else class_maps_BKHW


def linear_classifier(in_channels: int, num_classes: int) -> Head:
    head = Head()
    head.add_module("maps", nn.Conv2d(in_channels, num_classes, 1, bias=False))
    return head


def initialise(head: nn.Module, family: str) -> None:
    """Xavier-uniform and no bias, as the papers' code; on VGG16 it has N(0, .02) and leaves torch's random biases."""
    if family != "vgg":
        xavier_(head)
        return
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02)


def default_position(backbone: Backbone, segmentation: bool) -> str:
    """The deepest stage whose map is larger than the network's last one; for segmentation, the last but one."""
    if segmentation:
        return backbone.names[-2]
    return [name for name, stage in backbone.stages.items() if stage.stride < backbone.last.stride][-1]


def convolution_of_class(
    features_BCHW: Tensor, weight_KC33: Tensor, bias_K: Tensor | None, classes_B: Tensor
) -> Tensor:
    """Channel `classes_B[b]` of a padded 3x3 convolution for each image b, B×H×W, without making the other K - 1;
    float32 at least.

    A 3x3 convolution is nine 1x1 ones, each shifted, summed up: `fold` shifts and sums (towards the other side, hence
    the flip).
    """
    kernels_B9C = weight_KC33[classes_B].flatten(2).flip(2).transpose(1, 2)
    shifted_B9N = kernels_B9C @ features_BCHW.flatten(2)
    map_BHW = F.fold(at_least_float32(shifted_B9N), features_BCHW.shape[2:], kernel_size=3, padding=1)[:, 0]
    return map_BHW if bias_K is None else map_BHW + bias_K[classes_B, None, None]


def background_activation_suppression(
    logits_BK: Tensor, background_logits_BK: Tensor, targets_B: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """L_bas = S^b / (S + ε); a constant 1 where S^b > S.

    S and S^b are the target's logits, clipped at 0. S is detached: a loss that could be lowered by raising S would
    train the classifier, not the map.
    """
    index_B1 = targets_B[:, None]
    score_B = F.relu(at_least_float32(logits_BK)).gather(1, index_B1).detach()
    background_B = F.relu(at_least_float32(background_logits_BK)).gather(1, index_B1)
    ratio_B = background_B / (score_B + EPSILON)
    return reduced(torch.where(background_B > score_B, torch.ones_like(ratio_B), ratio_B)[:, 0], reduction)


def area_constraint(foreground_BHW: Tensor, reduction: Reduction = "mean") -> Tensor:
    """L_ac: mean of the target's map over its positions."""
    return reduced(at_least_float32(foreground_BHW).mean((1, 2)), reduction)


def foreground_region_guidance(
    class_maps_BKHW: Tensor, foreground_BHW: Tensor, targets_B: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """L_frg: cross-entropy of `foreground_scores`."""
    return F.cross_entropy(foreground_scores(class_maps_BKHW, foreground_BHW), targets_B, reduction=reduction)


def foreground_scores(class_maps_BKHW: Tensor, foreground_BHW: Tensor) -> Tensor:
    """score_2, B×K: the class maps pooled over the target's map only.

    The papers' code averages the 28x28 map over 2x2 cells to meet 14x14 class maps; any other sizes are met alike.
    """
    foreground_B1HW = averaged(foreground_BHW[:, None], class_maps_BKHW.shape[2:])
    return pooled(class_maps_BKHW * foreground_B1HW)


def averaged(maps_B1HW: Tensor, size: Sequence[int]) -> Tensor:
    """Maps at a smaller size, each cell the mean of what it covers, wholly or in part (adaptive average pooling)."""
    cells = [side // new for side, new in zip(maps_B1HW.shape[2:], size, strict=True)]
    if [cell * new for cell, new in zip(cells, size, strict=True)] == list(maps_B1HW.shape[2:]):
        return F.avg_pool2d(maps_B1HW, cells)
    # a GPU cannot repeat the backward of adaptive_avg_pool2d to the last bit; that of products it can
    down, across = (_cells(side, new, maps_B1HW) for side, new in zip(maps_B1HW.shape[2:], size, strict=True))
    with without_autocast(maps_B1HW.device.type):
        return down @ maps_B1HW @ across.T


def _cells(side: int, new: int, like: Tensor) -> Tensor:
    """What each of `new` cells takes of each of `side` pixels, new×side, of the type and device of `like`."""
    pixels, cells_N1 = torch.arange(side, device=like.device), torch.arange(new, device=like.device)[:, None]
    covers = (pixels < -(-(cells_N1 + 1) * side // new)) & (pixels >= cells_N1 * side // new)
    return covers.to(like.dtype) / covers.sum(1, keepdim=True)


def multi_label_classification(logits_BK: Tensor, targets_BK: Tensor, reduction: Reduction = "mean") -> Tensor:
    """L_mcls = Σ_{i positive} -log( e^{y_i} / (e^{y_i} + Σ_{j negative} e^{y_j}) ).

    Each positive class competes with the negative ones only. An image without a negative class adds 0.
    """
    logits_BK, positive_BK = at_least_float32(logits_BK), targets_BK > 0
    negatives_B1 = logits_BK.masked_fill(positive_BK, -torch.inf).logsumexp(1, keepdim=True)
    return reduced(torch.where(positive_BK, F.softplus(negatives_B1 - logits_BK), 0).sum(1), reduction)


def objects_loss(output: TrainingOutput, config: Config, reduction: Reduction = "mean") -> Tensor:
    """λ Σ L_bas over an image's classes + β L_ac + α L_mcls of the class maps on the map of all objects."""
    assert output.objects_BHW is not None
    assert output.without_objects_BK is not None
    targets_BK = targets_of(output)
    classes = torch.arange(targets_BK.shape[1], device=targets_BK.device)
    of_class = [
        background_activation_suppression(
            output.logits_BK, output.without_objects_BK, each.expand(len(targets_BK)), "none"
        )
        for each in classes
    ]
    suppression_B = (torch.stack(of_class, 1) * (targets_BK > 0)).sum(1)
    guidance_B = multi_label_classification(
        foreground_scores(output.class_maps_BKHW.detach(), output.objects_BHW), targets_BK, "none"
    )
    area_B = area_constraint(output.objects_BHW, "none")
    return reduced(config.lambda_ * suppression_B + config.beta * area_B + config.alpha * guidance_B, reduction)


def losses(output: Output, config: Config, reduction: Reduction = "mean") -> dict[str, Tensor]:
    """The terms of L, already weighted: their sum is the loss. Raises `ValueError` without a training pass.

    With multi-hot targets L_cls is L_mcls, and L_frg trains F1 and the generator only. reduction: "none" for the terms
    of each image, B.
    """
    if not isinstance(output, TrainingOutput):
        raise ValueError("BAS losses need a forward in training mode with targets: call method.train() first.")
    targets, classes_B, class_maps_BKHW = targets_of(output), output.classes_B, output.class_maps_BKHW
    if targets.ndim == 2:
        classification = multi_label_classification(output.logits_BK, targets, reduction)
        class_maps_BKHW = class_maps_BKHW.detach()
    else:
        classification = F.cross_entropy(output.logits_BK, targets, reduction=reduction)
    guidance = foreground_region_guidance(class_maps_BKHW, output.foreground_BHW, classes_B, reduction)
    suppression = background_activation_suppression(output.logits_BK, output.background_logits_BK, classes_B, reduction)
    objects = {"objects": objects_loss(output, config, reduction)} if output.objects_BHW is not None else {}
    terms = {
        "cls": classification,
        "frg": config.alpha * guidance,
        "area": config.beta * area_constraint(output.foreground_BHW, reduction),
        "bas": config.lambda_ * suppression,
    }
    return terms | objects
