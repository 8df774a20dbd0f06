"""A finished segmentation network: class masks of photographs. Loaded without pickle and without Ray."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from wsol_models.segmentation import Network, build
from wsol_pipeline.errors import DataError
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.segmentation import masks
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import read_sealed

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def predict(network: Network, image_HW3: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: 0 the background, k + 1 class k, of an image uint8 RGB [H, W, 3]."""
    parameter = next(network.parameters())
    images_1CHW = normalize(
        torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None], parameter.device, dtype_of(network)
    )
    return network.scores(images_1CHW)[0].argmax(0).to(torch.uint8).cpu().numpy()


@dataclass(frozen=True)
class Segmenter:
    """A finished network. `classes`: of labels 1 on."""

    network: Network
    classes: tuple[str, ...]
    description: dict[str, Any]

    def segment(self, image_HW3: np.ndarray) -> np.ndarray:
        """uint8 [H, W] of labels: 0 the background, k + 1 class k."""
        return predict(self.network, image_HW3)

    def png(self, image_HW3: np.ndarray) -> bytes:
        """The labels as a palette PNG."""
        return masks.encode(self.segment(image_HW3))


def load_segmenter(folder: Store, device: str = "cpu") -> Segmenter:
    """The network in a sealed folder."""
    files = read_sealed(folder)
    return _assemble(files[WEIGHTS], json.loads(files[DESCRIPTION]), device)


def load_segmenter_files(folder: Path) -> Segmenter:
    """The network whose two files lie in a local folder, as MLflow hands them out."""
    return _assemble((folder / WEIGHTS).read_bytes(), json.loads((folder / DESCRIPTION).read_text()), "cpu")


def _assemble(weights: bytes, description: dict[str, Any], device: str) -> Segmenter:
    if description.get("kind") != "segmentation network":
        raise DataError(f"A segmentation network is needed but the description is of {description.get('kind')!r}.")
    classes, told = tuple(description["classes"]), description["training"]
    network = build(description["network"], len(classes), frozen_batch_norm=told["frozen_batch_norm"])
    network.load_state_dict(safetensors.torch.load(weights))
    return Segmenter(network.eval().to(device), classes, description)
