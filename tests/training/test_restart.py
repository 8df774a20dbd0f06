"""Killed inside epochs and gone on with another number of workers: every image counts once in each epoch.

Ranks die between two checkpoints: by SIGKILL, or as threads in the faster test of streaming. What they had read since
the checkpoint that the next life goes on from does not count; what does must be the undisturbed run, batch for batch
and pixel for pixel.
"""

import json
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from tests.training.lives import counted, joined, place, read_logs, steps, trained
from wsol_pipeline.data.reader import ReadConfig, train_batches
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, Reading, to_dict

# workers, and the rank that dies at which of its batches: one step after a checkpoint of every second batch
LIVES = ((1, (0, 3)), (2, (1, 3)), (3, (0, 5)), (1, (0, 8)), (2, (0, 3)), (3, None))
STARTS = [(0, 0), (0, 12), (0, 24), (0, 48), (1, 24), (1, 36)]  # worked out by hand: 64 images are 10 x 6 and 4


@pytest.fixture(scope="module")
def config(make_config):
    return make_config("cam", batch_size=6, precision="float64")  # a training amplifies the last bits of a sum


SLOW = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("shrunk", "streaming", "streaming ranks")]


@pytest.fixture(scope="module", params=["cached", *SLOW])
def story(request, dataset, reading, config, tmp_path_factory) -> SimpleNamespace:
    """All lives of a training: the lines that each has logged, and the trial's checkpoints."""
    root = tmp_path_factory.mktemp("lives")
    mode, *ranks = request.param.split()
    config = replace(config, shrunk_jpegs=90 * (mode == "shrunk"))
    cluster = request.getfixturevalue("cluster") if mode == "streaming" else None
    lives: list[dict[str, Any]] = []
    for attempt, (workers, dies) in enumerate(LIVES, start=1):
        how = Reading("cached" if mode == "shrunk" else mode, reading.cache_dir)
        job = Job(config, dataset.uri, str(root / "trial"), attempt, workers=workers, reading=how, checkpoint_batches=2)
        meet = str(root / f"meet-{attempt}") if ranks or mode != "streaming" else None
        files = {"log": f"{root}/{attempt}", "rendezvous": meet}
        lives.append({"job": to_dict(job), "dies": dies, "ray": cluster, **files})
    (root / "lives.json").write_text(json.dumps(lives))
    command = [sys.executable, "-m", "tests.training.lives", str(root / "lives.json")]
    subprocess.run(command, check=True, timeout=800, cwd=Path(__file__).parents[2])
    logs = read_logs(lives)
    checkpoints = CheckpointStore(Store.at(root / "trial"), len(LIVES))
    return SimpleNamespace(config=config, logs=logs, checkpoints=checkpoints, share_gradients=meet is not None)


@pytest.fixture(scope="module")
def cluster() -> Any:
    """The address of a private Ray that ranks join."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "60000")
        joined = ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000,
            logging_level="warning",
        )  # fmt: skip
        yield joined.address_info["gcs_address"]
        ray.shutdown()


def test_each_life_goes_on_from_the_last_checkpoint_and_loses_what_came_after(story):
    lives = [trained(log) for log in story.logs]
    assert [place(life[0]) for life in lives] == STARTS
    assert [len({line["rank"] for line in life}) for life in lives] == [workers for workers, _ in LIVES]
    for life, begin in zip(lives, STARTS[1:], strict=False):
        assert place(life[-1]) >= begin


def test_every_image_counts_once_in_each_epoch(story, dataset):
    for epoch in range(2):
        read = Counter(name for line in counted(story.logs) if line["epoch"] == epoch for name in line["ids"])
        assert read == Counter(dataset.train.ids)


def test_batches_and_pixels_are_those_of_an_undisturbed_epoch(story, dataset, reading):
    """Ranks put together in their order; no rank has two images more than another."""
    plan = dataset.train.plan(6, story.config.seed)
    read = ReadConfig(36, 32, cache_dir=reading.cache_dir, shrunk_jpegs=story.config.shrunk_jpegs)
    whole = [
        (batch.ids, [zlib.crc32(image.numpy().tobytes()) for image in batch.images_BCHW])
        for epoch in range(2)
        for batch in train_batches(dataset.train, plan, epoch, read)
    ]
    assert [tuple(joined(step, name) for name in ("ids", "pixels")) for step in steps(story.logs)] == whole
    for step in steps(story.logs):
        sizes = [len(line["ids"]) for line in step]
        assert max(sizes) - min(sizes) <= 1


def test_the_model_is_that_of_one_worker_who_was_never_disturbed(story, fit, outcome):
    """To rounding. The mean loss of an epoch, summed over lives, would tell an image lost or counted twice."""
    if not story.share_gradients:
        pytest.skip("its ranks are threads")
    alone, together = fit(story.config), outcome(story.checkpoints)
    for name, weight in alone.weights.items():
        torch.testing.assert_close(together.weights[name], weight, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(alone.records, together.records, strict=True):
        assert theirs["train"] == pytest.approx(ours["train"], rel=1e-9)


def test_validation_reads_every_row_once_in_order(story, dataset):
    """The first epoch ended with one worker, the second with three, of 25 rows between them.

    The last validation is followed by one of the chosen setting alone, which keeps what it saw of each image.
    """
    validations = [[line for line in log if "validated" in line] for log in story.logs]
    assert [len({line["begin"] for line in lines}) for lines in validations] == [0, 0, 0, 1, 0, 3]
    for lines, times in zip(filter(None, validations), (1, 2), strict=True):
        of_ranks = [list(rank) for _, rank in groupby(sorted(lines, key=begin), key=begin)]  # stable: batches in order
        for time in range(times):
            parts = [rank[len(rank) * time // times : len(rank) * (time + 1) // times] for rank in of_ranks]
            assert [name for part in parts for line in part for name in line["validated"]] == dataset.val.ids


def begin(line: dict[str, Any]) -> int:
    return line["begin"]
