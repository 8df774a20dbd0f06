"""Long passes are done where the GPU is: here, or on a node of the cluster, whose words are told here."""

import contextlib
import json
import os

import pytest
import ray
import torch

from rayjobs import tune_bagcams
from wsol_pipeline.errors import UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.training import cluster
from wsol_pipeline.verdict import placing
from wsol_pipeline.verdict.options import EvaluateOptions, SolveOptions
from wsol_pipeline.verdict.placing import anywhere, somewhere


class Told(list):
    """What a progress was told."""

    @contextlib.contextmanager
    def __call__(self, what, total):
        self.append((what, total))
        yield self.append
        self.append("end")


def worked(options, images, progress):
    for what in ("first", "second"):
        with progress(what, images) as add:
            add(1)
            add(images - 1)
    if images > 5:
        raise UsageError(f"too many but got {images}.")
    return {"process": os.getpid(), "threads": torch.get_num_threads()}


PASSES = [("first", 3), 1, 2, "end", ("second", 3), 1, 2, "end"]


def test_without_a_cluster_it_is_done_here():
    told = Told()
    assert somewhere(worked, EvaluateOptions(), 3, progress=told)["process"] == os.getpid()
    assert told == PASSES


@pytest.mark.parametrize("options", [EvaluateOptions, SolveOptions])
def test_a_cluster_that_may_grow_is_asked_for_a_gpu_that_it_does_not_have_yet(options, monkeypatch):
    asked = []

    class Asked(Exception):
        pass

    def pick(device, may_grow):
        asked.append((device, may_grow))
        raise Asked

    monkeypatch.setattr(placing.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster, "pick_device", pick)
    with pytest.raises(Asked):
        somewhere(worked, options(device="cuda", cluster_may_grow=True), 3)
    assert asked == [("cuda", True)]


@pytest.mark.parametrize("options", [EvaluateOptions, SolveOptions])
def test_relative_places_are_those_of_the_command_to_its_workers_too(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = anywhere(options(storage="runs", data="sets/cub", device="cpu"))
    assert (there.store.uri, there.data) == (str(tmp_path / "runs"), str(tmp_path / "sets/cub"))
    assert there.device == "cpu"
    assert anywhere(options(storage="s3://bucket/runs")).storage == "s3://bucket/runs"
    assert anywhere(options()).data is None


@pytest.mark.slow
def test_on_a_cluster_with_a_gpu_it_is_done_there_and_told_here(pretended_gpu):
    """With the GPU and its share of the cores: all but one. Errors are those that were raised there."""
    told, local = Told(), Told()

    def there(options, images, progress):
        found = worked(options, images, progress)
        return found | ray.get_runtime_context().get_assigned_resources()

    found = somewhere(there, EvaluateOptions(), 3, progress=told)
    assert found["process"] != os.getpid()
    assert (found["GPU"], found["CPU"], found["threads"]) == (1, 2, 2)
    assert told == PASSES
    with pytest.raises(UsageError, match="too many but got 6"):
        somewhere(there, EvaluateOptions(), 6)
    assert somewhere(worked, EvaluateOptions(device="cpu"), 3, progress=local)["process"] == os.getpid()
    assert local == PASSES


@pytest.mark.slow
def test_a_readout_is_solved_there_as_it_is_here(
    pretended_gpu, fit, make_config, dataset, reading, tmp_path, monkeypatch
):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    final = fit(make_config("bas", epochs=1), "bas/trials/0000").final
    record = {"method": "bas", "trial": 0, "trials": 1, "published": None, "data": dataset.uri, "study": ""}
    record |= {"schema": SCHEMA, **model_named(final, Store.at(tmp_path))}
    Store.at(tmp_path / "bas").write(WINNER, json.dumps(record).encode())
    asked, remote = [], ray.remote
    monkeypatch.setattr(placing.ray, "remote", lambda work: asked.append(work) or remote(work))
    for device in ("auto", "cpu"):
        common = ["--storage", str(tmp_path), "--study", "bas", "--cache-dir", reading.cache_dir, "--readout", "cam"]
        assert tune_bagcams.main([*common, "--name", device, "--device", device]) == 0
    assert asked.count(placing._work) == 1  # beside the queue
    winners = [json.loads((tmp_path / name / WINNER).read_text()) for name in ("auto", "cpu")]
    there, here = (Store.at(tmp_path).resolve(winner["model"]).read("val_counts.json") for winner in winners)
    assert there == here
