"""Seeds and pseudo masks against the true masks of training images, once their station is sealed."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from wsol_pipeline.data.audit import is_kept, open_audit
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.errors import DataError, ProtocolError
from wsol_pipeline.evaluation.segmentation import count_classes
from wsol_pipeline.segmentation import make_seeds, masks, refine, scores, segment, station
from wsol_pipeline.segmentation.exports import COLUMN
from wsol_pipeline.segmentation.make_seeds import THRESHOLDS, Image, SeedMaker, read_images, true_labels
from wsol_pipeline.segmentation.options import RefineOptions, SeedOptions
from wsol_pipeline.segmentation.segment import EVALUATION, Judgement
from wsol_pipeline.segmentation.station import Station
from wsol_pipeline.storage import Store
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.placing import somewhere
from wsol_pipeline.verdict.score import Progress, local_device, silent

MapsOf = Callable[[Image, dict[str, Any]], torch.Tensor]


def judge_masks(options: EvaluateOptions, name: str, progress: Progress = silent) -> Judgement:
    """The quality of a sealed station's label images on training images, kept beside it and then only shown.

    Transferred: at the threshold that validation chose. Oracle: the best one on these images, as papers print it.
    """
    if not station.is_finished(options.store / name):
        raise ProtocolError(f"{name!r} is not finished: masks of training images are opened after every choice.")
    found = station.finished(options.store, name)
    if not found.place.exists(EVALUATION):
        judged = somewhere(_judged, options, found, progress=progress)
        found.place.write(EVALUATION, json.dumps(judged, indent=1).encode())
    kept = json.loads(found.place.read(EVALUATION))
    if kept["seal"] != found.seal:
        raise DataError(f"{found.place.path(EVALUATION)} is of other label images than {name!r} holds.")
    return Judgement(name, kept["figures"], tuple(kept["interval"]), kept["images"], "labels", "training images")


def _judged(options: EvaluateOptions, found: Station, progress: Progress) -> dict[str, Any]:
    device, dataset = local_device(options.device), open_dataset(found.uri("data"))
    refine.require_same(found, dataset.fingerprint)
    num_classes, matrices = len(dataset.classes), []
    pixels, centred = np.zeros((2, 3, num_classes + 1, len(THRESHOLDS) + 1), np.int64)
    maps_of = _seed_maps(found, device) if found.manifest["kind"] == make_seeds.KIND else _refined_maps(found, device)
    with progress(f"{found.place.uri.rpartition('/')[2]} on training images", dataset.train.num_rows) as add:
        for image, row, truth_HW in _images(found, dataset):
            labels_HW = masks.decode(row[COLUMN[found.manifest["kind"]]])
            matrices.append(scores.confusion(truth_HW, labels_HW, num_classes))
            maps_CHW = maps_of(image, row).numpy()
            pixels += count_classes(maps_CHW, np.array(image.labels), truth_HW, THRESHOLDS, num_classes)
            centred += make_seeds.count_centred(image.labels, truth_HW, num_classes)
            add(1)
    if not matrices:
        raise DataError(f"No training image of {dataset.uri} has a mask: nothing can be judged.")
    matrices_NLL = np.stack(matrices)
    best, value = scores.best_threshold(pixels)
    figures = scores.figures(matrices_NLL.sum(0), dataset.classes)
    figures |= {"oracle": 100 * value, "oracle_threshold": float(THRESHOLDS[best])}
    figures |= _centred(centred, _seeds(found).manifest["val"])
    return {"seal": found.seal, "images": len(matrices), "figures": figures, "interval": scores.bootstrap(matrices_NLL)}


def _centred(pixels_3LT: np.ndarray, val: Mapping[str, Any]) -> dict[str, float]:
    """mIoU of the centred box of the size that validation chose, if it has masks, and of the best size."""
    figures = {"centred_oracle": 100 * scores.best_threshold(pixels_3LT)[1]}
    if "centred_threshold" in val:
        number = int(np.searchsorted(THRESHOLDS, np.float32(val["centred_threshold"])))
        figures["centred"] = 100 * scores.mean_iou(scores.iou_at(pixels_3LT, number))
    return figures


def _seeds(found: Station) -> Station:
    """The seeds that a station holds, or is made of."""
    return found if found.manifest["kind"] == make_seeds.KIND else station.source(found, "seeds")


def _images(found: Station, dataset: Dataset) -> Iterator[tuple[Image, dict[str, Any], np.ndarray]]:
    """Training images that have a true mask, with what the station holds of them."""
    truths = {name: (mask, ignore) for name, mask, ignore in open_audit(dataset).masks()}
    columns = ["id", "classes", COLUMN[found.manifest["kind"]]]
    seeds = _seeds(found)
    for part in station.parts_of("train", dataset.train.num_rows):
        rows = np.arange(part.begin, part.end)
        held = found.read("train", rows, columns).to_pylist()
        maps = seeds.read("train", rows, ["maps"])["maps"].to_pylist()
        for image, row, packed in zip(read_images(dataset.train, part), held, maps, strict=True):
            if image.id in truths:
                size_wh = image.pixels_HW3.shape[1], image.pixels_HW3.shape[0]
                truth_HW = true_labels(*truths[image.id], size_wh, image.labels, dataset.multilabel)
                yield image, row | {"maps": packed}, truth_HW


def _seed_maps(found: Station, device: str) -> MapsOf:
    told = _told(found)
    maker = SeedMaker(found.uri("data"), found.uris("models"), found.uris("files"), SeedOptions(**told), device)
    worker = maker()
    return lambda image, row: worker.maps(image).full_CHW


def _refined_maps(found: Station, device: str) -> MapsOf:
    told = _told(found)
    seeds = _seeds(found)
    maker = refine.RefineMaker(
        found.uri("data"), seeds.place.uri, RefineOptions(**told, seeds="seeds"), device,
        seeds.manifest["chosen"]["constant"], found.uri("boundaries") if found.manifest["places"]["boundaries"] else "",
    )  # fmt: skip
    return maker().maps


def _told(found: Station) -> dict[str, Any]:
    """The options that a station was made with."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in found.identity["options"].items()}


def has_truth(store: Store, names: Sequence[str]) -> bool:
    """Whether stations are of one dataset, some of whose training images have a mask that was kept."""
    found = [station.finished(store, name) for name in names]
    if len({one.identity["dataset"] for one in found}) > 1 or not is_kept(
        dataset := open_dataset(found[0].uri("data"))
    ):
        return False
    return any(mask is not None for _, mask, _ in open_audit(dataset).masks())


def judge(options: EvaluateOptions, name: str, progress: Progress = silent) -> Judgement:
    """A network on test, seeds or masks on training images: by what lies there."""
    store = options.store
    if station.is_finished(store / name) and station.finished(store, name).manifest["kind"] in COLUMN:
        return judge_masks(options, name, progress)
    return segment.judge_network(options, name, progress)
