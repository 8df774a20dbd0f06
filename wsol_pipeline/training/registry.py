"""The model registry: the winner of a study as a version that loads without pickle, registered once."""

import hashlib
import json
import logging
import tempfile
import warnings
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

import wsol_models
import wsol_pipeline
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import SEAL
from wsol_pipeline.training.model import DESCRIPTION, WEIGHTS
from wsol_pipeline.training.names import metric_name
from wsol_pipeline.training.tracking import Projection

FINGERPRINT_TAG = "wsol.model"
_ABOUT = """Winners of study `{name}`: where an object is in an image, by a network that learned from labels alone.

    model = mlflow.pyfunc.load_model("models:/{name}@champion")
    model.predict(images)  # uint8 [images, height, width, 3] -> for each: label, score, box (x0, y0, x1, y1), map
"""
CHAMPION = "champion"
REQUIREMENTS = (
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "opencv-python-headless",
    "safetensors",
    "torchmetrics",
    "s3fs",
)


def model_fingerprint(final: Store) -> str:
    """SHA-256 of the seal over a finished model: its weights, configuration and readout."""
    return hashlib.sha256(final.read(SEAL)).hexdigest()


def register(projection: Projection, name: str, trial: int, final: Store) -> str:
    """Register the finished model of `trial` under `name`; return its version. Does nothing if it is there already."""
    fingerprint = model_fingerprint(final)
    if found := find_version(projection.client, name, fingerprint):
        return str(found.version)
    description = json.loads(final.read(DESCRIPTION))
    tags = {
        FINGERPRINT_TAG: fingerprint,
        "wsol.protocol": description["train"]["protocol"],
        "wsol.data_fingerprint": description["dataset"],
        "wsol.selected_on": "val",
    }
    info = _log_model(projection.trial_run(trial), final, tags)
    try:
        projection.client.create_registered_model(name, description=_ABOUT.format(name=name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = projection.client.create_model_version(
        name, info.model_uri, info.run_id, tags, description=_told(description, trial), model_id=info.model_id
    )
    return str(created.version)


def _told(description: dict[str, Any], trial: int) -> str:
    """What a version is, how it was chosen and what comes next, for its page."""
    train, choice = description["train"], description["choice"]
    return (
        f"{train['method']} on {train['backbone']}, {len(description['classes'])} classes: trial {trial} of its study, "
        f"the best by {metric_name(choice['metric'])} on validation ({choice['value']:.1f} %, protocol "
        f"{train['protocol']}).\n\nMaps are read by {train['readout']} (setting {choice['readout']}); readout and "
        "thresholds were chosen on validation and are part of the model. The alias *champion* says that "
        "`rayjobs/evaluate.py` has judged it on test; figures are on the study's run."
    )


def find_version(client: mlflow.MlflowClient, name: str, fingerprint: str) -> ModelVersion | None:
    """The registered version of the model with this fingerprint, or None."""
    found = client.search_model_versions(f"name = '{name}'")
    return next((version for version in found if version.tags.get(FINGERPRINT_TAG) == fingerprint), None)


def crown(client: mlflow.MlflowClient, name: str, version: str) -> None:
    """Give `version` the alias `champion`. Only the final evaluation does this."""
    client.set_registered_model_alias(name, CHAMPION, version)


def _log_model(run_id: str, final: Store, tags: dict[str, str]) -> mlflow.models.model.ModelInfo:
    logging.getLogger("mlflow.models.model").setLevel(logging.ERROR)
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])  # a name would make MLflow hand over a dict
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(run_id=run_id, log_system_metrics=False),
        warnings.catch_warnings(action="ignore", category=UserWarning),  # it asks for an example beside a signature
    ):
        for name in (WEIGHTS, DESCRIPTION):
            (Path(folder) / name).write_bytes(final.read(name))
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serve.py")),
            artifacts={"model": folder},
            code_paths=[str(Path(package.__path__[0])) for package in (wsol_models, wsol_pipeline)],
            pip_requirements=[f"{name}=={package_version(name)}" for name in REQUIREMENTS],
            signature=ModelSignature(inputs=images),
            tags=tags,
        )
    mlflow.MlflowClient().set_terminated(run_id, "FINISHED")
    return info
