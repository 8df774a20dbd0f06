"""The model registry: the winner of a study as a version that loads without pickle, registered once.

A version's tags say which model it is (the SHA-256 of its seal), what it was selected on, and for which data and
evaluation; the final evaluation, which alone makes a champion, compares them all.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

import wsol_models
import wsol_pipeline
from wsol_pipeline.errors import DataError, MismatchError, UsageError
from wsol_pipeline.selectors import said
from wsol_pipeline.storage import Store
from wsol_pipeline.text import metric_name
from wsol_pipeline.tracking.runs import ID_TAG, StudyRuns
from wsol_pipeline.training.checkpoint import read_sealed, seal_of
from wsol_pipeline.training.model import DESCRIPTION, WEIGHTS, ModelFiles

FINGERPRINT_TAG, SELECTED_TAG = "wsol.model", "wsol.selected_on"
TEST_TAG = "wsol.test."  # before the name of a metric
# Tags of models that are comparable: what chose them is among them.
JUDGED_ALIKE = ("wsol.protocol", "wsol.image_size", "wsol.data_fingerprint", SELECTED_TAG)
_ABOUT = """Winners of study `{name}`: where an object is in an image, by a network that learned from labels alone.

    import wsol

    model = wsol.load_model("models:/{name}@champion")
    for found in model.predict(["a.jpg", "b.png"]):
        print(found.label, found.score, found.box)  # x0, y0, x1, y1

Where this project is not installed:

    import mlflow

    model = mlflow.pyfunc.load_model("models:/{name}@champion")
    model.predict(images)  # uint8 RGB, [images, height, width, 3]
"""
_ON_TEST = """

**On test**, by the readout and the thresholds that validation chose:

| | % |
|---|---:|
{rows}

    import wsol

    model = wsol.load_model("models:/{name}/{version}")
    for found in model.predict(["a.jpg", "b.png"]):
        print(found.label, found.score, found.box)  # x0, y0, x1, y1
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
    "pycocotools",
    "s3fs",
)


def model_tags(description: Mapping[str, Any]) -> dict[str, str]:
    """What a version's tags say of the evaluation and the data that a finished model was tuned for."""
    train = description["train"]
    sizes = f"{train['image_size']} of {train['resize_size']}"
    return dict(zip(JUDGED_ALIKE, (train["protocol"], sizes, description["dataset"], selected_on(train)), strict=True))


def selected_on(train: Mapping[str, Any]) -> str:
    """The split and the selectors by which a model with the configuration `train` was chosen: "val/boxes"."""
    return "val/" + "+".join(filter(None, (train["select_by"], train["threshold_by"])))


