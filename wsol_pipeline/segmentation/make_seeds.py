"""Seeds of a finished study: maps of the classes that an image is known to show, and where the background ends.

Validation comes first: its masks, with image labels known, choose the one threshold, from all thousand at once. Then
the maps of training images are made and cut. No mask of a training image is read, nor is one there.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol_models.segmentation import crf
from wsol_pipeline.data.dataset import Dataset, Split, open_dataset
from wsol_pipeline.data.images import decode, label_mask
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.baseline import centred_map
from wsol_pipeline.evaluation.segmentation import count_classes
from wsol_pipeline.protocol import Role
from wsol_pipeline.segmentation import cuts, masks, scores, station
from wsol_pipeline.segmentation.fields import field_of
from wsol_pipeline.segmentation.options import SeedOptions
from wsol_pipeline.segmentation.published import with_row
from wsol_pipeline.segmentation.seeds import confident, fused, labels_of, normalised, with_foreground
from wsol_pipeline.segmentation.station import Part, Station
from wsol_pipeline.segmentation.views import OBJECTS, Maps, class_maps
from wsol_pipeline.storage import Store
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.training.checkpoint import SEAL, seal_of
from wsol_pipeline.training.model import Model, load_model
from wsol_pipeline.verdict.rows import finished_study
from wsol_pipeline.verdict.score import Progress, silent

KIND = "seeds"
THRESHOLDS: NDArray[Any] = np.linspace(0, 1, 1000, endpoint=False, dtype=np.float32)  # compared as the maps are
COLUMNS = ["id", "image", "labels"]
COUNTED = ("pixels", "centred", "unseen", "own", "cut_scores", "cut_classes")  # on validation, by a `Tally`


@dataclass(frozen=True)
class Kept:
    """Maps of another method, as files: a station of seeds with maps of the image's size."""

    uri: str

    @cached_property
    def station(self) -> Station:
        return station.finished(Store.at(self.uri), "", KIND)

    @cached_property
    def places(self) -> dict[str, tuple[str, int]]:
        """Where each image is: role and row."""
        found: dict[str, tuple[str, int]] = {}
        for role in ("val", "train"):
            ids = self.station.read(role, np.arange(self.station.rows(role)), ["id"])["id"].to_pylist()
            found |= {name: (role, row) for row, name in enumerate(ids)}
        return found

    def maps(self, name: str, classes_C: Tensor) -> Maps:
        """Raises `DataError` for an image that is not there, has other classes, or whose maps were not kept whole."""
        if name not in self.places:
            raise DataError(
                f"{self.uri} has no maps of image {name!r}: methods that are fused must be of the same data."
            )
        role, row = self.places[name]
        table = self.station.read(role, np.array([row]), ["classes", "maps", "full", "height", "width"]).to_pylist()[0]
        if table["classes"] != classes_C.tolist():
            raise DataError(f"Image {name!r} has classes {classes_C.tolist()} but {self.uri} has {table['classes']}.")
        if table["full"] is None:
            raise DataError(f"{self.uri} kept no maps of the image's size: make them with --keep full.")
        size = table["height"], table["width"]
        return Maps(_unpacked(table["full"], size), unpack_strided(table["maps"], size))


@dataclass(frozen=True)
class Chosen:
    """Where the background ends: a constant, or one for each image (then `constant` serves where BAS sees no class)."""

    constant: float
    per: str = ""  # "image" or "class"


@dataclass(frozen=True)
class SeedMaker:
    """What makes the seeds of a part; `chosen` is None on validation, where it is to be found."""

    data: str
    models: tuple[str, ...]  # folders of finished models; the first is the study's
    files: tuple[str, ...]
    options: SeedOptions
    device: str
    chosen: Chosen | None = None

    @property
    def places(self) -> dict[str, Any]:
        return {"data": self.data, "models": self.models, "files": self.files}

    def __call__(self) -> "SeedWorker":
        return SeedWorker(self)


