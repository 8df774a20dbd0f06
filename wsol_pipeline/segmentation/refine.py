"""From seeds to pseudo masks: IRN's walk, PAMR and the dense field, each on the maps that the one before has made.

What comes out of each is maps again, so one histogram over validation solves the background's constant for all. That
is exact for PAMR too: it takes means of neighbours, which leave a constant background what it is.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from wsol_models.segmentation import crf, irn, pamr
from wsol_models.segmentation.walk import random_walk, walked_maps
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.images import resize_to
from wsol_pipeline.errors import DataError, MismatchError, UsageError
from wsol_pipeline.evaluation.segmentation import count_classes
from wsol_pipeline.images import normalize
from wsol_pipeline.protocol import Role
from wsol_pipeline.segmentation import fields, make_seeds, masks, scores, station
from wsol_pipeline.segmentation.boundaries import IrnTask, load_boundaries
from wsol_pipeline.segmentation.fit import Record, run_fit
from wsol_pipeline.segmentation.make_seeds import THRESHOLDS, Image, iou_figures, read_images, unpack_strided
from wsol_pipeline.segmentation.options import IrnOptions, RefineOptions
from wsol_pipeline.segmentation.published import with_row
from wsol_pipeline.segmentation.seeds import labels_of, normalised, power_background, strided
from wsol_pipeline.segmentation.station import Part, Station
from wsol_pipeline.storage import Store
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.training.checkpoint import SEAL, read_sealed, seal_of
from wsol_pipeline.training.model import DESCRIPTION
from wsol_pipeline.verdict.score import Progress, silent

KIND = "pseudo masks"
SCHEMA = pa.schema([("id", pa.string()), ("height", pa.int32()), ("width", pa.int32()),
                    ("classes", pa.list_(pa.int16())), ("pseudo_mask", pa.binary())])  # fmt: skip


@dataclass(frozen=True)
class RefineMaker:
    """What refines the seeds of a part. `boundaries`: folder of IRN's network; `threshold`: None on validation."""

    data: str
    seeds: str
    options: RefineOptions
    device: str
    background: float  # of the seeds
    boundaries: str = ""
    threshold: float | None = None

    def __call__(self) -> "RefineWorker":
        return RefineWorker(self)


