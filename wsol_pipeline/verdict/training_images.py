"""Models on the very images that trained them, by boxes that were kept apart (`wsol import --audit`): CorLoc.

The labels of these images are known, their boxes were not. Readout and thresholds are those that validation chose, and
nothing is chosen here. This is no test: a network has seen these images, though not where their objects are. Kept as
`evaluations/MODEL-training.json` below a study's folder.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from wsol_pipeline.data.audit import Audit, open_audit
from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.reader import Batch, RowsShown, eval_rows
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.evaluate import count
from wsol_pipeline.evaluation.measures import choosing, is_judged, judged_by
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.model import VAL_COUNTS, Model
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import EVALUATIONS, Contender, Row, evaluation_name, opened, rows_of
from wsol_pipeline.verdict.score import Progress, centred_box, choices, local_device, read_config, row_of, silent

Truth = Mapping[str, tuple[np.ndarray, np.ndarray]]  # id -> boxes float32 [N, 4], their classes int64 [N]


@dataclass(frozen=True)
class BoxedRows(RowsShown):
    """The training images that have boxes, with these. Of several classes only those count that have a box."""

    truth: Truth

    @property
    def box_convention(self) -> str:
        return self.rows.box_convention

    def batches(self) -> Iterator[Batch]:
        """All rows once, in order."""
        for batch in self.rows.batches():
            boxes, labels = (list(of) for of in zip(*(self.truth[id] for id in batch.ids), strict=True))
            yield dataclasses.replace(batch, labels_B=_boxed(batch.labels_B, labels), boxes=boxes, box_labels=labels)


def _boxed(labels_B: torch.Tensor, of_boxes: list[np.ndarray]) -> torch.Tensor:
    """The labels, of a multi-label batch those alone that have a box."""
    if labels_B.ndim == 1:
        return labels_B
    boxed_BK = torch.zeros_like(labels_B)
    for row_K, classes in zip(boxed_BK, of_boxes, strict=True):
        row_K[classes] = 1
    return labels_B * boxed_BK


@dataclass(frozen=True)
class TrainingVerdict:
    """Rows of the centred box and of each model on `images` training images."""

    rows: list[Row]
    objective: str
    protocol: str
    images: int

    @property
    def measure(self) -> str:
        """The metric that the models are judged by here."""
        return judged_by(self.objective, self.rows[-1].transferred)


def judge_training_images(options: EvaluateOptions, progress: Progress = silent) -> TrainingVerdict:
    """The studies' winners on the images that trained them. Raises `DataError` where no boxes of these were kept."""
    dataset, judged, models = opened(options.store, options.study, options.data, local_device(options.device))
    rules = dataclasses.replace(models[0].protocol, masks="")
    audit = open_audit(dataset)
    rows = boxed_rows(options, dataset, audit, rules)
    by_val = is_judged(choosing(rules, dataset.val), dataset.val)  # which chooses the size of the centred box
    found = [centred_box(options, dataset, rules, rows)] if by_val else []
    for contender, model in zip(judged, models, strict=True):
        found += _judged(options, contender, model, audit, rows, rules, progress)
    return TrainingVerdict(found, models[-1].config.objective, rules.name, rows.num_rows)


def boxed_rows(options: EvaluateOptions, dataset: Dataset, audit: Audit, rules: Protocol) -> BoxedRows:
    """The training images whose boxes were kept."""
    truth = {id: (np.array(boxes, np.float32), np.array(labels, np.int64)) for id, boxes, labels in audit.boxes()}
    if not rules.ious:
        raise UsageError(f"--training-images counts boxes, which protocol {rules.name} does not.")
    if not truth:
        raise DataError(f"{dataset.uri} has masks of its training images and no boxes: nothing can be counted by them.")
    split = dataset.train_labels
    at = tuple(number for number, id in enumerate(split.ids) if id in truth)
    config = read_config(options, rules)
    return BoxedRows(eval_rows(split, config, rules.geometry, options.batch_size, at=at), truth)


def _judged(
    options: EvaluateOptions, contender: Contender, model: Model, audit: Audit, rows: BoxedRows, rules: Protocol,
    progress: Progress,
) -> list[Row]:  # fmt: skip
    """The rows of a model: kept ones, if they are by these very boxes."""
    folder, name = options.store / contender.study / EVALUATIONS, f"{evaluation_name(contender)}-training.json"
    kept = json.loads(folder.read(name)) if folder.exists(name) else {}
    if kept.get("audit") != audit.digest:
        scored = [dataclasses.asdict(row) for row in _scored(contender, model, rows, rules, progress)]
        kept = {"audit": audit.digest, "images": rows.num_rows, "rows": scored}
        folder.write(name, json.dumps(kept, indent=1).encode())
    return rows_of(contender, kept["rows"], rules, split="train")


def _scored(contender: Contender, model: Model, rows: BoxedRows, rules: Protocol, progress: Progress) -> Iterator[Row]:
    val = Counts.from_dict(json.loads(read_sealed(contender.final, VAL_COUNTS)[VAL_COUNTS]))
    device = next(model.method.parameters()).device
    for label, choice in choices(contender, model).items():
        with progress(f"{contender.label}{label} on training images", rows.num_rows) as add:
            look = partial(count, model.method, model.readout, rows, rules, settings=[choice.readout], device=device,
                           keep_images=True)  # fmt: skip
            counts = look(on_batch=add)
            ruled: Any = look(rule=choice.rule) if choice.rule else counts
        yield row_of(label, choice, val, counts, ruled, rules)
