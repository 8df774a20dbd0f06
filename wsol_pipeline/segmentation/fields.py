"""The dense random field on an image: the exact one of `wsol_models`, or the library of the extra `crf`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from wsol_models.segmentation import crf
from wsol_pipeline.errors import UsageError


def field_of(kind: str, image_HW3: np.ndarray, kernels: crf.Kernels) -> Callable[[Tensor, int], Tensor] | None:
    """What becomes of labels 0..count - 1 on this image; None for no field."""
    if kind == "none":
        return None
    return lambda labels_HW, count: inferred(kind, crf.unary_of_labels(labels_HW, count), image_HW3, kernels).argmax(0)


def inferred(kind: str, unary_LHW: Tensor, image_HW3: np.ndarray, kernels: crf.Kernels) -> Tensor:
    """Q [L, H, W]. Of one label, for which the library divides by zero, it is 1."""
    if len(unary_LHW) == 1:
        return torch.ones_like(unary_LHW)
    if kind == "library":
        return _library(unary_LHW, image_HW3, kernels)
    return crf.refined(unary_LHW, torch.from_numpy(image_HW3.copy()).permute(2, 0, 1), kernels)


def require_library() -> None:
    """Raise `UsageError` if it is not installed."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        raise UsageError("--field library needs pydensecrf2: pip install 'wsol[crf]', or take --field exact.") from None


def _library(unary_LHW: Tensor, image_HW3: np.ndarray, kernels: crf.Kernels) -> Tensor:
    from pydensecrf.densecrf import DenseCRF2D

    labels, height, width = unary_LHW.shape
    field = DenseCRF2D(width, height, labels)
    field.setUnaryEnergy(np.ascontiguousarray(unary_LHW.flatten(1).numpy(), np.float32))
    field.addPairwiseGaussian(sxy=kernels.smooth_sxy, compat=kernels.smooth_weight)
    field.addPairwiseBilateral(
        sxy=kernels.sxy, srgb=kernels.srgb, rgbim=np.ascontiguousarray(image_HW3), compat=kernels.weight
    )
    return torch.from_numpy(np.asarray(field.inference(kernels.iterations)).reshape(labels, height, width))
