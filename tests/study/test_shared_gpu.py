"""Small trials that share a GPU on a local Ray that is told of one: together, and alone where a share is too small.

The GPU is pretended: trials train on the CPU, and what a GPU would refuse is raised by the test.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from wsol_pipeline.study import execute
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.plan import make_plan
from wsol_pipeline.training import run

TOGETHER, MOST = 2, 120.0  # trials that begin before any goes on, and seconds that they wait for each other at most


def trainable(folder: str):
    """A trial that notes when it trains on how much of a GPU, and for which the largest rate needs more than a part."""

    def trial(payload):
        gpus = ray.get_runtime_context().get_assigned_resources()["GPU"]
        name = f"{os.getpid()}-{time.monotonic_ns()}"
        life = {"gpus": gpus, "trial": Path(payload["trial"]).name, "began": time.monotonic()}
        Path(folder, f"{name}.began").touch()
        until = time.monotonic() + MOST
        while gpus < 1 and len(list(Path(folder).glob("*.began"))) < TOGETHER and time.monotonic() < until:
            time.sleep(0.05)
        beats = run.epochs

        def epochs(job, world):
            if gpus < 1 and job.train.recipe.learning_rate > 0.02:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            yield from beats(job, world)

        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(run, "epochs", epochs)
                run.run_on_one_device(payload | {"device": "cpu"})
        finally:
            Path(folder, f"{name}.json").write_text(json.dumps(life | {"ended": time.monotonic()}))

    return trial


@pytest.mark.slow
def test_trials_share_a_gpu_and_one_that_does_not_fit_has_it_alone(dataset, reading, tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (lives := tmp_path / "lives").mkdir()
    monkeypatch.setattr(execute, "trainable", lambda job: trainable(str(lives)))
    options = StudyOptions(
        name="s", data=dataset.uri, storage=str(tmp_path), trials=3, epochs=1, batch_size=16, image_size=32,
        resize_size=36, cache_dir=reading.cache_dir, gpus_per_trial=0.25, published=0, pruner="none",
    )  # fmt: skip
    plan = make_plan(options, "cam", lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 0.05)})
    rates = {"small": 0.001, "large": 0.03, "small too": 0.002}
    plan = replace(plan, published={name: {"learning_rate": rate} for name, rate in rates.items()})
    ray.init(
        address="local", num_cpus=4, num_gpus=1, include_dashboard=False, object_store_memory=200_000_000,
        logging_level="warning",
    )  # fmt: skip
    try:
        outcome = execute.execute(plan)
    finally:
        ray.shutdown()
    lived = sorted((json.loads(file.read_text()) for file in lives.glob("*.json")), key=lambda life: life["began"])
    assert outcome.balance["complete"] == 3
    assert not outcome.failures
    assert [life["gpus"] for life in lived] == [0.25, 0.25, 0.25, 1.0]
    assert lived[0]["ended"] > lived[1]["began"]  # two at once
    *shared, alone = lived
    assert alone["trial"] == "0001"
    assert sorted(life["trial"] for life in shared) == ["0000", "0001", "0002"]
    assert max(life["ended"] for life in shared) <= alone["began"]
