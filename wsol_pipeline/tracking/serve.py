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
    image; `image` is its number, `box` and `window` in its pixels [x0, y0, x1, y1], `map` in 0..1 what lies in
    `window`: the whole image, or its centre under a protocol that crops."""

    def load_context(self, context: Any) -> None:
        """Read the model's two files."""
        self.model = load_model_files(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> list[dict]:
        """Localize the most probable object of each image, or one of each of its classes."""
        return [
            {
                "image": found.image,
                "label": found.label,
                "score": found.score,
                "box": list(found.box),
                "map": found.map_HW.tolist(),
                "window": list(found.window),
            }
            for found in self.model.localize(np.array(model_input, np.uint8))
        ]


mlflow.models.set_model(ServedModel())