class SeedWorker:
    """Networks and files of a `SeedMaker`, loaded once."""

    def __init__(self, maker: SeedMaker) -> None:
        self.maker, self.options, self.dataset = maker, maker.options, open_dataset(maker.data)
        self.models: list[Model] = [load_model(Store(uri), maker.device) for uri in maker.models]
        self.files = [Kept(uri) for uri in maker.files]

    def __call__(self, part: Part) -> tuple[pa.Table, dict[str, Any]]:
        split = self.dataset.val if part.role == Role.VAL else self.dataset.train
        rows, notes = [], {"map_of_nothing": 0, "all_background": 0}
        counts = Tally(len(self.dataset.classes), self.options.steps)
        for image in read_images(split, part):
            maps = self.maps(image)
            judged = self._judge(image, maps)
            notes["map_of_nothing"] += int((maps.full_CHW.amax((1, 2)) <= 0).sum())
            row = self._row(image, maps)
            if self.maker.chosen is None:
                counts.add(image, maps, judged, self.options.per)
            if self.maker.chosen:
                row |= self._labels(image, maps, judged)
                notes["all_background"] += int(not row.pop("any"))
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=SCHEMA), {"notes": notes, **counts.plain()}

    def maps(self, image: "Image") -> Maps:
        """Normalised, held to the foreground map, and fused."""
        options, classes_C = self.options, torch.tensor(image.labels)
        own = [
            class_maps(model.method, image.pixels_HW3, classes_C, options.scales, options.mirror,
                       options.readout, options.base)
            for model in self.models
        ]  # fmt: skip
        if options.agnostic != "none":
            own[0] = self._held(image, own[0], options.agnostic)
        parts = [*own, *(kept.maps(image.id, classes_C) for kept in self.files)]
        sizes = zip(*parts, strict=True)
        if len(parts) == 1:
            return Maps(*(normalised(of_size[0]) for of_size in sizes))
        return Maps(*(fused(of_size, list(options.fuse_weights) or None) for of_size in sizes))

    def _held(self, image: "Image", maps: Maps, how: str) -> Maps:
        options, method = self.options, self.models[0].method
        whole = class_maps(
            method, image.pixels_HW3, torch.tensor([0]), options.scales, options.mirror, OBJECTS, options.base
        )
        views = len(options.scales) * (1 + options.mirror)
        return Maps(*(with_foreground(m / views, w[0] / views, how) for m, w in zip(maps, whole, strict=True)))

    def _judge(self, image: "Image", maps: Maps) -> cuts.Cuts | None:
        """On validation always, where BAS can: what no mask has chosen stands beside what masks choose."""
        chosen, method = self.maker.chosen, self.models[0].method
        if "background suppression" not in method.offers or (chosen and not chosen.per):
            return None
        classes_C = torch.tensor(image.labels)
        return cuts.judged(method, image.pixels_HW3, maps.strided_CHW, classes_C, self.options.steps)

    def _row(self, image: "Image", maps: Maps) -> dict[str, Any]:
        height, width = image.pixels_HW3.shape[:2]
        full = _packed(maps.full_CHW) if self.options.keep == "full" else None
        return {"id": image.id, "height": height, "width": width, "classes": image.labels,
                "maps": _packed(maps.strided_CHW), "full": full}  # fmt: skip

    def _labels(self, image: "Image", maps: Maps, judged: cuts.Cuts | None) -> dict[str, Any]:
        chosen, options, classes_C = self.maker.chosen, self.options, torch.tensor(image.labels)
        assert chosen is not None
        background: Tensor | float = chosen.constant
        if chosen.per and judged:
            background = cuts.best(judged, chosen.constant, chosen.per).view(-1, 1, 1)
        seed_HW = labels_of(maps.full_CHW, classes_C, background)
        field = field_of(options.field, image.pixels_HW3, crf.CONFIDENT)
        sure_HW = confident(maps.full_CHW, classes_C, options.foreground_at, options.background_at, field=field)
        found = {"seed": masks.encode(seed_HW.numpy()), "confident": masks.encode(sure_HW.numpy())}
        return found | {"any": bool((seed_HW > 0).any())}


