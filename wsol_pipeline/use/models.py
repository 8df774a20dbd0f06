"""Finished models by whatever names them: MLflow's registry, a study, a folder, a zip."""

import io
import os
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import mlflow
import torch
from mlflow.exceptions import MlflowException

from wsol_pipeline.errors import DataError, ResourceError
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import STORAGE_ERRORS, Store, describe_storage_error
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.tracking import moved
from wsol_pipeline.tracking.connect import AWAY, point_mlflow_at, sqlite_file
from wsol_pipeline.training.checkpoint import SEAL
from wsol_pipeline.training.inputs import file_bytes
from wsol_pipeline.training.model import DESCRIPTION, WEIGHTS, Model, ModelFiles, assemble, local_files, sealed_files
from wsol_pipeline.use.options import ModelOptions
from wsol_pipeline.verdict.rows import finished_study

REGISTRY = "models:/"
MAX_ZIP_BYTES = 16 * 2**30  # of weights, unpacked


def load_model(where: str | os.PathLike[str], device: str = "auto") -> Model:
    """The model at `where`: `models:/NAME@ALIAS`, a folder, `s3://` prefix or zip of a model, or a study's folder.

    device: auto (a GPU if there is one), cpu or cuda.

    Raises:
        DataError: there is none, or a file of it is missing, altered or of another version.
        ResourceError: MLflow or the storage is away, or there is no GPU.
    """
    return assemble(find(str(where)), pick(device))


def pick(device: str) -> str:
    """The device of this process that `device` asks for. Raises `ResourceError` if it has no GPU."""
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ResourceError("--device cuda needs a GPU but this machine has none.")
    return "cuda" if has_gpu and device != "cpu" else "cpu"


def named(options: ModelOptions) -> ModelFiles:
    """The files of the model that a job is told."""
    options.require_model()
    if options.study:
        return sealed_files(Store(finished_study(Store.at(options.storage), options.study)["model"]))
    return find(options.model, options.storage)


def find(where: str, storage: str = "runs") -> ModelFiles:
    """The files of the model at `where`; `storage` has MLflow's file where MLFLOW_TRACKING_URI is not set."""
    if where.startswith(REGISTRY):
        return _of_registry(where, storage)
    if where.endswith(".zip"):
        return _of_zip(where)
    folder = Store.at(where)
    try:
        if folder.exists(SEAL):
            return sealed_files(folder)
        if folder.exists(WINNER):
            return sealed_files(Store(finished_study(Store(folder.uri.rpartition("/")[0]), folder.name)["model"]))
    except STORAGE_ERRORS as error:
        raise ResourceError(describe_storage_error(folder.uri, error)) from error
    raise DataError(
        f"There is no model at {where}: a model is a folder with {WEIGHTS}, {DESCRIPTION} and {SEAL} (export.py writes "
        "one), a finished study's folder, or models:/NAME@champion."
    )


def _of_registry(uri: str, storage: str) -> ModelFiles:
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        point_mlflow_at(f"sqlite:///{Store.at(storage).path(moved.DATABASE)}")
    if file := sqlite_file(mlflow.get_tracking_uri()):
        moved.follow(file)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            place = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=temporary)
        except MlflowException as error:
            told = str(error).splitlines()[0]
            raise DataError(f"MLflow at {redact(mlflow.get_tracking_uri())} has no {uri}: {told}") from error
        except AWAY as error:
            raise ResourceError(f"MLflow did not give {uri}: {type(error).__name__}: {error}") from error
        found = sorted(Path(place).rglob(DESCRIPTION))
        if not found:
            raise DataError(f"{uri} is no model of this project: it has no {DESCRIPTION}.")
        return local_files(found[0].parent)


def _of_zip(where: str) -> ModelFiles:
    """A model's folder, zipped: with or without the folder itself."""
    try:
        with zipfile.ZipFile(io.BytesIO(file_bytes(where))) as archive:
            members = {PurePosixPath(info.filename).name: info for info in archive.infolist()}
            if sum(info.file_size for info in members.values()) > MAX_ZIP_BYTES:
                raise DataError(f"{where} unpacks to over {MAX_ZIP_BYTES} bytes: unpack it yourself.")
            with tempfile.TemporaryDirectory() as temporary:
                folder = Store(temporary)
                for name in (WEIGHTS, DESCRIPTION, SEAL):
                    folder.write(name, archive.read(members[name]))
                return sealed_files(folder)
    except (zipfile.BadZipFile, KeyError, RuntimeError) as error:
        raise DataError(f"{where} is no zip of a model's folder: {error}.") from error
