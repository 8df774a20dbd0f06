"""The maps of a photograph's classes from a trained method: at several scales, and of its mirror image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsol_models import LocalizationMethod
from wsol_models.readouts import readout
from wsol_pipeline.errors import UsageError
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.segmentation.seeds import full_size, scaled, strided_sum

SCALES = (1.0, 0.5, 1.5, 2.0)
OBJECTS = "objects"  # instead of a readout: the map of all objects, of a BAS with foreground_head


class Maps(NamedTuple):
    """Maps of an image's C classes, sums over its views, on the CPU: at the image's size and at stride 4."""

    full_CHW: Tensor
    strided_CHW: Tensor


@torch.no_grad()
def class_maps(
    method: LocalizationMethod,
    image_HW3: np.ndarray,
    classes_C: Tensor,
    scales: Sequence[float] = SCALES,
    mirror: bool = True,
    read_by: str = "",
    base: int = 0,
) -> Maps:
    """Sums over scales, each the image resized once from its stored bytes (bicubic, as PIL does), and over mirrors.

    read_by: a readout by name; by default a method's own maps of all classes, if it makes such, else its CAM.
    base: short side in pixels that scale 1 has; 0: the image's own.
    """
    size_HW, (height, width) = image_HW3.shape[:2], image_HW3.shape[:2]
    whole = base / min(size_HW) if base else 1.0
    views = []
    for scale in scales:
        seen_BCHW = _seen(image_HW3, scaled(size_HW, whole * scale), mirror, method)
        found_BCHW = _read(method, seen_BCHW, classes_C, read_by).clamp(min=0).float().cpu()
        views.append(found_BCHW[0] + found_BCHW[1].flip(-1) if mirror else found_BCHW[0])
    return Maps(full_size(views, (height, width)), strided_sum(views, (height, width)))


def _seen(image_HW3: np.ndarray, size_HW: tuple[int, int], mirror: bool, method: LocalizationMethod) -> Tensor:
    resized = Image.fromarray(image_HW3).resize(size_HW[::-1], Image.Resampling.BICUBIC)
    image_CHW = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)
    views_BCHW = torch.stack([image_CHW, image_CHW.flip(-1)] if mirror else [image_CHW])
    return normalize(views_BCHW, next(method.parameters()).device, dtype_of(method))


def _read(method: LocalizationMethod, images_BCHW: Tensor, classes_C: Tensor, read_by: str) -> Tensor:
    """Maps [B, C, h, w]."""
    if read_by == OBJECTS:
        return method.objects(images_BCHW)  # type: ignore[operator]
    if read_by:
        return torch.stack([_by_readout(method, images_BCHW, int(label), read_by) for label in classes_C], 1)
    output = method(images_BCHW)
    if "background suppression" in method.offers:
        return output.maps_BKHW[:, classes_C]
    if "a linear head" not in method.offers:
        return torch.stack([_by_readout(method, images_BCHW, int(label), "own") for label in classes_C], 1)
    weights_CD = method.head_weight_KC[classes_C].to(output.features_BCHW.dtype)
    return torch.einsum("bdhw,cd->bchw", output.features_BCHW, weights_CD)


def _by_readout(method: LocalizationMethod, images_BCHW: Tensor, label: int, name: str) -> Tensor:
    chosen = readout(name)
    if chosen.needs_stored:
        raise UsageError(f"--readout {name} has scales of its own: seeds add up the views of a readout of one image.")
    classes_B = torch.full((len(images_BCHW),), label, device=images_BCHW.device)
    with torch.enable_grad():
        return chosen.coarse_maps(method, images_BCHW, classes_B, chosen.settings(method)[0])
