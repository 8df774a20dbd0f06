"""BagCAMs: every position of a stage gives a classifier of regions; the map is what all of them say together.

Zhu et al., Bagging Regional Classification Activation Maps for Weakly Supervised Object Localization, ECCV 2022,
https://arxiv.org/abs/2207.07818. A classifier trained on whole images localizes the parts that tell classes apart, not
the object. The gradient at one position is a classifier trained for that position's region; bagging these N localizers
and applying them to every position covers the object, for any trained network and without a parameter to train.

Defaults follow https://github.com/zh460045050/BagCAMs, which is not Eq. 12 of the text (`formula="paper"`): both
factors are of the same channel, negative products are dropped channel by channel, and gradients are guided. After
min-max Eq. 12 is PCS without its ReLU, up to sign. Of Table 8's weightings the code has ours3 only; ours1 and ours2 are
an interpretation: the text's Eq. 8 with Table 1's Λ, under "code" in the manner of the code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from wsol_models._backbones import Stage
from wsol_models._layers import LocalizationMethod
from wsol_models._lookup import unknown
from wsol_models.readouts import Setting
from wsol_models.readouts._gradients import GradientReadout, Gradients, stage_of
from wsol_models.readouts.gradcampp import position_weights

WEIGHTINGS = ("ours1", "ours2", "ours3")
FORMULAS = ("code", "paper")
SCORES = ("log_logit", "log_softmax")


@dataclass(frozen=True)
class Readout(GradientReadout):
    """One setting per stage and weighting: "layer3/ours3".

    stages: by default the last one before the network widens for the last time: layer3 of a ResNet, Mixed_6e of
        InceptionV3.
    weightings: how localizers are weighted, Λ of Table 1: ours1 all alike, ours2 by Grad-CAM++'s α, ours3 grouped by
        position.
    formula: "code" or "paper".
    score: s_k, whose logarithm is differentiated: "log_logit" takes the logit, as the code does, "log_softmax" the
        probability.
    guided_relu: only positive gradients pass the backbone's ReLU modules.
    """

    weightings: Sequence[str] = ("ours3",)
    formula: str = "code"
    score: str = "log_logit"
    guided_relu: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.weightings, str) or not self.weightings:
            raise ValueError(f"weightings must be one or more names in a list but is {self.weightings!r}.")
        for weighting in self.weightings:
            require_known("weighting", weighting, WEIGHTINGS)
        require_known("formula", self.formula, FORMULAS)
        require_known("score", self.score, SCORES)

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        return [f"{stage}/{weighting}" for stage in super().settings(method) for weighting in self.weightings]

    def default_stage(self, stages: Mapping[str, Stage]) -> str:
        *_, last = stages.values()
        narrower = [name for name, stage in stages.items() if stage.channels != last.channels]
        return narrower[-1]

    def read(self, passes: Gradients, classes_B: Tensor, setting: Setting) -> Tensor:
        stage = stage_of(setting)
        weighting = str(setting).removeprefix(f"{stage}/")
        return bag(passes.features[stage], passes.gradients[stage], passes.scores_B, weighting, self.formula)


def bag(
    features_BCHW: Tensor, gradients_BCHW: Tensor, scores_B: Tensor, weighting: str = "ours3", formula: str = "code"
) -> Tensor:
    """Maps of features Z, gradients g of log s_k and scores s_k, B×H×W."""
    if weighting != "ours3":
        return averaged_localizers(features_BCHW, gradients_BCHW, weighting, formula)
    if formula == "code":
        return grouped_localizers(features_BCHW, gradients_BCHW)
    return equation_12(features_BCHW, gradients_BCHW, scores_B)


def grouped_localizers(features_BCHW: Tensor, gradients_BCHW: Tensor) -> Tensor:
    """Σ_c ReLU(t_c a_c) with a = g·Z and t_c = 1 + mean of a_c over positions: ours3 of the code, B×H×W."""
    terms_BCHW = gradients_BCHW * features_BCHW
    trust_BC11 = 1 + terms_BCHW.mean((2, 3), keepdim=True)
    return F.relu(trust_BC11 * terms_BCHW).sum(1)


def equation_12(features_BCHW: Tensor, gradients_BCHW: Tensor, scores_B: Tensor) -> Tensor:
    """[Σ_m Σ_c s_k (1 + a_cm)]·[Σ_c a_ci] with a = g·Z: ours3 of the text, B×H×W."""
    terms_BCHW = gradients_BCHW * features_BCHW
    bracket_B = scores_B * (1 + terms_BCHW).sum((1, 2, 3))
    return bracket_B[:, None, None] * terms_BCHW.sum(1)


def averaged_localizers(features_BCHW: Tensor, gradients_BCHW: Tensor, weighting: str, formula: str) -> Tensor:
    """Σ_c Z_ci Σ_n λ_n t_n g_cn: Eq. 8 with a diagonal Λ, B×H×W.

    λ_n: 1/N under ours1, Grad-CAM++'s α_cn under ours2. t_n: Σ_c (1 + a_cn) with a = g·Z in the text; channel by
    channel, 1 + a_cn, with negative channels dropped, in the manner of the code.
    """
    trust_BCHW = 1 + gradients_BCHW * features_BCHW
    if formula == "paper":
        trust_BCHW = trust_BCHW.sum(1, keepdim=True)
    localizers_BCHW = trust_BCHW * gradients_BCHW
    if weighting == "ours1":
        weights_BC11 = localizers_BCHW.mean((2, 3), keepdim=True)
    else:
        alphas_BCHW = position_weights(features_BCHW, gradients_BCHW)
        weights_BC11 = (alphas_BCHW * localizers_BCHW).sum((2, 3), keepdim=True)
    channels_BCHW = weights_BC11 * features_BCHW
    return (channels_BCHW if formula == "paper" else F.relu(channels_BCHW)).sum(1)


def require_known(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise unknown(kind, name, known)
