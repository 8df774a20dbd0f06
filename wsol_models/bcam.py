"""B-CAM: background-aware class activation maps.

Zhu et al., Background-aware Classification Activation Map for Weakly Supervised Object Localization, TPAMI 2023,
https://arxiv.org/abs/2112.14379

Image-level labels never show a classifier what background is, so its maps spread over it. B-CAM pools every image
twice, with an attention for the object and one for the background (mutual exclusive aggregator, MEA), and asks an
object classifier and a background classifier about both (stagger score estimator, SSE): that the background feature is
of no class teaches the object classifier to leave background alone. Maps of both classifiers, or the gradients of their
differences, are compared position by position, which needs no threshold (`readouts/bcam.py`).

Where the released code (https://github.com/zh460045050/BCAM) and the text differ, this follows the code:

- s^b is trained by the multi-label soft margin against 0; the text's cross-entropy against 0 is 0 for every network;
- the background classifier's two terms see detached features under attached attention: they reach the aggregators and
  through them the network, never the features that are pooled;
- VGG16: the attention is of conv6's input and has biases, the pooling is of its ReLU, so b^o and b^b never train conv6;
- aggregators start at 0, hence as average pooling, and a mean over heads that start equal gives each of the M heads a
  group has the same gradient for ever: M then only divides the learning rate of one head. `aggregator_init="xavier"`,
  which only the code for VOC2012 has, makes them differ.

Images of several classes train all four scores by the multi-label soft margin, as the code for VOC2012 does. Its other
peculiarities (detached stage2, attached features) are left out.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models._backbones import Backbone
from wsol_models._layers import (
    LocalizationMethod,
    Output,
    Reduction,
    at_least_float32,
    he_,
    pooled,
    require_not_negative,
    require_targets,
    scored,
    select_taps,
    targets_of,
    without_autocast,
    xavier_,
)
from wsol_models._lookup import unknown

INITS = ("zero", "xavier")


@dataclass(frozen=True)
class Config:
    """Weights of the stagger classification loss and the shape of the heads.

    lambda1 .. lambda4: λ1 (s^o, the object classifier on the object feature), λ2 (s^b, the same on the background
        feature), λ3 (b^o, the background classifier on the object feature), λ4 (b^b).
    heads: M, attention maps per aggregator.
    aggregator_init: "zero", or "xavier" for heads that differ.
    classifier_std: standard deviation of the classifiers' weights at the start. 0: He's √(2 / classes), as the code,
        which is 0.1 for 200 classes, but 0.8 for three: then scores start far apart, and a short training unlearns.
    large: 28x28 maps at 224 px (else 14x14); the paper has VGG16 without.
    soft_topk: 0, or the number of classes of soft labels in place of one class; the paper has 5 on ILSVRC. Its code has
        none: an interpretation, see `soft_labels`. The teacher is the network as its weights came, in this layout,
        with their classifier; it costs a forward per step.
    head_lr_scale: learning rate, relative to the backbone's, of everything new and of a ResNet's layer4.
    bias_lr_scale: of the biases of all else (2 in the script for InceptionV3).
    """

    lambda1: float = 1.0
    lambda2: float = 1.0
    lambda3: float = 1.0
    lambda4: float = 1.0
    heads: int = 100
    aggregator_init: Literal["zero", "xavier"] = "zero"
    classifier_std: float = 0.0
    large: bool = True
    soft_topk: int = 0
    head_lr_scale: float = 10.0
    bias_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        require_not_negative(lambda1=self.lambda1, lambda2=self.lambda2, lambda3=self.lambda3, lambda4=self.lambda4)
        require_not_negative(head_lr_scale=self.head_lr_scale, bias_lr_scale=self.bias_lr_scale)
        require_not_negative(classifier_std=self.classifier_std)
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1 but is {self.heads}.")
        if self.soft_topk < 0:
            raise ValueError(f"soft_topk must be a number of classes, or 0 for hard labels, but is {self.soft_topk}.")
        if self.aggregator_init not in INITS:
            raise unknown("aggregator_init", self.aggregator_init, INITS)

    @property
    def layout(self) -> str:
        return "large" if self.large else "small"


@dataclass(frozen=True, kw_only=True)
class StaggeredOutput(Output):
    """The other three scores beside s^o, which is `logits_BK`: s of z^b, b of z^o and b of z^b; and what they are
    trained towards, B×K: one class, soft labels, or several classes."""

    s_b_BK: Tensor
    b_o_BK: Tensor
    b_b_BK: Tensor
    labels_BK: Tensor | None = None

    @property
    def scores(self) -> dict[str, Tensor]:
        return {"s_o": self.logits_BK, "s_b": self.s_b_BK, "b_o": self.b_o_BK, "b_b": self.b_b_BK}


class Method(LocalizationMethod):
    """Backbone; `aggregator_A`, `classifier_A`: of the object; `aggregator_B`, `classifier_B`: of the background."""

    offers = frozenset({"a linear head", "staggered scores"})

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.backbone = config, num_classes, backbone
        self.attention_stage = attention_stage(backbone)
        attended, pooled = backbone.stages[self.attention_stage].channels, backbone.last.channels
        has_bias = self.attention_stage != backbone.names[-1]
        self.aggregator_A = nn.Conv2d(attended, config.heads, 1, bias=has_bias)
        self.aggregator_B = nn.Conv2d(attended, config.heads, 1, bias=has_bias)
        self.classifier_A = nn.Conv2d(pooled, num_classes, 1)
        self.classifier_B = nn.Conv2d(pooled, num_classes, 1)
        self._initialise()
        # in a tuple, hence no part of the method's parameters, state or mode
        self._teacher = (Teacher(backbone, num_classes),) if config.soft_topk and backbone.head else None

    @property
    def head_weight_KC(self) -> Tensor:
        """Weights of the object classifier, a linear head over `Output.features_BCHW`."""
        return self.classifier_A.weight.flatten(1)

    def forward(
        self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()
    ) -> StaggeredOutput:
        """targets: int64 class index per image, or float multi-hot rows; needed by the losses only.

        taps: stages whose features are returned. Raises `ValueError` in training with soft labels if the backbone's
        weights brought no classifier.
        """
        if targets is not None:
            require_targets(targets, images_BCHW, self.num_classes)
        features_BCHW, tapped = self.backbone(images_BCHW, (*taps, self.attention_stage))
        attention_B2MHW = self._attend(tapped[self.attention_stage])
        s_o_BK, s_b_BK = self._classify(self.classifier_A, features_BCHW, attention_B2MHW)
        b_o_BK, b_b_BK = self._classify(self.classifier_B, features_BCHW.detach(), attention_B2MHW)
        return StaggeredOutput(
            s_o_BK,
            features_BCHW,
            taps=select_taps(taps, tapped, self.backbone.names),
            targets=targets,
            s_b_BK=s_b_BK,
            b_o_BK=b_o_BK,
            b_b_BK=b_b_BK,
            labels_BK=None if targets is None else self._labels(images_BCHW, targets),
        )

    def lr_scale(self, name: str) -> float:
        """The authors' groups: new layers and a ResNet's layer4, biases included, and the rest."""
        if not name.startswith("backbone.") or ".layer4." in name or self.backbone.is_new(name.split(".", 1)[1]):
            return self.config.head_lr_scale
        return self.config.bias_lr_scale if name.endswith("bias") else 1.0

    def _attend(self, features_BCHW: Tensor) -> Tensor:
        """A^o and A^b, one convolution for both."""
        aggregators = (self.aggregator_A, self.aggregator_B)
        biases = [aggregator.bias for aggregator in aggregators if aggregator.bias is not None]
        weight = torch.cat([aggregator.weight for aggregator in aggregators])
        scores_BNHW = F.conv2d(features_BCHW, weight, torch.cat(biases) if biases else None)
        return attention(scores_BNHW.unflatten(1, (2, self.config.heads)))

    @staticmethod
    def _classify(classifier: nn.Module, features_BCHW: Tensor, attention_B2MHW: Tensor) -> tuple[Tensor, ...]:
        """Scores of z^o and z^b."""
        return scored(classifier, aggregate(features_BCHW, attention_B2MHW)[..., None])[..., 0].unbind(2)

    @torch.no_grad()
    def _labels(self, images_BCHW: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 2:
            return targets
        if not (self.config.soft_topk and self.training):
            return F.one_hot(targets, self.num_classes).to(images_BCHW.dtype)
        if self._teacher is None:
            raise ValueError("soft_topk needs weights with a classifier, its teacher, but the backbone has none.")
        [teacher] = self._teacher
        return soft_labels(teacher(images_BCHW), targets, self.config.soft_topk)

    def _apply(self, move: Callable[[Tensor], Tensor], recurse: bool = True) -> "Method":
        """The teacher goes where the method goes: to a device, into a layout, to another type."""
        for teacher in self._teacher or ():
            teacher._apply(move, recurse)
        super()._apply(move, recurse)
        return self

    def _initialise(self) -> None:
        he_(nn.ModuleList([self.classifier_A, self.classifier_B, *self.backbone.new_layers()]))
        if self.config.classifier_std:
            for classifier in (self.classifier_A, self.classifier_B):
                nn.init.normal_(classifier.weight, std=self.config.classifier_std)
        for aggregator in (self.aggregator_A, self.aggregator_B):
            xavier_(aggregator)
            if self.config.aggregator_init == "zero":
                nn.init.zeros_(aggregator.weight)


def attention_stage(backbone: Backbone) -> str:
    """The stage that the aggregators read: the last one, or what VGG16's conv6 reads."""
    names = backbone.names
    return names[names.index("conv6") - 1] if "conv6" in names else names[-1]