SCHEMA = pa.schema([
    ("id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("classes", pa.list_(pa.int16())),
    ("maps", pa.binary()), ("full", pa.binary()), ("seed", pa.binary()), ("confident", pa.binary()),
])  # fmt: skip


@dataclass(frozen=True)
class Image:
    """An image of a split: pixels uint8 [H, W, 3], its classes, and its mask on validation."""

    id: str
    pixels_HW3: np.ndarray
    labels: list[int]
    mask_HW: np.ndarray | None = None


def read_images(split: Split, part: Part, masked: bool = True) -> Iterator[Image]:
    """The images of a part, one after the other; with their masks where the split has such."""
    with_masks = masked and split.role is not Role.TRAIN and split.has_masks
    columns = [*COLUMNS, *(("mask", "ignore") if with_masks else ())]
    table = split.shard_set().read(np.arange(part.begin, part.end), columns)
    for row in table.to_pylist():
        pixels_HW3 = decode(row["image"]).permute(1, 2, 0).numpy()
        size_wh = pixels_HW3.shape[1], pixels_HW3.shape[0]
        labels = sorted(row["labels"])
        mask_HW = true_labels(row["mask"], row["ignore"], size_wh, labels, split.multilabel) if with_masks else None
        yield Image(row["id"], pixels_HW3, labels, mask_HW)


def true_labels(
    mask: bytes | None, ignore: bytes | None, size_wh: tuple[int, int], labels: Sequence[int], multilabel: bool
) -> np.ndarray:
    """uint8 [H, W] of labels; the mask of an image of one class is of that class's object. All 255 without a mask."""
    labels_HW = label_mask(mask, ignore, size_wh, multilabel)
    if not multilabel:
        labels_HW[labels_HW == 1] = labels[0] + 1
    return labels_HW


class Tally:
    """What validation counts: the histogram of thresholds, scores without masks, labels at each image's own cut."""

    def __init__(self, num_classes: int, steps: int) -> None:
        self.num_classes, shape = num_classes, (3, num_classes + 1, len(THRESHOLDS) + 1)
        self.pixels = np.zeros(shape, np.int64)
        self.centred = np.zeros(shape, np.int64)  # of the centred box, which costs no look at the image
        self.unseen = np.zeros(shape, np.int64)  # of images in which BAS sees no class
        self.own = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        self.cut_scores, self.cut_classes = np.zeros(steps), 0

    def add(self, image: Image, maps: Maps, judged: cuts.Cuts | None, per: str) -> None:
        if judged is not None:
            self.cut_scores += judged.scores_CT[judged.seen_C].sum(0).double().numpy()
            self.cut_classes += int(judged.seen_C.sum())
        if image.mask_HW is None:
            return
        classes_C = np.array(image.labels)
        found = count_classes(maps.full_CHW.numpy(), classes_C, image.mask_HW, THRESHOLDS, self.num_classes)
        self.pixels += found
        self.centred += count_centred(image.labels, image.mask_HW, self.num_classes)
        if judged is None:
            return
        if not judged.seen_C.any():
            self.unseen += found
            return
        own = cuts.best(judged, 0.0, per).view(-1, 1, 1)
        labels_HW = labels_of(maps.full_CHW, torch.from_numpy(classes_C), own).numpy()
        self.own += scores.confusion(image.mask_HW, labels_HW, self.num_classes)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in COUNTED}


def count_centred(labels: Sequence[int], mask_HW: np.ndarray, num_classes: int) -> np.ndarray:
    """The histogram of all centred boxes, of the first of an image's classes."""
    height, width = mask_HW.shape
    maps_1HW = centred_map((width, height)).astype(np.float32)[None]
    return count_classes(maps_1HW, np.array(labels[:1]), mask_HW, THRESHOLDS, num_classes)


