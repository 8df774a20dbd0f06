"""The walk in MLflow: a run for each station, tagged with the seals of what it is made of; the network registered.

A search of masks is a run with one for each trial below it.
"""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

import wsol_models
import wsol_pipeline
from wsol_pipeline.segmentation import station
from wsol_pipeline.segmentation.segmenter import DESCRIPTION, WEIGHTS
from wsol_pipeline.segmentation.station import Station
from wsol_pipeline.segmentation.tune import KIND, Tried, best
from wsol_pipeline.storage import Store
from wsol_pipeline.tracking.connect import connect_mlflow
from wsol_pipeline.tracking.registry import FINGERPRINT_TAG, REQUIREMENTS, find_version
from wsol_pipeline.tracking.runs import STORAGE_TAG, StudyRuns, deliver
from wsol_pipeline.training.checkpoint import read_sealed


def publish(store: Store, network: Station, experiment: str) -> str:
    """Write the walk that ends in `network` to MLflow and register it. Returns what MLflow lacks, or ""."""
    connect = connect_mlflow(store, experiment)
    walk = walk_to(network)
    runs = {found.place.uri: _runs(connect, found) for found in walk}
    steps = {f"the run of {name_of(found)}": (lambda f=found: _write(runs[f.place.uri], f)) for found in walk}
    return deliver(steps | {"the model": lambda: register(runs[network.place.uri], network)})


def publish_search(store: Store, name: str, trials: Sequence[Tried], experiment: str) -> str:
    """Write a search of masks to MLflow: each trial's parameters and figures. Returns what MLflow lacks, or ""."""
    place = store / name
    identity = place.read(station.IDENTITY)
    tags = {
        "wsol.kind": KIND, "wsol.sources": json.dumps(json.loads(identity)["sources"]), STORAGE_TAG: place.uri,
    }  # fmt: skip
    runs = StudyRuns(connect_mlflow(store, experiment), name, tags, hashlib.sha256(identity).hexdigest())
    steps = {f"trial {tried.number}": (lambda one=tried: _write_trial(runs, one)) for tried in trials}
    return deliver(steps | {f"the run of {name}": lambda: _write_best(runs, trials)})


def _write_trial(runs: StudyRuns, tried: Tried) -> None:
    run_id = runs.trial(tried.number)
    if tried.number in runs.ended:
        return
    runs.log(run_id, _figures(runs, run_id, tried), tried.parameters, {"wsol.masks": tried.masks} | _fault(tried))
    runs.client.set_terminated(run_id, "FINISHED" if tried.miou is not None else "FAILED")


def _fault(tried: Tried) -> dict[str, str]:
    return {"wsol.fault": tried.fault} if tried.fault else {}


def _figures(runs: StudyRuns, run_id: str, tried: Tried) -> list[Metric]:
    """Percent but for the score of labels; at one time, so that written again they are the same."""
    named = {"val/miou": tried.miou, "val/seeds_miou": tried.seeds, "val/labels_miou": tried.labels,
             "val/labels_score": tried.labels_score}  # fmt: skip
    began = runs.client.get_run(run_id).info.start_time
    return [Metric(name, value, began, 0) for name, value in named.items() if value is not None]


def _write_best(runs: StudyRuns, trials: Sequence[Tried]) -> None:
    chosen = best(trials)
    figures = _figures(runs, runs.parent(), chosen)
    runs.log(runs.parent(), figures, {}, {"wsol.best_trial": str(chosen.number), "wsol.masks": chosen.masks})
    runs.close_parent()


def walk_to(network: Station) -> list[Station]:
    """The stations that a network is made of, in their order."""
    masks = station.source(network, "masks")
    return [station.source(masks, "seeds"), masks, network]


def name_of(found: Station) -> str:
    return found.place.uri.rstrip("/").rpartition("/")[2]


def _runs(connect: Any, found: Station) -> StudyRuns:
    tags = {
        "wsol.kind": found.manifest["kind"], "wsol.sources": json.dumps(found.identity["sources"]),
        "wsol.data": found.manifest["places"]["data"], "wsol.data_fingerprint": found.identity["dataset"],
        "wsol.seal": found.seal, STORAGE_TAG: found.place.uri,
    }  # fmt: skip
    return StudyRuns(connect, name_of(found), tags, found.seal)


def _write(runs: StudyRuns, found: Station) -> None:
    began = runs.client.get_run(runs.parent()).info.start_time
    numbers = {name: value for name, value in found.manifest["val"].items() if isinstance(value, float)}
    numbers |= {f"iou/{name}": value for name, value in found.manifest["val"].get("classes", {}).items()}
    metrics = [Metric(f"val/{_plain(name)}", value, began, 0) for name, value in numbers.items() if np.isfinite(value)]
    runs.log(runs.parent(), metrics, found.identity["options"], {})
    runs.close_parent()


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "/_-. " else "_" for letter in name)


def register(runs: StudyRuns, network: Station) -> str:
    """The network as a version of a registered model that gives class masks, and holds no pickle; its number."""
    client, name, seal = runs.client, name_of(network), network.manifest["model"]
    if found := find_version(client, name, seal):
        return str(found.version)
    model_id = _logged(runs.parent(), Store.at(network.uri("model")), {FINGERPRINT_TAG: seal})
    try:
        client.create_registered_model(name, description=f"Class masks of photographs, from labels alone: {name}.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {FINGERPRINT_TAG: seal, "wsol.kind": network.manifest["kind"]}
    created = client.create_model_version(name, f"models:/{model_id}", runs.parent(), tags, model_id=model_id)
    return str(created.version)


def _logged(run_id: str, final: Store, tags: dict[str, str]) -> str:
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(run_id=run_id, log_system_metrics=False),
        warnings.catch_warnings(action="ignore", category=UserWarning),
    ):
        for name, data in read_sealed(final, WEIGHTS, DESCRIPTION).items():
            (Path(folder) / name).write_bytes(data)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serve.py")),
            artifacts={"model": folder},
            code_paths=[str(Path(package.__path__[0])) for package in (wsol_models, wsol_pipeline)],
            pip_requirements=[f"{name}=={package_version(name)}" for name in (*REQUIREMENTS, "pycocotools")],
            signature=ModelSignature(inputs=images),
            tags=tags,
        )
    return info.model_id