class RefineWorker:
    """Networks and seeds of a `RefineMaker`, loaded once."""

    def __init__(self, maker: RefineMaker) -> None:
        self.maker, self.options, self.dataset = maker, maker.options, open_dataset(maker.data)
        self.seeds = station.finished(Store.at(maker.seeds), "", make_seeds.KIND)
        self.boundaries = load_boundaries(Store.at(maker.boundaries), maker.device) if maker.boundaries else None

    def __call__(self, part: Part) -> tuple[pa.Table, dict[str, Any]]:
        val = part.role == Role.VAL
        split = self.dataset.val if val else self.dataset.train
        stored = self.seeds.read(part.role, np.arange(part.begin, part.end), ["id", "classes", "maps"]).to_pylist()
        rows, notes = [], {"walk_of_nothing": 0, "all_background": 0}
        pixels = np.zeros((3, len(self.dataset.classes) + 1, len(THRESHOLDS) + 1), np.int64)
        for image, seed in zip(read_images(split, part), stored, strict=True):
            maps_CHW = self.maps(image, seed)
            notes["walk_of_nothing"] += int(not (maps_CHW > 0).any())
            row = {"id": image.id, "height": image.pixels_HW3.shape[0], "width": image.pixels_HW3.shape[1],
                   "classes": image.labels}  # fmt: skip
            if image.mask_HW is not None:
                pixels += count_classes(maps_CHW.numpy(), np.array(image.labels), image.mask_HW, THRESHOLDS,
                                        len(self.dataset.classes))  # fmt: skip
            if self.maker.threshold is not None:
                mask_HW = labels_of(maps_CHW, torch.tensor(image.labels), self.maker.threshold)
                notes["all_background"] += int(not (mask_HW > 0).any())
                row["pseudo_mask"] = masks.encode(mask_HW.numpy())
            rows.append(row)
        counted = {"pixels": pixels.tolist()} if val else {}
        return pa.Table.from_pylist(rows, schema=SCHEMA), {"notes": notes, **counted}

    def maps(self, image: Image, seed: dict[str, Any]) -> Tensor:
        """Refined maps of the image's size, float32 [C, H, W] in 0..1. Raises `DataError` for seeds of other images."""
        if (seed["id"], seed["classes"]) != (image.id, image.labels):
            raise DataError(f"{self.maker.seeds} has {seed['id']!r} of {seed['classes']} where {self.dataset.uri} has "
                            f"{image.id!r} of {image.labels}: make the seeds again.")  # fmt: skip
        height, width = image.pixels_HW3.shape[:2]
        maps_CHW = unpack_strided(seed["maps"], (height, width))
        for step in self.options.steps:
            maps_CHW = REFINE[step](self, image, maps_CHW)
        return _at(maps_CHW, (height, width)).clamp(0, 1)

    def _walk(self, image: Image, maps_CHW: Tensor) -> Tensor:
        options, network = self.options, self.boundaries
        assert network is not None
        pixels_CHW = torch.from_numpy(image.pixels_HW3.copy()).permute(2, 0, 1)
        boundary_HW = irn.boundary_map(network, normalize(pixels_CHW[None], self.maker.device)[0], options.irn_pad)
        walked = random_walk(maps_CHW.to(boundary_HW), boundary_HW, radius=options.walk_radius, beta=options.beta,
                             exponent=options.exponent, power=options.power)  # fmt: skip
        return walked_maps(walked, image.pixels_HW3.shape[:2]).float().cpu()

    def _adapt(self, image: Image, maps_CHW: Tensor) -> Tensor:
        size = image.pixels_HW3.shape[:2]
        size = size if self.options.pamr_size == "full" else strided(size)
        pixels_CHW = resize_to(torch.from_numpy(image.pixels_HW3.copy()).permute(2, 0, 1), size)
        device = self.maker.device
        refined = pamr.refine(_at(maps_CHW, size).to(device), pixels_CHW.float().to(device) / 255)
        return _at(refined.cpu(), image.pixels_HW3.shape[:2])

    def _field(self, image: Image, maps_CHW: Tensor) -> Tensor:
        maps_CHW = normalised(_at(maps_CHW, image.pixels_HW3.shape[:2]))
        options, constant = self.options, torch.full(maps_CHW.shape[1:], self.maker.background)
        background_HW = power_background(maps_CHW, options.alpha) if options.alpha else constant
        unary_LHW = crf.unary_of_scores(torch.cat([background_HW[None], maps_CHW]))
        q_LHW = fields.inferred(options.field, unary_LHW, image.pixels_HW3, crf.REFINE)
        return (q_LHW[1:] * (q_LHW[1:] >= q_LHW[:1])).float()  # what the background wins is 0: nothing is left to cut


REFINE: dict[str, Callable[[RefineWorker, Image, Tensor], Tensor]] = {
    "irn": RefineWorker._walk, "pamr": RefineWorker._adapt, "crf": RefineWorker._field,
}  # fmt: skip


