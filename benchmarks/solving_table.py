"""A table of really trained settings of BAS, each read at every k and threshold, for `benchmarks/solving.py`.

Settings of λ, α, β are a scrambled Sobol sequence over the search space, trained by the project's own loop on generated
images. Every training is a line of <folder>/table.jsonl: the same command goes on where it was stopped. Seconds are CPU
seconds of the one core a trial has, so that a busy machine does not count.
"""

import json
import multiprocessing
import shutil
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import qmc

from search_spaces import bas
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.evaluation import evaluate
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Reading, Recipe, TrainConfig
from wsol_pipeline.training.embedded import START
from wsol_pipeline.training.loop import train
from wsol_pipeline.training.model import BACKBONE, load_model

SPACE = {"lambda_": bas.LAMBDA, "alpha": bas.ALPHA, "beta": bas.BETA}
METRIC = "gt_known_loc"
SIZES = {"image_size": 40, "resize_size": 45}  # pixels: a third of the work of the jobs' 64
Setting, Line = dict[str, float], dict[str, Any]


@dataclass(frozen=True)
class Trainings:
    """What the table holds."""

    folder: Path = Path("runs/solving")
    """Where the data and the table are kept."""
    settings: int = 128
    """Settings of λ, α, β."""
    repeats: int = 8
    """The first so many settings are trained again, with two further seeds each."""
    classes: int = 12
    """Classes, so values of k."""
    images: int = 480
    """Training images."""
    validation: int = 288
    """Validation images, in two halves."""
    epochs: int = 3
    """Epochs of a training."""
    processes: int = 2
    """Trainings at once, and studies replayed at once."""


def settings_of(count: int) -> list[Setting]:
    """`count` settings of λ, α, β that fill the search space evenly."""
    low, high = zip(*SPACE.values(), strict=True)
    with warnings.catch_warnings(action="ignore"):  # that a sequence cut anywhere is less even than one of 2^n
        points = qmc.scale(qmc.Sobol(len(SPACE), seed=0).random(count), low, high)
    return [dict(zip(SPACE, map(float, point), strict=True)) for point in points]


def prepare(options: Trainings) -> tuple[str, str]:
    """The data, and the small classifier that trainings start from: (dataset, weights)."""
    store, classes = Store.at(options.folder), options.classes
    data = synthetic.Options(train=options.images, val=options.validation, test=classes, classes=classes)
    import_dataset(synthetic.read(Path(), data), store / "data", name="solving", origin={})
    dataset, start = open_dataset((store / "data").uri), CheckpointStore(store / "start", 1)
    for _ in train(replace(START, **SIZES), dataset, start, reading=reading_of(options)):
        pass
    return dataset.uri, (start.own / "final").path(BACKBONE)


def reading_of(options: Trainings) -> Reading:
    return Reading(cache_dir=str(options.folder / "pixels"))


def train_table(options: Trainings) -> list[Line]:
    """The table's lines, those that are missing trained now."""
    file = options.folder / "table.jsonl"
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = [(number, 0) for number in range(options.settings)]
    wanted += [(number, seed) for seed in (1, 2) for number in range(options.repeats)]
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    missing = sorted(set(wanted) - {(line["number"], line["seed"]) for line in lines}, key=wanted.index)
    if missing:
        torch.set_num_threads(1)
        places, settings = prepare(options), settings_of(options.settings)
        with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool, file.open("a") as to:
            jobs = [pool.submit(trained, options, *places, number, settings[number], seed) for number, seed in missing]
            for done, job in enumerate(as_completed(jobs), 1):
                lines.append(job.result())
                print(json.dumps(lines[-1]), file=to, flush=True)
                print(f"{done}/{len(jobs)} trained", flush=True)
    return [line for line in lines if (line["number"], line["seed"]) in set(wanted)]


def trained(options: Trainings, data: str, weights: str, number: int, setting: Setting, seed: int) -> Line:
    """Train one setting and read it everywhere: a line of the table."""
    torch.set_num_threads(1)
    config = TrainConfig(
        weights=weights, options=setting, objective=METRIC, seed=seed,
        recipe=Recipe(epochs=options.epochs, learning_rate=0.02, clip_norm=1.0), **SIZES,
    )  # fmt: skip
    dataset, folder = open_dataset(data), options.folder / f"trials/{number}-{seed}"
    checkpoints, reading = CheckpointStore(Store.at(folder), 1), reading_of(options)
    started = time.process_time()
    for _ in train(config, dataset, checkpoints, reading=reading):
        pass
    seconds = time.process_time() - started
    halves, searched, one = read_everywhere(checkpoints, dataset, config, reading)
    shutil.rmtree(folder)
    return {
        "number": number, "seed": seed, "setting": setting, "trial_s": round(seconds, 3),
        "searched_pass_s": round(searched, 3), "one_setting_pass_s": round(one, 3),
        "halves": [counts.to_dict() for counts in halves],
    }  # fmt: skip


def read_everywhere(
    checkpoints: CheckpointStore, dataset: Dataset, config: TrainConfig, reading: Reading
) -> tuple[list[Counts], float, float]:
    """A trained model's counts of each half of validation at all k; CPU seconds of these passes, and at one k alone."""
    final = checkpoints.final()
    assert final is not None
    model = load_model(final)
    read = ReadConfig(config.resize_size, config.image_size, cache_dir=reading.cache_dir)
    seconds, counts = [], []
    for settings in (None, model.readout.settings(model.method)[:1]):
        started = time.process_time()
        for half in range(2):
            rows = eval_rows(dataset.val, read, model.protocol.geometry, config.recipe.batch_size, rank=half, world=2)
            counts.append(evaluate.count(model.method, model.readout, rows, model.protocol, settings=settings))
        seconds.append(time.process_time() - started)
    return counts[:2], seconds[0], seconds[1]
