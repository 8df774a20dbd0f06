"""Weakly supervised object localization, from Python.

import wsol
model = wsol.load_model("models:/bas-cub@champion")
for found in model.predict(["a.jpg", "b.png"]):
    print(found.label, found.score, found.box)

The jobs are functions too: `wsol.tune("bas", data="runs/data/photos", trials=8)` (`wsol.jobs`).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsol.jobs import evaluate as evaluate
    from wsol.jobs import export as export
    from wsol.jobs import localize as localize
    from wsol.jobs import train as train
    from wsol.jobs import tune as tune
    from wsol_pipeline.training.localization import Localization as Localization
    from wsol_pipeline.training.model import Model as Model
    from wsol_pipeline.use.folder import save_model as save_model
    from wsol_pipeline.use.models import load_model as load_model

_PLACES = {
    "load_model": "wsol_pipeline.use.models",
    "save_model": "wsol_pipeline.use.folder",
    "Model": "wsol_pipeline.training.model",
    "Localization": "wsol_pipeline.training.localization",
    "WsolError": "wsol_pipeline.errors",
    **dict.fromkeys(("train", "tune", "evaluate", "localize", "export"), "wsol.jobs"),
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Names load what they need when they are asked for: importing this package loads nothing heavy."""
    if name not in _PLACES:
        raise AttributeError(f"module 'wsol' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PLACES[name]), name)