def make_seeds(options: SeedOptions, device: str, progress: Progress = silent) -> Station:
    """The seeds of a study, made or continued; sealed."""
    options = with_row(options, options.preset, "seeds")
    maker, identity = plan_seeds(options, device)
    place, dataset = options.store / options.result, open_dataset(maker.data)
    with acquire(place / "lease"):
        station.begin(place, identity)
        if place.exists(SEAL):
            return station.finished(options.store, options.result, KIND)
        val = run(place, maker, "val", dataset.val.num_rows, options.workers, device, progress)
        chosen, figures = choose(options, val, dataset.classes)
        train = run(
            place, replace(maker, chosen=chosen), "train", dataset.train.num_rows, options.workers, device, progress
        )
        notes = total_notes(train)
        require_objects(notes, dataset.train.num_rows, "seed")
        found = {"chosen": asdict(chosen), "val": figures, "notes": notes, "classes": list(dataset.classes)}
        shards = {"val": [report["shard"] for report in val], "train": [report["shard"] for report in train]}
        return station.finish(place, KIND, shards, maker.places, found)


def run(
    place: Store, make: Callable[[], Any], role: str, rows: int, workers: int, device: str, progress: Progress
) -> list[dict[str, Any]]:
    """The reports of all parts of a split."""
    parts, reports = station.parts_of(role, rows), []
    with progress(f"{place.uri.rpartition('/')[2]}: {role}", rows) as add:
        for part, report in zip(parts, station.run_parts(place, make, parts, workers, device), strict=True):
            reports.append(report)
            add(part.end - part.begin)
    return reports


def plan_seeds(options: SeedOptions, device: str) -> tuple[SeedMaker, dict[str, Any]]:
    """What is to be made, and its identity. Raises `WsolError` for what does not fit, before anything is made."""
    winner = finished_study(options.store, options.study)
    dataset = open_dataset(winner["data"])
    require_classes(dataset, options.threshold == "val")
    others, files = _partners(options, winner["data"])
    maker = SeedMaker(winner["data"], (winner["model"], *others), tuple(files), options, device)
    _require_able(options, winner["model"])
    told = {name: value for name, value in asdict(options).items() if name not in NOT_ASKED}
    seals = [seal_of(Store(uri)) for uri in maker.models] + [seal_of(Store.at(uri)) for uri in files]
    identity = {"kind": KIND, "study": winner["study"], "sources": seals,
                "dataset": dataset.fingerprint, "options": json.loads(json.dumps(told))}  # fmt: skip
    return maker, identity


def _require_able(options: SeedOptions, model: str) -> None:
    """Raise `UsageError` for a network that cannot judge a mask, or has no map of all objects, where that is needed."""
    if options.threshold not in ("image", "labels") and options.agnostic == "none":
        return
    method = load_model(Store(model)).method
    if options.threshold in ("image", "labels"):
        cuts.require_bas(method, f"--threshold {options.threshold}")
    if options.agnostic != "none" and not getattr(method.config, "foreground_head", False):
        raise UsageError(
            "--agnostic needs a BAS that was trained with --options segmentation true foreground_head true."
        )


NOT_ASKED = ("name", "storage", "workers", "device", "experiment", "dry_run", "export")  # change no file


def _partners(options: SeedOptions, data: str) -> tuple[list[str], list[str]]:
    """Models of the studies to be fused, and folders of kept maps."""
    models, files = [], []
    for name in options.fuse:
        place = options.store / name if "/" not in name else Store.at(name)
        if place.exists(station.IDENTITY):
            files.append(place.uri)
            continue
        winner = finished_study(options.store, name)
        if winner["data"] != data:
            raise DataError(
                f"Study {name!r} is of {winner['data']}, not of {data}: fused methods need the same images."
            )
        models.append(winner["model"])
    return models, files


def require_classes(dataset: Dataset, by_masks: bool) -> None:
    """Raise unless the dataset has class masks to choose by, and few enough classes for masks of 8 bits."""
    masks.check_classes(len(dataset.classes))
    if by_masks and not dataset.val.has_masks:
        raise DataError(f"{dataset.uri} has no masks on validation: choose by --threshold labels, or give a number.")


