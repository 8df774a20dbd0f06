"""A registered segmentation network as MLflow loads it: this file is its code, its files are safetensors and JSON.

import mlflow, numpy, PIL.Image
model = mlflow.pyfunc.load_model("models:/bas-voc-irn-deeplabv3/1")
masks = model.predict(numpy.asarray(PIL.Image.open("photo.jpg").convert("RGB"))[None])
"""

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np

from wsol_pipeline.segmentation.segmenter import load_segmenter_files


class ServedSegmenter(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]  # MLflow re-exports it lazily
    """`predict(images)`: uint8 RGB [B, H, W, 3] -> labels uint8 [B, H, W]: 0 background, k + 1 class k."""

    def load_context(self, context: Any) -> None:
        """Read the network's two files."""
        self.model = load_segmenter_files(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """The labels of each image."""
        return np.stack([self.model.segment(image) for image in np.array(model_input, np.uint8)])


mlflow.models.set_model(ServedSegmenter())
