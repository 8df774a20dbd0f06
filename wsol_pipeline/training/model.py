"""A finished model: weights, configuration and the readout chosen on validation, loaded without pickle."""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torchvision.transforms.v2 import functional as F

from wsol_models import LATER, LocalizationMethod
from wsol_pipeline.data.images import resize, shrunk
from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation.evaluate import picked, read_maps
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import predicted_box
from wsol_pipeline.evaluation.otsu import Threshold
from wsol_pipeline.evaluation.protocols import Protocol, protocol
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.training.build import build_method, build_readout
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.config import TrainConfig, from_dict

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
BACKBONE = "backbone.safetensors"  # --weights of another run
VAL_COUNTS = "val_counts.json"  # what readout and thresholds were chosen from
VAL_IMAGES = "val_images.json"  # hits of single images at the chosen readout; none where class masks are scored


@dataclass(frozen=True)
class Localization:
    """The object of a class in an image, by its number in the batch: the class, its probability, its box in pixels of
    the image, the map [H, W] in 0..1, of what the network saw; `window`, in pixels of the image too, is that part."""

    image: int
    label: str
    score: float
    box: tuple[float, float, float, float]  # x0, y0, x1, y1
    map_HW: np.ndarray
    window: tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Model:
    """A trained method in eval mode with everything that was chosen for it on validation."""

    method: LocalizationMethod
    config: TrainConfig
    classes: tuple[str, ...]
    multilabel: bool  # whether images it was trained on can be of several classes
    choice: Choice
    description: dict[str, Any]

    @property
    def protocol(self) -> Protocol:
        return protocol(self.config.protocol, self.config.image_size, self.config.resize_size)

    @property
    def readout(self) -> Any:
        return build_readout(self.config)

    @property
    def threshold(self) -> Threshold:
        """The threshold at which boxes are read: the best on validation for an IoU of 0.5, else for the masks; or the
        rule `OTSU`, which gives each map its own."""
        return self.choice.threshold

    def localize(self, images_BHW3: np.ndarray) -> list[Localization]:
        """The most probable object of each image; of a multi-label model one of every `seen_classes`.

        `images_BHW3`: uint8 RGB, [B, H, W, 3], any size. Images come in order, the classes of one in theirs.
        """
        photographs_BCHW = torch.tensor(images_BHW3).permute(0, 3, 1, 2)
        batch = SimpleNamespace(images_BCHW=self._fit(photographs_BCHW), stored_BCHW=shrunk(photographs_BCHW))
        device = next(self.method.parameters()).device
        with torch.no_grad():
            output = self.method(normalize(batch.images_BCHW, device, dtype_of(self.method)))
        scores_BK = output.logits_BK.sigmoid() if self.multilabel else output.logits_BK.softmax(1)
        image_N, class_N = seen_classes(scores_BK, self.multilabel).nonzero(as_tuple=True)
        maps_NHW = read_maps(
            self.method, self.readout, picked(batch, image_N.cpu()), class_N, self.choice.readout, self.protocol,
            output=None if self.multilabel else output, device=device,
        )  # fmt: skip
        shape = images_BHW3.shape[1:3]
        return [
            self._localization(map_HW, i, label, float(scores_BK[i, label]), shape)
            for map_HW, i, label in zip(maps_NHW.cpu().numpy(), image_N.tolist(), class_N.tolist(), strict=True)
        ]

    def _fit(self, photographs_BCHW: torch.Tensor) -> torch.Tensor:
        """Photographs as the network is shown them."""
        rules = self.protocol
        if rules.geometry == "short_side":
            return resize(photographs_BCHW, rules.read_size, keep_aspect=True)
        return F.center_crop(resize(photographs_BCHW, rules.read_size), [rules.image_size, rules.image_size])

    def _localization(
        self, raw_HW: np.ndarray, image: int, label: int, score: float, shape: tuple[int, int]
    ) -> Localization:
        size_wh = shape[1], shape[0]
        box = predicted_box(raw_HW, self.threshold, self.protocol, size_wh)
        map_HW = normalised_map(raw_HW, self.protocol, size_wh)
        whole = np.array([0, 0, *self.protocol.map_size(size_wh)])
        in_image = functools.partial(box_in_image, shape=shape, rules=self.protocol)
        return Localization(image, self.classes[label], score, in_image(box), map_HW, in_image(whole))


def load_model(folder: Store, device: torch.device | str = "cpu") -> Model:
    """The model in a sealed `final` folder. Raises `DataError` if a file is missing or altered."""
    files = read_sealed(folder)
    return _assemble(files[WEIGHTS], json.loads(files[DESCRIPTION]), device)


def load_model_files(folder: Path) -> Model:
    """The model whose two files lie in a local `folder`, as MLflow hands them out."""
    return _assemble((folder / WEIGHTS).read_bytes(), json.loads((folder / DESCRIPTION).read_text()), "cpu")


def _assemble(weights: bytes, description: dict[str, Any], device: torch.device | str) -> Model:
    if missing := {"train", "classes", "choice", "multilabel"} - description.keys():
        raise DataError(
            f"The model's description lacks {', '.join(sorted(missing))}: another version of this code wrote it. "
            "Train it again, or use that version."
        )
    config = from_dict(TrainConfig, {**description["train"], "weights": None})
    classes = tuple(description["classes"])
    method = build_method(dataclasses.replace(config, weights=LATER), len(classes))
    try:
        method.load_state_dict(safetensors.torch.load(weights))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise DataError(f"The model's {WEIGHTS} does not hold its tensors: {str(error).splitlines()[0]}") from error
    choice = Choice.from_dict(description["choice"])
    return Model(method.eval().to(device), config, classes, description["multilabel"], choice, description)


def seen_classes(scores_BK: torch.Tensor, multilabel: bool) -> torch.Tensor:
    """The most probable class of each image; of multi-label images all classes over a half too, bool [B, K]."""
    seen_BK = scores_BK > 0.5 if multilabel else torch.zeros_like(scores_BK, dtype=torch.bool)
    return seen_BK.scatter(1, scores_BK.argmax(1, keepdim=True), True)


def box_in_image(box: np.ndarray, shape: tuple[int, int], rules: Protocol) -> tuple[float, float, float, float]:
    """A box in evaluation pixels as one in pixels of an image of `shape` (height, width)."""
    if rules.geometry == "short_side":
        x0, y0, x1, y1 = box.tolist()
        return x0, y0, x1, y1
    scale = np.array([shape[1], shape[0]] * 2) / rules.read_size
    x0, y0, x1, y1 = ((box + rules.margin) * scale).tolist()
    return x0, y0, x1, y1
