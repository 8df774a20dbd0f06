"""Trials that share a GPU, on a Ray that is told of one: where they are placed, what they are given of it, and what
becomes of those for which that is too little. Their GPU is pretended in the workers' processes: they train on a CPU."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from search_spaces import cam
from tests.conftest import private_ray
from wsol_pipeline.study.execute import execute, placed
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.plan import make_plan
from wsol_pipeline.study.tuner import trial_folder
from wsol_pipeline.training import loop, run
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, TrainConfig, to_dict

NEEDED = {1: 0.75, 2: 2.0}  # GPUs' memory of a trial, once its first epoch is over; of others hardly any
SEEN = "seen.jsonl"


def pretend() -> None:
    """In each worker's process: a GPU that is full at times, and a note of each life of a trial on it."""
    given: list[float] = []
    epochs, train_step = run.epochs, loop.train_step

    def noted(job: Job, world: loop.World) -> Iterator[loop.Record]:
        number, place, began = int(Path(job.trial).name), Path(job.trial).parents[2], time.time()
        (bundle,) = ray.util.get_current_placement_group().bundle_specs
        note = {
            "trial": number, "gpus": bundle["GPU"], "sees": os.environ["CUDA_VISIBLE_DEVICES"], "memory": given[-1],
            "device": str(world.device), "met": meets(place, number), "began": began,
        }  # fmt: skip
        try:
            yield from epochs(job, dataclasses.replace(world, device=torch.device("cpu")))
        finally:
            with (place / SEEN).open("a") as file:
                file.write(json.dumps(note | {"ended": time.time()}) + "\n")

    def full_at_times(run: loop.Run, epoch: int, batch: loop.Batch) -> None:
        if epoch == 1 and NEEDED.get(int(run.checkpoints.trial.uri[-4:]), 0.0) > given[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        train_step(run, epoch, batch)

    run.epochs, loop.train_step = noted, full_at_times
    torch.cuda.set_per_process_memory_fraction = given.append
    torch.cuda.reset_peak_memory_stats = lambda: None


def meets(place: Path, trial: int) -> bool:
    """Whether the first two trials are there at one time: each waits up to two minutes for the other."""
    here = [place / f"here-{number}" for number in (0, 1)]
    if trial < len(here):
        here[trial].touch()
    until = time.monotonic() + 120
    while not all(file.exists() for file in here) and time.monotonic() < until:
        time.sleep(0.05)
    return all(file.exists() for file in here)


@pytest.fixture(scope="module")
def one_gpu():
    """A private Ray of one GPU, which is none. Its workers pretend before they know where this module lies."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with private_ray(num_cpus=3, num_gpus=1, runtime_env={"worker_process_setup_hook": pretend}):
        yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow
def test_two_trials_share_a_gpu_and_one_that_needs_more_has_all_of_it_once_and_after_the_others(
    one_gpu, dataset, reading, tmp_path
):
    """The first two are on it at once. What fills the whole of it is the trial's own failure."""
    options = StudyOptions(
        name="s", data=dataset.uri, storage=str(tmp_path), cache_dir=reading.cache_dir, trials=3, epochs=2,
        batch_size=14, image_size=32, resize_size=36, pruner="none", gpus_per_trial=0.5,
    )  # fmt: skip
    told = []
    plan = make_plan(options, "cam", cam.space)
    outcome = execute(plan, [lambda event, trial, details: told.append((event, trial, dict(details)))])
    seen = [json.loads(line) for line in (tmp_path / SEEN).read_text().splitlines()]
    shared, whole = ([life for life in seen if (life["gpus"] < 1) is is_shared] for is_shared in (True, False))
    assert sorted((life["trial"], life["gpus"]) for life in shared) == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert [(life["trial"], life["gpus"]) for life in whole] == [(1, 1.0), (2, 1.0)]
    for life in seen:
        assert (life["sees"], life["memory"], life["device"], life["met"]) == ("0", life["gpus"], "cuda", True)
    for life in whole:
        assert all(life is other or disjoint(life, other) for other in seen)
    assert next(details["concurrent"] for event, _, details in told if event == "planned") == 2
    died = [(trial, details["kind"]) for event, trial, details in told if event == "died"]
    assert sorted(died) == [(1, "crowded"), (2, "crowded")]
    assert (outcome.balance["complete"], outcome.balance["fail"]) == (2, 1)
    assert outcome.failures[2]["kind"] == "out_of_memory"
    records = CheckpointStore(trial_folder(plan.folder, 1), 0).records()
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[0]["time"] < whole[0]["began"] < records[1]["time"]  # its first epoch is not trained again


def disjoint(life: dict, other: dict) -> bool:
    return life["began"] > other["ended"] or other["began"] > life["ended"]


@pytest.mark.parametrize("gpus", [0.25, 1.0])
def test_what_is_reserved_is_the_trials_own_part(gpus):
    job = Job(TrainConfig(), "data", "trial", 1, device="cuda", cpus_per_worker=3, gpus=gpus)
    assert placed(to_dict(job)).bundles == [{"CPU": 3, "GPU": gpus}]
