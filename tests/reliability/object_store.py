"""An object store that fails while a training reads from it and writes checkpoints to it."""

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tests.reliability.exits import import_data, in_a_process, plan_of, weights_of
from tests.reliability.row import Injection, Row
from tests.servers import FaultProxy, running_s3, serving
from wsol_pipeline import storage
from wsol_pipeline.errors import WsolError
from wsol_pipeline.storage import STORAGE_ERRORS, Store
from wsol_pipeline.training.config import Job, Reading
from wsol_pipeline.training.loop import World
from wsol_pipeline.training.run import epochs

PASSING = ("500", "503", "slow", "cut")
LASTING = ("403", "404")
WHERE = (("GET", "data/train"), ("PUT", "trials/"), ("HEAD", "trials/"), ("GET", "trials"), ("GET", "data/val"))
SLOW_SECONDS = 3.0


def inject(times: int, folder: Path) -> Iterator[Injection]:
    with running_s3() as settings, mock.patch.dict(os.environ, settings):
        assert in_a_process(import_data, "s3://bucket/data", 64, 16) == 0
        with serving(FaultProxy(settings["AWS_ENDPOINT_URL"])) as proxy:
            proxy.silence = SLOW_SECONDS
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
            storage._s3.cache_clear()
            yield from _inject(times, folder, proxy)


def _inject(times: int, folder: Path, proxy: FaultProxy) -> Iterator[Injection]:
    began = time.monotonic()
    undisturbed = job_of(folder, "undisturbed")
    list(epochs(undisturbed, World()))
    usual, right = time.monotonic() - began, weights_of(undisturbed.trial)
    cases = itertools.cycle(itertools.product(WHERE, (*PASSING, *LASTING)))
    for number, ((method, path), fault) in enumerate(itertools.islice(cases, times)):
        job, lasting = job_of(folder, str(number)), fault in LASTING
        began, failure = time.monotonic(), None
        proxy.harm(fault, 10**9 if lasting else 1 + number % 3 * (fault != "slow"), method, path)
        try:
            list(epochs(job, World()))
        except (WsolError, *STORAGE_ERRORS) as error:
            failure = error
        seconds = time.monotonic() - began
        proxy.heal()
        where = f"{fault} of {method} {path}"
        if not proxy.injected:
            yield Injection(where, wrong="nothing was asked for there")
            continue
        if lasting and failure is not None:  # what was denied or gone is back: the same training goes on
            list(epochs(dataclasses.replace(job, attempt=2), World()))
        wrong = "" if weights_of(job.trial) == right else f"other weights at the end, {failure}"
        if failure is not None and not lasting:
            wrong = f"a fault that passes ended the training: {failure}"
        if failure is None and fault == "403":
            wrong = "what was denied was not missed"
        yield Injection(where, bool(wrong), seconds if lasting else max(0.0, seconds - usual), wrong)


def job_of(folder: Path, name: str) -> Job:
    """A training of its own trial, whose node has read nothing yet."""
    plan = plan_of(folder, folder, "s3://bucket/data")
    job = plan.job({}, 0, Store(f"s3://bucket/trials/{name}"), 1, "cpu")
    return dataclasses.replace(job, reading=Reading("cached", str(folder / "pixels" / name)))


ROW = Row("object-store", "object store: 500, 503, slow, cut bodies, 403, 404", 60, "trainings", 0, 60, inject)
