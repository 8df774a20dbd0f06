"""The registered model as MLflow loads it: this file is the model's code, its files are safetensors and JSON.

import mlflow, numpy, PIL.Image
model = mlflow.pyfunc.load_model("models:/bas-cub@champion")
print(model.predict(numpy.asarray(PIL.Image.open("photo.jpg").convert("RGB"))[None]))
"""

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np

from wsol_pipeline.training.model import load_model_files


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]  # MLflow re-exports it lazily
    """`predict(images)`: uint8 RGB [B, H, W, 3] -> one dict per image, of a multi-label model one per class of an
    image: what `Localization.to_dict` has, and `map` in 0..1, of what lies in `window`."""

    def load_context(self, context: Any) -> None:
        """Read the model's two files."""
        self.model = load_model_files(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> list[dict]:
        """Localize the most probable object of each image, or one of each of its classes."""
        found = self.model.predict(np.array(model_input, np.uint8))
        return [one.to_dict() | {"map": one.map_HW.tolist()} for one in found]


mlflow.models.set_model(ServedModel())
