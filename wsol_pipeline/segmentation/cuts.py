"""A threshold without a mask: the cut of a map that a trained BAS finds to suppress its class best (Section 5.5).

L_bas + L_ac of the mask m = [A >= t]: how much of the class is left outside of it, and how large it is. The extension
tries thresholds for each image, on the finished map of any method; summed over images the same scores choose one for
all of them, from labels alone.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsol_pipeline.errors import UsageError
from wsol_pipeline.images import dtype_of, normalize

EPSILON = 1e-8
CELLS = 4  # pixels per cell of strided maps


class Cuts(NamedTuple):
    """Scores [C, T] of thresholds for the classes of an image, and which of these the network recognises."""

    scores_CT: Tensor
    seen_C: Tensor


def scored(left_CT: Tensor, whole_C: Tensor, area_CT: Tensor) -> Cuts:
    """L_bas + L_ac of masks that leave the activations `left` of `whole`, and cover `area` of the image (0..1)."""
    ratio_CT = left_CT / (whole_C[:, None] + EPSILON)
    return Cuts(torch.where(left_CT > whole_C[:, None], 1.0, ratio_CT) + area_CT, whole_C > 0)


def best(cuts: Cuts, otherwise: float, per: str = "image") -> Tensor:
    """The threshold of each class, [C]: of all alike (`image`), or of each its own (`class`). Ties go to the lowest.

    A class that the network does not recognise has no say, and no threshold of its own; where none is, `otherwise`.
    """
    steps, (scores_CT, seen_C) = cuts.scores_CT.shape[1], cuts
    if not seen_C.any():
        return torch.full((len(seen_C),), otherwise)
    of_image = _lowest(scores_CT[seen_C].mean(0)) / steps
    if per == "image":
        return torch.full((len(seen_C),), of_image)
    own = (_lowest(row) / steps if seen else of_image for row, seen in zip(scores_CT, seen_C.tolist(), strict=True))
    return torch.tensor(list(own))


def _lowest(scores_T: Tensor) -> int:
    return int(np.argmin(scores_T.numpy()))  # torch promises no order among equals


@torch.no_grad()
def judged(
    method: torch.nn.Module, image_HW3: NDArray[np.uint8], strided_CHW: Tensor, classes_C: Tensor, steps: int
) -> Cuts:
    """Scores of `steps` even thresholds for finished maps at stride 4, by a trained BAS before the image as it is.

    Only what follows the generator's features runs for each mask.
    """
    device = next(method.parameters()).device
    image_1CHW = normalize(torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None], device, dtype_of(method))
    features_1CHW, _ = method.F1(image_1CHW, ())  # type: ignore[operator]
    whole_C = method(image_1CHW).logits_BK[0, classes_C].clamp(min=0).float().cpu()
    maps_CHW = on_grid(strided_CHW, features_1CHW.shape[2:], method.F1.last.stride // CELLS)  # type: ignore
    left, area = [], []
    for map_HW, label in zip(maps_CHW, classes_C.tolist(), strict=True):
        masks_THW = torch.stack([map_HW >= step / steps for step in range(steps)]).to(features_1CHW)
        tiled_TCHW = features_1CHW.expand(steps, -1, -1, -1)
        logits_TK = method.background_logits(image_1CHW.expand(steps, -1, -1, -1), tiled_TCHW, masks_THW)  # type: ignore
        left.append(logits_TK[:, label].clamp(min=0).float().cpu())
        area.append(masks_THW.mean((1, 2)).float().cpu())
    return scored(torch.stack(left), whole_C, torch.stack(area))


def on_grid(maps_CHW: Tensor, size_HW: tuple[int, ...] | torch.Size, factor: int) -> Tensor:
    """Means over `factor` x `factor` cells, the maps' last rows and columns repeated to fill the grid."""
    height, width = (max(1, factor) * side for side in size_HW)
    maps_CHW = maps_CHW[:, :height, :width]
    pad = (0, width - maps_CHW.shape[2], 0, height - maps_CHW.shape[1])
    return F.avg_pool2d(F.pad(maps_CHW[None], pad, mode="replicate"), max(1, factor))[0]


def require_bas(method: torch.nn.Module, what: str) -> None:
    """Raise `UsageError` for a method that cannot judge a mask."""
    if "background suppression" not in method.offers:  # type: ignore[operator]
        raise UsageError(f"{what} needs a study of bas, whose network judges masks: name one first.")