class Teacher(nn.Module):
    """A frozen copy of the network as its weights came, and their classifier over the pooled features.

    Raises `ValueError` if the classifier is of other classes, or not linear over the last stage (VGG16).
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        assert backbone.head is not None
        weight_KC, bias_K = backbone.head
        if weight_KC.shape != (num_classes, backbone.last.channels):
            raise ValueError(
                f"soft_topk needs weights with a classifier of {num_classes} classes over {backbone.last.channels} "
                f"channels but theirs has {weight_KC.shape[0]} over {weight_KC.shape[1]}."
            )
        self.network = copy.deepcopy(backbone)
        self.head = nn.utils.skip_init(nn.Linear, weight_KC.shape[1], num_classes)
        self.head.load_state_dict({"weight": weight_KC, "bias": bias_K})
        self.eval().requires_grad_(False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, B×K."""
        features_BCHW, _ = self.network(images_BCHW)
        return scored(self.head, pooled(features_BCHW))


def attention(scores: Tensor) -> Tensor:
    """A of the MEA: softmax over the positions (the last two dimensions) of each head."""
    return scores.flatten(-2).softmax(-1).view_as(scores)


def aggregate(features_BCHW: Tensor, attention_B2MHW: Tensor) -> Tensor:
    """z^o and z^b of the MEA: (1/M) Σ_m Σ_i A[m, i] Z[:, i], B×C×2. All heads pool one Z, so their mean comes first."""
    features_BCN = at_least_float32(features_BCHW).flatten(2)
    weights_BN2 = at_least_float32(attention_B2MHW).mean(2).flatten(2).transpose(1, 2)
    with without_autocast(features_BCHW.device.type):  # as all that pools
        return features_BCN @ weights_BN2.to(features_BCN.dtype)


