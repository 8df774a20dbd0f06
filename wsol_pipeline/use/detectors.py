"""torchvision's detectors with weights of the user's: boxes of any class, or what their RPN proposes."""

import pickle  # for the name of its error: weights are read as data alone
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import detection

from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.text import first_line

PROPOSALS, LEAST_SCORE = 300, 0.05  # of the RPN, after a suppression at an IoU of 0.7; of a detection
COCO_CLASSES = 91  # with the background and those that COCO has left out
# What reading a file as tensors raises that holds none; a LookupError is of bytes that look like a pickle's.
UNREADABLE = (
    safetensors.SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    OSError,
)
_PEOPLE = "keypointrcnn_resnet50_fpn"  # finds people alone


def known() -> list[str]:
    """The detectors that there are."""
    return [name for name in torchvision.models.list_models(module=detection) if name != _PEOPLE]


def build(arch: str, num_classes: int, **options: Any) -> nn.Module:
    """A detector with random weights, the background among its classes. Raises `UsageError` for one nobody knows."""
    if arch not in known():
        raise unknown("detector", arch, known())
    made: nn.Module = torchvision.models.get_model(
        arch, weights=None, weights_backbone=None, num_classes=num_classes, **options
    )
    return made


def found(file: str) -> Path:
    """The place of a file of weights. Raises `UsageError` if there is none."""
    if not Path(file).is_file():
        raise UsageError(f"There is no file of weights at {file!r}.")
    return Path(file)


def load_state(file: str) -> dict[str, Tensor]:
    """The tensors of a file of weights, `.safetensors` or PyTorch's own.

    Raises `DataError`, and `UsageError` if it is not there.
    """
    found(file)
    try:
        if file.endswith(".safetensors"):
            return safetensors.torch.load_file(file)
        state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return state
    except UNREADABLE as error:
        raise DataError(f"{file} holds no weights: {first_line(error)}") from error


class CocoDetector:
    """A detector that was trained on COCO. Its boxes are x0, y0, x1, y1 in pixels of the image, best first."""

    def __init__(self, arch: str, weights: str, rpn: bool, device: str = "cpu") -> None:
        top = {"rpn_post_nms_top_n_test": PROPOSALS, "rpn_nms_thresh": 0.7} if rpn else {}
        if rpn and "rcnn" not in arch:
            raise UsageError(f"--mode rpn needs a detector with an RPN, as fasterrcnn_resnet50_fpn_v2, but got {arch}.")
        self.network: Any = build(arch, COCO_CLASSES, **top)
        state = load_state(weights)
        try:
            self.network.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            told = str(error).splitlines()[0]
            raise DataError(f"{weights} holds no {arch} of COCO's {COCO_CLASSES} classes: {told}") from error
        self.network.eval().to(device)
        self.rpn, self.device = rpn, device

    @torch.no_grad()
    def __call__(self, image_CHW: Tensor) -> NDArray[np.float64]:
        """Boxes [N, 4] of a uint8 image."""
        image_CHW = image_CHW.to(self.device).float() / 255
        boxes_N4 = self._proposed(image_CHW) if self.rpn else self._detected(image_CHW)
        return boxes_N4.double().cpu().numpy()

    def _detected(self, image_CHW: Tensor) -> Tensor:
        (found,) = self.network([image_CHW])
        order_N = found["scores"].argsort(descending=True, stable=True)
        return found["boxes"][order_N[found["scores"][order_N] > LEAST_SCORE]]

    def _proposed(self, image_CHW: Tensor) -> Tensor:
        seen, _ = self.network.transform([image_CHW])
        features = self.network.backbone(seen.tensors)
        (boxes_N4,), _ = self.network.rpn(seen, features)
        scale = [was / now for was, now in zip(image_CHW.shape[:0:-1], seen.image_sizes[0][::-1], strict=True)]
        return boxes_N4 * boxes_N4.new_tensor([*scale, *scale])


def shared_with_coco(classes: tuple[str, ...]) -> list[str]:
    """Those of `classes` whose last words are a class of COCO: "garbage truck" is a truck. On them a detector of COCO
    is a supervised one. By name alone: that a spaniel is a dog is not seen."""
    categories = torchvision.models.get_model_weights("fasterrcnn_resnet50_fpn_v2").DEFAULT.meta["categories"][1:]
    names = {f" {name.casefold()}" for name in categories if name != "N/A"}
    return [name for name in classes if f" {name.casefold()}".endswith(tuple(names))]
