"""What gradient readouts share: one forward and one backward give the features and gradients of all their stages.

The earliest stage asked for becomes a leaf (`Backbone.forward`) and parameters are constants, so the backward ends
there and makes no gradient of a weight. Scores are summed over the batch: with stored statistics an image's score
depends on no other image, so each gets its own gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models._backbones import Backbone, Stage
from wsol_models._layers import LocalizationMethod, Output, at_least_float32, detached_call
from wsol_models._lookup import unknown
from wsol_models.readouts import LocalizationReadout, Setting, require_eval

EPSILON = 1e-8  # a logit closer to 0 counts as this: its logarithm has no gradient there


@dataclass(frozen=True)
class Gradients:
    """Features Z and gradients G of the score with respect to them, B×C×H×W per stage; the classes' scores s_k."""

    features: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    scores_B: Tensor


@dataclass(frozen=True)
class GradientReadout(LocalizationReadout):
    """One setting per stage.

    stages: names of stages, or "all". Default: the last one.
    """

    enlarges: ClassVar[bool] = True
    stages: Sequence[str] | str | None = None
    score = "logit"  # what is differentiated: see `score_of`
    guided_relu = False

    def __post_init__(self) -> None:
        if self.stages not in (None, "all") and (isinstance(self.stages, str) or not self.stages):
            raise ValueError(f"stages must be 'all' or one or more names in a list but is {self.stages!r}.")

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        require_eval(method)
        known = stages_of(method)
        if self.stages is None:
            return [self.default_stage(known)]
        if self.stages == "all":
            return list(known)
        for stage in self.stages:
            if stage not in known:
                raise unknown("stage", stage, known)
        return list(dict.fromkeys(self.stages))

    def default_stage(self, stages: Mapping[str, Stage]) -> str:
        return list(stages)[-1]

    def passes(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        settings: Sequence[Setting],
        output: Output | None,
    ) -> Any:
        """`Gradients` of the stages that the settings are of."""
        stages = list(dict.fromkeys(stage_of(setting) for setting in settings))
        return differentiate(method, images_BCHW, classes_B, stages, self.score, self.guided_relu)

    def read(self, passes: Any, classes_B: Tensor, setting: Setting) -> Tensor:
        stage = stage_of(setting)
        return self.localize(passes.features[stage], passes.gradients[stage], passes.scores_B)

    def localize(self, features_BCHW: Tensor, gradients_BCHW: Tensor, scores_B: Tensor) -> Tensor:
        """Maps from features Z, gradients G and the classes' scores."""
        raise NotImplementedError


def stage_of(setting: Setting) -> str:
    """A setting is a stage, or a stage and what else there is to choose: `layer3/ours3`."""
    return str(setting).partition("/")[0]


def stages_of(method: nn.Module) -> dict[str, Stage]:
    """Stages of a method's backbone in order, wherever the method has cut it."""
    return {name: stage for part in extractor(method) for name, stage in part.stages.items()}


def extractor(method: nn.Module) -> list[Backbone]:
    """The parts of the backbone; what a method puts between and on top is none of them."""
    return [part for part in method.modules() if isinstance(part, Backbone)]


TURNS = Lock()  # `detached_call` and `guided_relus` exchange parts of the modules while a forward runs


def differentiate(
    method: LocalizationMethod,
    images_BCHW: Tensor,
    classes_B: Tensor,
    stages: Sequence[str],
    score: str = "logit",
    guided_relu: bool = False,
) -> Gradients:
    """Gradients of each image's score of its class with respect to the features of `stages`, float32 at least.

    score: see `score_of`. guided_relu: only positive gradients pass the ReLUs of the backbone.
    """
    with torch.inference_mode(False), torch.enable_grad():
        with TURNS, guided_relus(method) if guided_relu else nullcontext():
            output = detached_call(method, images_BCHW, taps=stages)
        scores_B, objective_B = score_of(at_least_float32(output.logits_BK), classes_B, score)
        features = [output.taps[stage] for stage in stages]
        gradients = torch.autograd.grad(objective_B.sum(), features)
    return Gradients(
        {stage: at_least_float32(Z_BCHW.detach()) for stage, Z_BCHW in zip(stages, features, strict=True)},
        {stage: at_least_float32(G_BCHW) for stage, G_BCHW in zip(stages, gradients, strict=True)},
        scores_B.detach(),
    )


def score_of(logits_BK: Tensor, classes_B: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """Score s_k of each image's class k, and what is differentiated.

    "logit": s_k is the logit, and differentiated itself. "log_logit": of the logit its logarithm, or what has the
    gradient of that, 1/s_k times that of s_k, where s_k is negative too. "log_softmax": s_k is the probability, and its
    logarithm is differentiated.
    """
    logits_B = logits_BK.gather(1, classes_B[:, None])[:, 0]
    if score == "log_softmax":
        logs_B = logits_B - logits_BK.logsumexp(1)
        return logs_B.exp(), logs_B
    return logits_B, logits_B if score == "logit" else logits_B / away_from_zero(logits_B.detach())


def away_from_zero(values: Tensor) -> Tensor:
    """The values, those within ε of 0 moved out to ±ε."""
    return values.abs().clamp(min=EPSILON).copysign(values)


class GuidedReLU(torch.autograd.Function):
    """ReLU whose backward drops negative gradients too: guided backpropagation, https://arxiv.org/abs/1412.6806"""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        rectified = F.relu(features)
        ctx.save_for_backward(rectified)
        return rectified

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        (rectified,) = ctx.saved_tensors
        return torch.where((rectified > 0) & (gradients > 0), gradients, 0)


@contextmanager
def guided_relus(method: nn.Module) -> Iterator[None]:
    """Inside, every `nn.ReLU` module of the backbone is a `GuidedReLU`, which gives the same values.

    Functional ReLUs (of InceptionV3's convolutions) and ReLU6 (of MobileNetV2) stay as they are, and so do the ReLUs of
    a method's own layers.
    """
    relus = {module for part in extractor(method) for module in part.modules() if isinstance(module, nn.ReLU)}
    for relu in relus:
        relu.forward = GuidedReLU.apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        for relu in relus:
            del relu.forward