def register(runs: StudyRuns, name: str, trial: int, final: Store) -> str:
    """Register the finished model of `trial` under `name`; return its version. Does nothing if it is there already."""
    client, fingerprint = runs.client, seal_of(final)
    description = json.loads(read_sealed(final, DESCRIPTION)[DESCRIPTION])
    if runs.id and description.get("study") != runs.id:
        raise MismatchError(f"The model in {final.uri} is of study {description.get('study')}, not of {runs.id}.")
    if found := find_version(client, name, fingerprint):
        return str(found.version)
    tags = model_tags(description)
    check_name_is_free(client, name, tags)
    tags |= {FINGERPRINT_TAG: fingerprint, ID_TAG: runs.id}
    run = runs.trial(trial)
    model_id = _logged_model(runs, fingerprint) or _log_model(run, final, tags)
    try:
        client.create_registered_model(name, description=_ABOUT.format(name=name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    told = _told(description, trial)
    created = client.create_model_version(name, f"models:/{model_id}", run, tags, description=told, model_id=model_id)
    return str(created.version)


def _told(description: dict[str, Any], trial: int) -> str:
    """What a version is, how it was chosen and what comes next, for its page."""
    train, choice = description["train"], description["choice"]
    return (
        f"{train['method']} on {train['backbone']}, {len(description['classes'])} classes: trial {trial} of its study, "
        f"the best by {metric_name(choice['metric'])} on validation ({choice['value']:.1f} %, protocol "
        f"{train['protocol']}; selected on {said(selected_on(train))}).\n\n"
        f"Maps are read by {train['readout']} (setting {choice['readout']}); readout and thresholds were chosen "
        "on validation and are part of the model. Test is opened by `rayjobs/evaluate.py` alone, which writes its "
        "figures here and makes the model the *champion*."
    )


def _told_of_test(before: str, name: str, version: str, figures: Mapping[str, float]) -> str:
    """What a version is, as its page said `before`, with its figures on test and the lines that use it."""
    rows = "\n".join(f"| {metric_name(metric)} | {value:.1f} |" for metric, value in figures.items())
    head = before.partition(_ON_TEST.partition("{")[0])[0]
    return head + _ON_TEST.format(rows=rows, name=name, version=version)


def find_version(client: mlflow.MlflowClient, name: str, fingerprint: str) -> ModelVersion | None:
    """The registered version of the model with this fingerprint, or None."""
    return next((found for found in _versions(client, name) if found.tags.get(FINGERPRINT_TAG) == fingerprint), None)


def check_name_is_free(client: mlflow.MlflowClient, name: str, tags: Mapping[str, str]) -> None:
    """Raise `UsageError` if `name` holds models that are not of this project, or a champion of another evaluation."""
    if foreign := [str(found.version) for found in _versions(client, name) if FINGERPRINT_TAG not in found.tags]:
        raise UsageError(
            f"MLflow's registered model {name!r} holds versions that no study made ({', '.join(foreign[:5])}): "
            "give the study another --name."
        )
    holder = champion(client, name)
    if holder and (changes := _differing(holder.tags, tags)):
        raise UsageError(
            f"MLflow's registered model {name!r} has a champion of another evaluation ({changes}): give the study "
            "another --name."
        )


def champion(client: mlflow.MlflowClient, name: str) -> ModelVersion | None:
    """The version that bears the alias `champion`, or None."""
    versions = {str(found.version): found for found in _versions(client, name)}
    return versions.get(str(client.get_registered_model(name).aliases.get(CHAMPION))) if versions else None


def crown(
    client: mlflow.MlflowClient, name: str, fingerprint: str, judged: Mapping[str, str], figures: Mapping[str, float]
) -> str:
    """Give the alias `champion` to the version with this fingerprint; what changed, in a sentence.

    Only the final evaluation does this. The winner takes the alias from an earlier one even if that was better on test:
    validation chose it, and to keep the better of the two would be to choose on test.

    Args:
        judged: tags of the evaluation (`model_tags`), with the data that was really evaluated.
        figures: metrics on test, in percent, that tell it from the champion it replaces; the objective first.

    Raises:
        DataError: the version is missing, is another model, was not selected on `val` alone, or a champion of another
            evaluation stands in its place. Nothing has moved then.
    """
    version = find_version(client, name, fingerprint)
    if version is None:
        known = [str(found.version) for found in _versions(client, name)]
        raise DataError(
            f"No version of the registered model {name!r} (there are: {', '.join(known) or 'none'}) bears the seal "
            f"{fingerprint[:16]} of the model that was judged: the study's command registers it."
        )
    refusal = f"Version {version.version} of {name!r} cannot become {CHAMPION}: "
    if not version.tags.get(SELECTED_TAG, "").startswith("val/"):
        raise DataError(f"{refusal}it was selected on {version.tags.get(SELECTED_TAG)!r}, not on 'val' alone.")
    if changes := _differing(version.tags, judged):
        raise DataError(f"{refusal}it was judged otherwise than it was tuned ({changes}).")
    before = champion(client, name)
    if before and (changes := _differing(before.tags, version.tags)):
        raise DataError(
            f"{refusal}version {before.version} is, of another evaluation ({changes}). To replace it all the same: "
            f"mlflow.MlflowClient().set_registered_model_alias({name!r}, {CHAMPION!r}, {str(version.version)!r})"
        )
    for metric, value in figures.items():
        client.set_model_version_tag(name, version.version, f"{TEST_TAG}{metric}", f"{value:.2f}")
    told = _told_of_test(version.description or "", name, str(version.version), figures)
    client.update_model_version(name, version.version, told)
    client.set_registered_model_alias(name, CHAMPION, version.version)
    if before is None or before.version == version.version:
        return f"models:/{name}@{CHAMPION} is version {version.version}"
    return f"models:/{name}@{CHAMPION}: version {before.version} → {version.version}{_compared(before, figures)}"


def figures_on_test(version: ModelVersion) -> dict[str, float]:
    """What the final evaluation that crowned a version has measured on test, percent by metric; empty without one."""
    return {tag.removeprefix(TEST_TAG): float(value) for tag, value in version.tags.items() if tag.startswith(TEST_TAG)}


def _versions(client: mlflow.MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a registered model, newest first; none if there is no such model."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            return sorted(found, key=lambda version: -int(version.version))


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    pairs = ((tag, before.get(tag, "none"), now.get(tag, "none")) for tag in JUDGED_ALIKE)
    return "; ".join(f"{tag} {was[:16]}, not {is_[:16]}" for tag, was, is_ in pairs if was != is_)


def _compared(before: ModelVersion, figures: Mapping[str, float]) -> str:
    """How the first figure that the replaced version has too has changed."""
    for metric, value in figures.items():
        if (was := before.tags.get(f"{TEST_TAG}{metric}")) is not None:
            word = "better" if value > float(was) else "worse" if value < float(was) else "the same"
            return f", {word} on test: {metric} {float(was):.2f} → {value:.2f}"
    return ", whose figures on test are not known"


def _logged_model(runs: StudyRuns, fingerprint: str) -> str | None:
    """The id of a whole model of this fingerprint that was logged, but not registered, before; or None."""
    found = runs.client.search_logged_models([runs.experiment_id], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    return next((model.model_id for model in found if model.status == LoggedModelStatus.READY), None)


def save_pyfunc(files: ModelFiles, place: str) -> str:
    """Write a model as MLflow's folder at a local `place`. Raises `UsageError` if something is there."""
    if Path(place).exists():
        raise UsageError(f"{place} exists: MLflow's form goes to a new folder.")
    with tempfile.TemporaryDirectory() as folder:
        _write_files(folder, {WEIGHTS: files.weights, DESCRIPTION: files.description})
        mlflow.pyfunc.save_model(place, **_pyfunc(folder))
    return place


def _write_files(folder: str, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (Path(folder) / name).write_bytes(data)


def _pyfunc(folder: str) -> dict[str, Any]:
    """What MLflow is told of a model whose two files lie in `folder`."""
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])  # a name would make MLflow hand over a dict
    return {
        "python_model": str(Path(__file__).with_name("serve.py")),
        "artifacts": {"model": folder},
        "code_paths": [str(Path(package.__path__[0])) for package in (wsol_models, wsol_pipeline)],
        "pip_requirements": [f"{name}=={package_version(name)}" for name in REQUIREMENTS],
        "signature": ModelSignature(inputs=images),
    }


def _log_model(run_id: str, final: Store, tags: dict[str, str]) -> str:
    logging.getLogger("mlflow.models.model").setLevel(logging.ERROR)
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(run_id=run_id, log_system_metrics=False),
        warnings.catch_warnings(action="ignore", category=UserWarning),  # it asks for an example beside a signature
    ):
        _write_files(folder, read_sealed(final, WEIGHTS, DESCRIPTION))
        info = mlflow.pyfunc.log_model(name="model", tags=tags, **_pyfunc(folder))
    mlflow.MlflowClient().set_terminated(run_id, "FINISHED")
    return info.model_id