def soft_labels(teacher_logits_BK: Tensor, targets_B: Tensor, k: int) -> Tensor:
    """The teacher's probabilities of its k best classes and of the true one, which sum up to 1 again; else 0. B×K."""
    best_Bk = teacher_logits_BK.topk(min(k, teacher_logits_BK.shape[1])).indices
    left_out_BK = torch.ones_like(teacher_logits_BK, dtype=torch.bool)
    left_out_BK.scatter_(1, best_Bk, False).scatter_(1, targets_B[:, None], False)
    return teacher_logits_BK.masked_fill(left_out_BK, -torch.inf).softmax(1)


def soft_margin(logits_BK: Tensor, labels_BK: Tensor, reduction: Reduction = "mean") -> Tensor:
    """MLSM: binary cross-entropy of each class, mean over classes."""
    return F.multilabel_soft_margin_loss(at_least_float32(logits_BK), labels_BK, reduction=reduction)


def losses(output: Output, config: Config, reduction: Reduction = "mean") -> dict[str, Tensor]:
    """The terms of L_SC, already weighted: s^o towards y, s^b towards no class, b^o towards all but y, b^b towards all.

    With class indices or soft labels the first is cross-entropy, with multi-hot targets MLSM as the others. reduction:
    "none" for the terms of each image, B.
    """
    targets = targets_of(output)
    assert isinstance(output, StaggeredOutput)
    assert output.labels_BK is not None
    labels_BK = output.labels_BK
    classification = soft_margin if targets.ndim == 2 else F.cross_entropy
    return {
        "s_o": config.lambda1 * classification(at_least_float32(output.logits_BK), labels_BK, reduction=reduction),
        "s_b": config.lambda2 * soft_margin(output.s_b_BK, torch.zeros_like(labels_BK), reduction),
        "b_o": config.lambda3 * soft_margin(output.b_o_BK, 1 - labels_BK, reduction),
        "b_b": config.lambda4 * soft_margin(output.b_b_BK, torch.ones_like(labels_BK), reduction),
    }
