"""A whole trial with its searches: maps scored beside the network by every core, against one core after each batch.

    python benchmarks/trial.py            (--quick only shows that it runs)

The same training of BAS whose k and threshold are searched at a rung and at the end, in one process that has two cores,
in turns. In the older way a batch's maps were made, then scored by one thread while all else waited. Both end with the
same records.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil
import torch
import tyro

from search_spaces import bas
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.evaluation import evaluate, metrics
from wsol_pipeline.storage import Store
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.plan import Plan, make_plan
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Reading
from wsol_pipeline.training.loop import train

WAYS = ("in turn, one thread", "in turn", "beside")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    classes: int = 24
    """so many values of k are searched"""
    images: int = 400
    """to train on; a quarter of it to validate"""
    epochs: int = 6
    rounds: int = 5
    threads: int = 2
    quick: bool = False


def plan_of(root: Path, options: Options) -> Plan:
    run = StudyOptions(
        name="trial", data=str(root / "data"), storage=str(root), epochs=options.epochs, cache_dir=str(root / "pixels")
    )
    return make_plan(run, "bas", bas.space)


def one_by_one(function, *columns):  # type: ignore[no-untyped-def]
    return [function(*row) for row in zip(*columns, strict=True)]


def trained(plan: Plan, way: str, folder: str) -> tuple[float, float, list[object]]:
    """Seconds of a whole trial, the share of them that validation was, and what it found."""
    beside = evaluate.OPEN_PARTS if way == "beside" else 0
    scoring = one_by_one if way == "in turn, one thread" else metrics.in_threads
    start = time.perf_counter()
    with (
        mock.patch.object(evaluate, "open_parts", return_value=beside),
        mock.patch.object(metrics, "in_threads", scoring),
    ):
        reading = Reading(cache_dir=plan.options.cache_dir)
        records = list(train(plan.config, plan.dataset, CheckpointStore(plan.folder / folder, 1), reading=reading))
    took = time.perf_counter() - start
    validation = sum(record["used"]["validation"] for record in records)
    return took, validation / took, [(record["value"], record["choice"]) for record in records]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = Options(classes=4, images=40, epochs=2, rounds=1)
    torch.set_num_threads(options.threads)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        root, quarter = Path(folder), max(options.images // 4, options.classes)
        data = synthetic.Options(train=options.images, val=quarter, test=quarter, classes=options.classes)
        import_dataset(synthetic.read(root, data), Store.at(root / "data"), name="bench", origin={})
        plan = plan_of(root, options)
        trained(plan, "beside", "first")  # decodes and compiles
        for number in range(options.rounds):
            ends = []
            for way in WAYS:
                seconds, share, ended = trained(plan, way, f"{way}-{number}".replace(" ", "-"))
                found[way].append((seconds, share))
                ends.append(ended)
            if not all(ended == ends[0] for ended in ends):
                raise SystemExit("the ways end with other records")
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in found.items()}
    ratios = [beside[0] / turn[0] for beside, turn in zip(found["beside"], found[WAYS[0]], strict=True)]
    for way, (seconds, share) in medians.items():
        print(f"{way:<20} {seconds:6.2f} s a trial, {share:.0%} of it validation")
    print(f"beside / in turn by one thread: {statistics.median(ratios):.2f}")
    print(json.dumps({"benchmark": "trial", "medians": medians, "ratios": ratios, "cores": os.cpu_count(),
                      "load": psutil.getloadavg()[0]}))  # fmt: skip


if __name__ == "__main__":
    main()