def _at(maps_CHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
    """Maps of another size, bilinearly."""
    if maps_CHW.shape[1:] == size_HW:
        return maps_CHW
    return F.interpolate(maps_CHW[None], list(size_HW), mode="bilinear", align_corners=False)[0]


def refine(
    options: RefineOptions,
    device: str,
    progress: Progress = silent,
    on_record: Callable[[Record], None] = lambda r: None,
) -> Station:
    """Pseudo masks of finished seeds, made or continued; sealed."""
    options = with_row(options, options.preset, "refine")
    seeds = station.finished(options.store, options.seeds, make_seeds.KIND)
    dataset = open_dataset(seeds.uri("data"))
    require_same(seeds, dataset.fingerprint)
    if options.field == "library" and "crf" in options.steps:
        fields.require_library()
    place = options.store / options.result
    with acquire(place / "lease") as lease:
        told = {k: v for k, v in asdict(options).items() if k not in (*make_seeds.NOT_ASKED, "seeds")}
        station.begin(place, {"kind": KIND, "sources": [seeds.seal], "dataset": dataset.fingerprint,
                              "options": json.loads(json.dumps(told))})  # fmt: skip
        if place.exists(SEAL):
            return station.finished(options.store, options.result, KIND)
        walks = "irn" in options.steps
        boundaries = _boundaries(options, seeds, place, lease.attempt, device, on_record) if walks else ""
        chosen = seeds.manifest["chosen"]["constant"]
        maker = RefineMaker(dataset.uri, seeds.place.uri, options, device, chosen, boundaries)
        return _masks(options, maker, place, dataset.classes, device, progress)


def _masks(
    options: RefineOptions, maker: RefineMaker, place: Store, classes: tuple[str, ...], device: str, progress: Progress
) -> Station:
    dataset = open_dataset(maker.data)
    val = make_seeds.run(place, maker, "val", dataset.val.num_rows, options.workers, device, progress)
    pixels = np.sum([np.array(report["pixels"]) for report in val], axis=0)
    number, oracle, figures = _chosen(options, pixels, classes)
    threshold = float(THRESHOLDS[number])
    train = make_seeds.run(
        place, replace(maker, threshold=threshold), "train", dataset.train.num_rows, options.workers, device, progress
    )
    notes = make_seeds.total_notes(train)
    make_seeds.require_objects(notes, dataset.train.num_rows, "pseudo mask")
    walked = {"boundaries": seal_of(Store.at(maker.boundaries))} if maker.boundaries else {}
    found = {"chosen": {"constant": threshold}, "val": figures | oracle, "notes": notes, "classes": list(classes)}
    shards = {"val": [report["shard"] for report in val], "train": [report["shard"] for report in train]}
    places = {"data": maker.data, "seeds": maker.seeds, "boundaries": maker.boundaries}
    return station.finish(place, KIND, shards, places, found | walked)


def _chosen(options: RefineOptions, pixels: np.ndarray, classes: tuple[str, ...]) -> tuple[int, dict, dict]:
    """The threshold's number, the best on validation, and the figures there."""
    if not pixels.any():
        if options.threshold == "val":
            raise UsageError("There are no masks on validation to choose by: give --threshold a number.")
        return int(np.searchsorted(THRESHOLDS, float(options.threshold))), {}, {}
    best, value = scores.best_threshold(pixels)
    number = best if options.threshold == "val" else int(np.searchsorted(THRESHOLDS, float(options.threshold)))
    return (
        number,
        {"oracle": 100 * value, "oracle_threshold": float(THRESHOLDS[best])},
        iou_figures(pixels, number, classes),
    )


def _boundaries(
    options: RefineOptions, seeds: Station, place: Store, attempt: int, device: str, on_record: Callable[[Record], None]
) -> str:
    """The folder of IRN's finished network: trained, or continued. Without --weights it begins where the network of the
    seeds has ended, if it is of that backbone."""
    final = Store.at(seeds.uris("models")[0])
    own = json.loads(read_sealed(final, DESCRIPTION)[DESCRIPTION])["train"]["backbone"]
    irn_options = IrnOptions(**{name: getattr(options, name) for name in IrnOptions.__dataclass_fields__})
    irn_options = replace(irn_options, backbone=options.backbone or own)
    start = final.uri if irn_options.backbone == own and not options.weights else ""
    task = IrnTask(seeds.uri("data"), seeds.place.uri, seeds.seal, irn_options, options.seed, start)
    return run_fit(task, place / "irn", attempt, options.workers, device, on_record).uri


def require_same(found: Station, fingerprint: str) -> None:
    """Raise `MismatchError` if other images lie there than a station was made of."""
    if found.identity["dataset"] != fingerprint:
        raise MismatchError(f"The data is not that of which {found.place.uri} was made (any more).")
