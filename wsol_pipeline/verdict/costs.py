"""What it costs to choose without true boxes: other selectors applied anew to a finished model, judged on test.

A selector sees the images and labels of validation and no box of them. The difference to what the boxes of validation
choose is taken in the same redraws of the test images, so that its interval is not that of two accuracies.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.reader import ReadConfig
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.evaluate import count
from wsol_pipeline.evaluation.measures import is_judged
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.study.choosers import choosers
from wsol_pipeline.study.plan import chosen_by
from wsol_pipeline.training.model import Model, load_model
from wsol_pipeline.training.options import SelectionOptions
from wsol_pipeline.training.selecting import make_choosing, solve
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import finished_study, same_dataset
from wsol_pipeline.verdict.score import Progress, local_device, silent, test_rows

BOXES, METRICS = "boxes", ("max_box_acc_v2", "gt_known_loc")
SAMPLES = 1000


@dataclass(frozen=True)
class Cost:
    """What a selector's choice reaches on test, percent by metric, and what it costs: the difference to what the boxes
    of validation choose, with its 95 % interval. `oracle`: at this readout with the thresholds that are best on test.
    `reason`: why it abstains, if it does."""

    name: str
    readout: Any
    threshold: float | str
    transferred: dict[str, float]
    cost: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    oracle: dict[str, float]
    reason: str = ""


COSTS = "selectors.json"  # below a study's folder


def costs_of_winner(options: EvaluateOptions, progress: Progress = silent) -> list[Cost]:
    """The costs for the first study's winner, kept in its folder."""
    study = options.study[0]
    winner = finished_study(options.store, study)
    dataset, device = same_dataset({study: winner}, options.data), local_device(options.device)
    found = costs(options, load_model(Store(winner["model"]), device), dataset, options.selectors, device, progress)
    kept = json.dumps(redact([dataclasses.asdict(cost) for cost in found]), indent=1)
    (options.store / study).write(COSTS, kept.encode())
    return found


def costs(
    options: EvaluateOptions,
    model: Model,
    dataset: Dataset,
    names: Sequence[str],
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Cost]:
    """The cost of each of `names` for a model; the first is that of boxes, 0.

    Raises `UsageError` where validation or test has no boxes to compare with.
    """
    rules = model.protocol
    if not (rules.ious and is_judged(rules, dataset.val) and is_judged(rules, dataset.test())):
        raise UsageError("--selectors compares with what boxes choose: val and test need boxes, and the protocol too.")
    found: list[tuple[Choice, NDArray[np.float64], dict[str, float], dict[str, float]]] = []
    published, seen = None, dict[Any, Counts]()
    for name in (BOXES, *names):
        choice = choose_by(name, options, model, dataset, published, device, progress, seen)
        published = choice.readout if name == BOXES else published
        test = counted(options, model, dataset, choice, device, progress)
        redrawn_MR = np.stack([selection.redrawn(test, choice, metric, SAMPLES) for metric in METRICS])
        values, bounds = _judged(selection.transferred(test, choice)), _judged(selection.oracle(test, choice))
        found.append((choice, redrawn_MR, values, bounds))
    _, by_boxes_MR, at_boxes, _ = found[0]
    return [
        Cost(
            name, choice.readout, choice.threshold, values,
            {metric: values[metric] - at_boxes[metric] for metric in METRICS},
            {metric: _interval(redrawn_MR[m] - by_boxes_MR[m]) for m, metric in enumerate(METRICS)}, bounds,
            choice.reason,
        )
        for name, (choice, redrawn_MR, values, bounds) in zip((BOXES, *names), found, strict=True)
    ]  # fmt: skip


def _judged(figures: dict[str, float]) -> dict[str, float]:
    return {metric: figures[metric] for metric in METRICS}


def choose_by(
    name: str,
    options: EvaluateOptions,
    model: Model,
    dataset: Dataset,
    published: Any,
    device: str,
    progress: Progress = silent,
    seen: dict[Any, Counts] | None = None,
) -> Choice:
    """What a selector, "RANK" or "RANK+THRESHOLD", chooses for a model on validation. One that ranks no settings takes
    the `published` one: that of boxes. `seen`: see `solve`."""
    rank, _, threshold = name.partition("+")
    asked = SelectionOptions(rank, threshold or None, allow_partial=True)
    sources = choosers(asked, dataset, options.store)
    config = chosen_by(model.config, None, dataset, sources)
    rules = model.protocol
    read = ReadConfig(rules.resize_size, rules.image_size, cache_dir=options.cache_dir)
    by = make_choosing(config, rules, dataset, read, options.batch_size, sources.sources, device=device)
    passing = functools.partial(progress, f"chosen by {name}")
    return solve(by, model.method, model.readout, published, device=device, passing=passing, seen=seen)[0]


def counted(
    options: EvaluateOptions, model: Model, dataset: Dataset, choice: Choice, device: str, progress: Progress
) -> Counts:
    """Test at a choice, every image by its rule if it has one."""
    rows, rules = test_rows(options, dataset, model.protocol), dataclasses.replace(model.protocol, masks="")
    with progress(f"by {choice.selector} on test", rows.num_rows) as add:
        return count(
            model.method, model.readout, rows, rules, settings=[choice.readout], device=device, keep_images=True,
            on_batch=add, rule=choice.rule,
        )  # fmt: skip


def _interval(differences_R: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(differences_R, [0.025, 0.975]).tolist()
    return low, high
