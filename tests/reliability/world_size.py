"""Two workers, then one, then three, each killed inside an epoch: every image once an epoch, in the same batches."""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.reliability.exits import EPOCHS, import_tiny, in_a_process, plan_of
from tests.reliability.row import Injection, Row
from tests.training.lives import joined, place, read_logs, steps, trained
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.training.config import to_dict

BATCH, INTERVAL = 6, 2  # 64 images are 10 x 6 and 4; a checkpoint every second batch
DEATHS = (((1, 3), (0, 5)), ((0, 6), (0, 3)), ((1, 9), (0, 7)), ((0, 1), (0, 13)))  # rank and batch of two deaths


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """Two changes for each training; the trainings differ in when who dies."""
    assert in_a_process(import_tiny, folder) == 0
    trainings = [lives_of(folder, number) for number in range((times + 1) // 2)]
    (folder / "lives.json").write_text(json.dumps([life for lives in trainings for life in lives]))
    command = [sys.executable, "-m", "tests.training.lives", str(folder / "lives.json")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    ids = open_dataset(str(folder / "data")).train.ids
    changes = (change for lives in trainings for change in judged(read_logs(lives), ids, lives))
    yield from itertools.islice(changes, times)


def lives_of(folder: Path, number: int) -> list[dict[str, Any]]:
    """A training of three lives."""
    plan = plan_of(folder, folder)
    recipe = dataclasses.replace(plan.config.recipe, batch_size=BATCH)
    trial, lives = folder / f"trial-{number}", []
    for attempt, (workers, dies) in enumerate(zip((2, 1, 3), (*DEATHS[number % len(DEATHS)], None), strict=True)):
        job = plan.job({}, 0, Store.at(trial), attempt, "cpu")
        job = dataclasses.replace(
            job, train=dataclasses.replace(job.train, recipe=recipe), workers=workers, checkpoint_batches=INTERVAL
        )
        files = {"log": f"{trial}.{attempt}", "rendezvous": f"{trial}.meet-{attempt}"}
        lives.append({"job": to_dict(job), "dies": dies, "ray": None, **files})
    return lives


def judged(logs: list[list[dict[str, Any]]], ids: list[str], lives: list[dict[str, Any]]) -> Iterator[Injection]:
    """The two changes of a training."""
    sizes = [len(joined(step, "ids")) for step in steps(logs)]
    wrong = "" if sizes == [*[BATCH] * 10, 4] * EPOCHS else f"global batches of {sizes}"
    for epoch in range(EPOCHS):
        read = Counter(name for step in steps(logs) if step[0]["epoch"] == epoch for name in joined(step, "ids"))
        if read != Counter(ids):
            wrong = f"epoch {epoch + 1} did not read each image once"
    for (before, after), (dead, heir) in zip(pairwise(logs), pairwise(lives), strict=True):
        first = trained(after)[0]
        lost = len({place(line) for line in trained(before) if place(line) >= place(first)})
        seconds = min(line["time"] for line in after) - max(line["time"] for line in before)
        yield Injection(f"{dead['job']['workers']} to {heir['job']['workers']} at {place(first)}", lost, seconds, wrong)


ROW = Row("world-size", "workers 2, 1, 3: changed inside an epoch", 6, "batches", INTERVAL, 60, inject)
