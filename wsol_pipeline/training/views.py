"""A study as MLflow shows it: where it is tracked, its tags, its trials."""

import json
import os
from collections.abc import Iterator
from typing import Any

import mlflow

from wsol_pipeline.errors import UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.training import tracking
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import TrainConfig, to_dict
from wsol_pipeline.training.lease import Lease
from wsol_pipeline.training.ledger import CONFIRMS, FAILURE, PUBLISHED, SEED, Ledger
from wsol_pipeline.training.plan import Plan, with_parameters
from wsol_pipeline.training.provenance import provenance
from wsol_pipeline.training.tuner import trial_folder


def connect_mlflow(store: Store, experiment: str) -> tuple[mlflow.MlflowClient, str]:
    """(client, experiment id) of MLFLOW_TRACKING_URI, or of a SQLite file in a local `store`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not store.is_local:
        raise UsageError(f"MLFLOW_TRACKING_URI is not set, and {store.uri} cannot hold MLflow's SQLite file: set it.")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment)
    return tracking.connect(uri or f"sqlite:///{store.path('mlflow.db')}", experiment, store.path("mlflow-artifacts"))


def study_tags(plan: Plan) -> dict[str, str]:
    """Where the study's numbers come from."""
    return {
        "wsol.data": plan.dataset.uri,
        "wsol.data_fingerprint": plan.dataset.fingerprint,
        "wsol.val_fingerprint": plan.dataset.val.fingerprint,
        "wsol.protocol": plan.config.protocol,
        "wsol.objective": ", ".join(plan.rule.objectives) if plan.rule else plan.config.objective,
        **provenance(),
    }


def trial_views(plan: Plan, ledger: Ledger, lease: Lease) -> Iterator[tracking.TrialView]:
    """Every started trial as MLflow shows it; none any more once another driver writes them."""
    for trial in ledger.trials():
        if lease.lost.is_set():
            return
        seed = trial.user_attrs.get(SEED, 0)
        config = with_parameters(plan.config, ledger.parameters(trial.number), seed)
        tags = {"wsol.published": str(trial.user_attrs.get(PUBLISHED, ""))}
        if CONFIRMS in trial.user_attrs:
            tags["wsol.confirms"] = str(trial.user_attrs[CONFIRMS])
        if FAILURE in trial.user_attrs:
            tags["wsol.failure"] = "{kind}: {message}".format(**trial.user_attrs[FAILURE])
        records = CheckpointStore(trial_folder(plan.folder, trial.number), 0).records()
        if records and records[-1]["final"]:
            tags["wsol.readout"] = json.dumps(records[-1]["choice"])
        yield tracking.TrialView(trial.number, trial.state.name, flat_parameters(config), tags, records)


def flat_parameters(config: TrainConfig) -> dict[str, Any]:
    """A training configuration as MLflow parameters: the method's options and the recipe by their own names."""
    data = to_dict(config)
    return data.pop("options") | data.pop("recipe") | data
