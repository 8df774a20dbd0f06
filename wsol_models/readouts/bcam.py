"""B-CAM: maps of the object, of the background, and the mask of where the object's is the higher.

Zhu et al., https://arxiv.org/abs/2112.14379, and its code https://github.com/zh460045050/BCAM; scores as in
`wsol_models/bcam.py`. "plain" maps are the two classifiers at every position: the object's S, the background's B;
"plain_relu" their ReLU, which the code for VOC2012 adds up over scales and mirror images. The paper's final maps come
from gradients G of u (object) and v (background) with respect to the features Z of a stage, with w_c the mean of G_c
over positions:

    grad_x_meangrad       Σ_c G_c w_c           CUB
    grad_x_relu_meangrad  Σ_c G_c ReLU(w_c)     ILSVRC
    feat_x_meangrad       Σ_c Z_c w_c           OpenImages

The text gives none of these rules, and other differences: "paper" has u = s^o - s^b and v = b^b - b^o (the text prints
v with the other sign, which the first rule does not see and which would invert the others). "code" subtracts the other
classifier on the same feature, u = s^o - b^o and v = b^b - s^b; for feat_x_meangrad it subtracts nothing.

At the stage that the attention reads (the default of ResNets) gradients through the attention sum up to 0 over the
positions of a channel, as those of a softmax do, so w is W/N for s^o and for s^b alike, W being the object classifier's
weights. Hence all maps of "paper" are 0 there but for rounding, so is the background's by feat_x_meangrad, and the
object's by feat_x_meangrad is CAM.

All maps share one forward and one backward per score: u and v are differences of the four gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsol_models._backbones import Stage
from wsol_models._layers import LocalizationMethod, Output, at_least_float32, detached_call
from wsol_models._lookup import unknown
from wsol_models.readouts import Setting, forward, require
from wsol_models.readouts._gradients import TURNS, GradientReadout

PLAIN = ("plain", "plain_relu")
RULES = ("grad_x_meangrad", "grad_x_relu_meangrad", "feat_x_meangrad")
READINGS = (*(f"{rule}/{difference}" for difference in ("code", "paper") for rule in RULES), *PLAIN)
RELEASED = (*READINGS[:3], "plain")  # those of the code for one class per image
MODES = ("object", "mask", "background")
DIFFERENCES = {  # what u and v are: the first score minus the second
    ("code", "object"): ("s_o", "b_o"),
    ("code", "background"): ("b_b", "s_b"),
    ("paper", "object"): ("s_o", "s_b"),
    ("paper", "background"): ("b_b", "b_o"),
}


@dataclass(frozen=True)
class Passes:
    """Features per stage; gradients per stage and score; plain maps per mode."""

    features: Mapping[str, Tensor]
    gradients: Mapping[tuple[str, str], Tensor]
    plain: Mapping[str, Tensor]


@dataclass(frozen=True)
class Readout(GradientReadout):
    """One setting per stage, reading and mode: "layer4/grad_x_meangrad/code/object", "plain/mask".

    stages: by default the paper's, conv6 (before its ReLU) of VGG16, SPG_A3_1b of InceptionV3, else the last one.
    readings: of `READINGS`, how maps are read; by default without those of "paper" and without "plain_relu".
    modes: "object", the paper's p; "mask", its m: both maps, of which one shows where the object's, enlarged to the
        image, is higher than the background's, which needs no threshold; "background".
    class_agnostic: sum scores over all classes instead of taking the class's.
    """

    readings: Sequence[str] = RELEASED
    modes: Sequence[str] = ("object", "mask")
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, values, known in (("reading", self.readings, READINGS), ("mode", self.modes, MODES)):
            if isinstance(values, str) or not values:
                raise ValueError(f"{field}s must be one or more names in a list but is {values!r}.")
            for value in values:
                if value not in known:
                    raise unknown(field, value, known)

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        require("bcam", "staggered scores", method)
        stages = [str(stage) for stage in super().settings(method)]
        places = {reading: [f"{stage}/{reading}" for stage in stages] for reading in self.readings} | {
            plain: [plain] for plain in PLAIN
        }
        return [f"{place}/{mode}" for reading in self.readings for place in places[reading] for mode in self.modes]

    def cuts_itself(self, setting: Setting) -> bool:
        return parse(setting)[3] == "mask"

    def default_stage(self, stages: Mapping[str, Stage]) -> str:
        return next((stage for stage in ("conv6", "SPG_A3_1b") if stage in stages), list(stages)[-1])

    def passes(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        settings: Sequence[Setting],
        output: Output | None,
    ) -> Passes:
        parsed = [parse(setting) for setting in settings]
        stages = list(dict.fromkeys(stage for stage, *_ in parsed if stage not in PLAIN))
        needed = {score for _, rule, difference, mode in parsed for score in scores_of(rule, difference, mode)}
        chosen_BK = self._chosen(method, classes_B).to(at_least_float32(images_BCHW).dtype)
        if stages:
            output, features, gradients = trace(method, images_BCHW, chosen_BK, stages, needed)
        else:
            output, features, gradients = output or forward(method, images_BCHW), {}, {}
        plain = plain_maps(method, output.features_BCHW, chosen_BK)
        return Passes(features, gradients, plain)

    def read(self, passes: Passes, classes_B: Tensor, setting: Setting) -> Tensor:
        stage, rule, difference, mode = parse(setting)
        if mode != "mask":
            return map_of(passes, stage, rule, difference, mode)
        both = [map_of(passes, stage, rule, difference, each) for each in ("object", "background")]
        return torch.stack(both, dim=1)

    def _chosen(self, method: LocalizationMethod, classes_B: Tensor) -> Tensor:
        """1 for the classes whose scores count, B×K."""
        if self.class_agnostic:
            return classes_B.new_ones(len(classes_B), method.num_classes)
        return F.one_hot(classes_B, method.num_classes)


def parse(setting: Setting) -> tuple[str, str, str, str]:
    """Stage, rule, difference and mode; a plain setting has its name for a stage and neither rule nor difference."""
    parts = str(setting).split("/")
    stage, rule, difference = parts[:3] if len(parts) == 4 else (parts[0], "", "")
    return stage, rule, difference, parts[-1]


def scores_of(rule: str, difference: str, mode: str) -> tuple[str, ...]:
    """The scores whose gradients a map needs."""
    if not rule:
        return ()
    if mode == "mask":
        return scores_of(rule, difference, "object") + scores_of(rule, difference, "background")
    pair = DIFFERENCES[difference, mode]
    return pair[:1] if (rule, difference) == ("feat_x_meangrad", "code") else pair


def trace(
    method: LocalizationMethod, images_BCHW: Tensor, chosen_BK: Tensor, stages: Sequence[str], scores: set[str]
) -> tuple[Any, dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """One forward with constant parameters and one backward per score: output, features and gradients per stage.

    A score that a stage has no path to has a gradient of 0: b^o and b^b at conv6 of VGG16.
    """
    gradients: dict[tuple[str, str], Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        with TURNS:
            output = detached_call(method, images_BCHW, taps=stages)
        features, chosen_BK = (
            [output.taps[stage] for stage in stages],
            chosen_BK.clone(),
        )  # may come from inference mode
        for score in sorted(scores):
            total = (output.scores[score] * chosen_BK).sum()
            found = torch.autograd.grad(total, features, retain_graph=True, materialize_grads=True)
            gradients |= {(stage, score): at_least_float32(G) for stage, G in zip(stages, found, strict=True)}
    return output, {stage: at_least_float32(Z.detach()) for stage, Z in zip(stages, features, strict=True)}, gradients


@torch.no_grad()
def plain_maps(method: Any, features_BCHW: Tensor, chosen_BK: Tensor) -> dict[str, Tensor]:
    """S and B of the chosen classes, biases included: both classifiers at every position, B×H×W."""
    return {
        "object": classifier_map(method.classifier_A, features_BCHW, chosen_BK),
        "background": classifier_map(method.classifier_B, features_BCHW, chosen_BK),
    }


def classifier_map(classifier: nn.Conv2d, features_BCHW: Tensor, chosen_BK: Tensor) -> Tensor:
    """Σ_k over the chosen classes of a 1x1 convolution's output, without making the other channels."""
    assert classifier.bias is not None
    weight_BC = chosen_BK @ at_least_float32(classifier.weight.flatten(1))
    bias_B = chosen_BK @ at_least_float32(classifier.bias)
    scores_BHW = torch.einsum("bchw,bc->bhw", at_least_float32(features_BCHW), weight_BC)
    return at_least_float32(scores_BHW + bias_B[:, None, None])


def map_of(passes: Passes, stage: str, rule: str, difference: str, mode: str) -> Tensor:
    """The object's or the background's map, on its stage's grid."""
    if not rule:
        return F.relu(passes.plain[mode]) if stage == "plain_relu" else passes.plain[mode]
    first, *subtracted = scores_of(rule, difference, mode)
    gradients_BCHW = passes.gradients[stage, first]
    for score in subtracted:
        gradients_BCHW = gradients_BCHW - passes.gradients[stage, score]
    return weigh(passes.features[stage], gradients_BCHW, rule)


def weigh(features_BCHW: Tensor, gradients_BCHW: Tensor, rule: str) -> Tensor:
    """One of `RULES` applied to features Z and gradients G, B×H×W."""
    weights_BC11 = gradients_BCHW.mean((2, 3), keepdim=True)
    if rule == "feat_x_meangrad":
        return (features_BCHW * weights_BC11).sum(1)
    return (gradients_BCHW * (F.relu(weights_BC11) if rule == "grad_x_relu_meangrad" else weights_BC11)).sum(1)