def choose(
    options: SeedOptions, reports: Sequence[Mapping[str, Any]], classes: tuple[str, ...]
) -> tuple[Chosen, dict[str, Any]]:
    """Where the background ends, and how good seeds are on validation there, percent."""
    summed = {name: np.sum([np.array(report[name]) for report in reports], axis=0) for name in COUNTED}
    judged = bool(summed["cut_classes"])
    of_labels = int(np.argmin(summed["cut_scores"])) * len(THRESHOLDS) // options.steps
    if options.threshold in ("labels", "image") and not judged:
        raise DataError(f"--threshold {options.threshold}: BAS recognises no class of any validation image.")
    masked = bool(summed["pixels"].any())
    best, value = scores.best_threshold(summed["pixels"]) if masked or options.threshold == "val" else (of_labels, 0.0)
    number = {"labels": of_labels, "val": best, "image": best}.get(options.threshold)
    if number is None:
        number = int(np.searchsorted(THRESHOLDS, np.float32(options.constant)))
    constant = float(THRESHOLDS[number]) if options.constant is None else float(np.float32(options.constant))
    chosen = Chosen(constant, options.per if options.threshold == "image" else "")
    if not masked:
        return chosen, {}
    at, centred = scores.best_threshold(summed["centred"])
    figures = {"oracle": 100 * value, "oracle_threshold": float(THRESHOLDS[best]),
               "centred": 100 * centred, "centred_threshold": float(THRESHOLDS[at]),
               **iou_figures(summed["pixels"], number, classes)}  # fmt: skip
    if judged:
        figures["labels"] = 100 * scores.mean_iou(scores.iou_at(summed["pixels"], of_labels))
        figures["labels_threshold"] = float(THRESHOLDS[of_labels])
        figures["labels_score"] = float(summed["cut_scores"].min() / summed["cut_classes"])
        figures["image"] = 100 * scores.mean_iou(_own_iou(summed, number))
    return chosen, figures


def iou_figures(pixels_3LT: np.ndarray, number: int, classes: tuple[str, ...]) -> dict[str, Any]:
    """mIoU and each class at one threshold of a histogram, percent."""
    iou_L = scores.iou_at(pixels_3LT, number)
    names = ["background", *classes]
    return {"miou": 100 * scores.mean_iou(iou_L), "threshold": float(THRESHOLDS[number]),
            "classes": {name: 100 * float(iou) for name, iou in zip(names, iou_L, strict=True) if np.isfinite(iou)},
            "absent": [name for name, iou in zip(names, iou_L, strict=True) if not np.isfinite(iou)]}  # fmt: skip


def _own_iou(summed: Mapping[str, np.ndarray], number: int) -> np.ndarray:
    """IoU where each image has its own cut; images without one take the constant."""
    own = summed["own"]
    parts = zip((np.diagonal(own), own.sum(0), own.sum(1)), scores.parts_at(summed["unseen"], number), strict=True)
    right, claimed, true = (np.asarray(a + b, float) for a, b in parts)
    union = claimed + true - right
    return np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)


def total_notes(reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {name: sum(report["notes"][name] for report in reports) for name in reports[0]["notes"]}


def require_objects(notes: Mapping[str, int], rows: int, what: str) -> None:
    """Raise `DataError` if every mask is all background: nothing could be learnt from them."""
    if notes["all_background"] == rows:
        raise DataError(
            f"Each {what} of {rows} images is background everywhere: the threshold leaves nothing of any map."
        )


def _packed(maps_CHW: Tensor) -> bytes:
    return maps_CHW.numpy().astype(np.float16).tobytes()


def _unpacked(data: bytes, size_HW: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.float16).reshape(-1, *size_HW).astype(np.float32))


def unpack_strided(data: bytes, size_HW: tuple[int, int]) -> Tensor:
    """Maps at stride 4, float32 [C, h, w]; `size` is the image's."""
    height, width = ((side - 1) // 4 + 1 for side in size_HW)
    return _unpacked(data, (height, width))
