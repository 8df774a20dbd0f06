"""Training a segmentation network as a station, and its one look at test."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsol_models.segmentation.networks import NETWORKS, check_weights
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.segmentation import refine, scores, station
from wsol_pipeline.segmentation.fit import Record, run_fit
from wsol_pipeline.segmentation.make_seeds import NOT_ASKED
from wsol_pipeline.segmentation.network import VAL, SegmentTask, check_batch, judged
from wsol_pipeline.segmentation.options import SegmentOptions
from wsol_pipeline.segmentation.segmenter import load_segmenter
from wsol_pipeline.segmentation.station import Part, Station
from wsol_pipeline.storage import Store
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.training.checkpoint import SEAL, seal_of
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.placing import somewhere
from wsol_pipeline.verdict.score import Progress, local_device, silent

KIND, EVALUATION = "segmentation network", "evaluation.json"


def task_of(options: SegmentOptions, masks: Station) -> SegmentTask:
    """The training that is asked for. Raises `UsageError` for weights that saw masks, or a batch that cannot be."""
    entry = NETWORKS[options.network]
    try:
        check_weights(options.weights, options.supervision)
    except ValueError as error:
        raise UsageError(str(error)) from error
    scale = options.batch_size / 32 if not options.network.startswith("deeplabv2") else 1.0
    task = SegmentTask(
        masks.uri("data"), masks.place.uri, masks.seal, options.network, options.weights, options.supervision,
        options.epochs, options.batch_size, options.learning_rate or entry.lr * scale, options.crop or entry.crop,
        options.freeze_batch_norm, options.seed,
    )  # fmt: skip
    check_batch(task, open_dataset(task.data), options.workers)
    return task


def train_network(
    options: SegmentOptions, device: str, on_record: Callable[[Record], None] = lambda record: None
) -> Station:
    """The network on finished pseudo masks, trained or continued; sealed."""
    masks = station.finished(options.store, options.masks, refine.KIND)
    dataset = open_dataset(masks.uri("data"))
    refine.require_same(masks, dataset.fingerprint)
    task, place = task_of(options, masks), options.store / options.result
    with acquire(place / "lease") as lease:
        told = {
            k: v for k, v in asdict(options).items() if k not in (*NOT_ASKED, "masks", "study", "checkpoint_batches")
        }
        station.begin(place, {"kind": KIND, "sources": [masks.seal], "dataset": dataset.fingerprint,
                              "options": json.loads(json.dumps(told))})  # fmt: skip
        if place.exists(SEAL):
            return station.finished(options.store, options.result, KIND)
        final = run_fit(task, place / "training", lease.attempt, options.workers, device, on_record,
                        options.checkpoint_batches)  # fmt: skip
        val = json.loads(final.read(VAL))
        found = {"model": seal_of(final), "val": val, "classes": list(dataset.classes)}
        places = {"data": task.data, "masks": task.masks, "model": final.uri}
        return station.finish(place, KIND, {}, places, found)


@dataclass(frozen=True)
class Judgement:
    """What was found on images that no choice was made on, percent: figures, each class, 95 % interval over images."""

    name: str
    figures: dict[str, Any]
    interval: tuple[float, float]
    images: int
    supervision: str
    rows: str = "test"


def judge_network(options: EvaluateOptions, name: str, progress: Progress = silent) -> Judgement:
    """The one look at test; what it found is kept beside the model, and shown again afterwards."""
    found = station.finished(options.store, name, KIND)
    place, seal = options.store / name, found.manifest["model"]
    if not place.exists(EVALUATION):
        judged = somewhere(_on_test, options, found, progress=progress)
        place.write(EVALUATION, json.dumps(judged, indent=1).encode())
    kept = json.loads(place.read(EVALUATION))
    if kept["model"] != seal:
        raise DataError(
            f"{place.path(EVALUATION)} is of another model ({kept['model'][:12]}) than {name!r} ({seal[:12]})."
        )
    return Judgement(name, kept["figures"], tuple(kept["interval"]), kept["images"], kept["supervision"])


def _on_test(options: EvaluateOptions, found: Station, progress: Progress) -> dict[str, Any]:
    final = Store.at(found.uri("model"))
    if seal_of(final) != found.manifest["model"]:
        raise DataError(f"{final.uri} holds another model than {found.place.uri} has named.")
    segmenter, dataset = load_segmenter(final, local_device(options.device)), open_dataset(found.uri("data"))
    test = dataset.test()
    if not test.has_masks:
        raise DataError(f"{dataset.uri} has no masks in its test split: nothing can be judged.")
    matrices = []
    with progress(f"{found.place.uri.rpartition('/')[2]} on test", test.num_rows) as add:
        for _, matrix in judged(segmenter.network, test, Part("test", 0, 0, test.num_rows), len(dataset.classes)):
            if matrix.any():  # an image without a mask says nothing
                matrices.append(matrix)
            add(1)
    if not matrices:
        raise DataError(f"No mask in {dataset.uri}'s test split has a pixel that counts: nothing can be judged.")
    matrices_NLL = np.stack(matrices)
    return {
        "model": found.manifest["model"], "test": test.fingerprint, "images": len(matrices),
        "supervision": segmenter.description["supervision"], "confusion": matrices_NLL.sum(0).tolist(),
        "figures": scores.figures(matrices_NLL.sum(0), dataset.classes), "interval": scores.bootstrap(matrices_NLL),
    }  # fmt: skip
