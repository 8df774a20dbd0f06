"""A finished model: weights, configuration and the readout chosen on validation, loaded without pickle."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch

from wsol_models import LATER, LocalizationMethod
from wsol_pipeline.device import as_models_are_read
from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.evaluation.evaluate import needs_stored, read_maps
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import plain
from wsol_pipeline.evaluation.objects import (
    Frame,
    components,
    cuts_itself,
    extent,
    is_flat,
    largest,
    object_mask,
)
from wsol_pipeline.evaluation.otsu import Threshold
from wsol_pipeline.evaluation.protocols import Protocol, protocol
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.training.build import build_method, build_readout
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.config import TrainConfig, from_dict, require
from wsol_pipeline.training.inputs import PATHS, Prepared, as_list, pixels_of, prepare
from wsol_pipeline.training.localization import Localization, Wanted

T = TypeVar("T")
Views = Literal["whole", "resize"]
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
BACKBONE = "backbone.safetensors"  # --weights of another run
FORMAT = 1  # of DESCRIPTION
TOLD = ARITHMETIC, TRAINING_IMAGES = "arithmetic", "training_images"  # what that says in words of the training
VAL_COUNTS = "val_counts.json"  # what readout and thresholds were chosen from
VAL_IMAGES = "val_images.json"  # hits of single images at the chosen readout; none where class masks are scored


@dataclass(frozen=True)
class Seen:
    """One class of one image that is looked at."""

    size_wh: tuple[int, int]
    label: int
    given: bool  # whether the class was known
    predicted: int  # the network's own first class


@dataclass(frozen=True)
class Model:
    """A trained method in eval mode with everything that was chosen for it on validation."""

    method: LocalizationMethod
    config: TrainConfig
    classes: tuple[str, ...]
    multilabel: bool  # whether images it was trained on can be of several classes
    choice: Choice
    description: dict[str, Any]
    views: Views = "whole"

    @property
    def protocol(self) -> Protocol:
        rules = protocol(self.config.protocol, self.config.image_size, self.config.resize_size)
        return dataclasses.replace(rules, geometry="resize") if self.views == "resize" else rules

    def seeing(self, views: Views) -> "Model":
        """The same model, shown images as its protocol does ("whole"), or all of an image at the size of the crop where
        that would leave a margin out ("resize"): which is not how it was judged. Raises `UsageError` without a crop."""
        if views == "resize" and self.protocol.geometry != "resize_crop":
            raise UsageError(
                f"--views resize is for protocols that crop; this model ({self.config.protocol}) sees all of an image."
            )
        return dataclasses.replace(self, views=views)

    @property
    def readout(self) -> Any:
        return build_readout(self.config)

    @property
    def threshold(self) -> Threshold:
        """The threshold at which boxes are read: the best on validation for an IoU of 0.5, else for the masks; or the
        rule `OTSU`, which gives each map its own."""
        return self.choice.threshold

    @functools.cached_property
    def needs_stored(self) -> bool:
        """Whether maps are read from photographs as they are stored, too."""
        return needs_stored(self.readout)

    @functools.cached_property
    def cuts_own_mask(self) -> bool:
        """Whether maps are masks already, which no threshold changes: as one of a grey image shows."""
        grey = self.prepare(torch.full((3, 32, 32), 128, dtype=torch.uint8))
        return cuts_itself(self._maps([grey], torch.tensor([0]), torch.tensor([0]))[0])

    def check(self, wanted: Wanted) -> None:
        """Raise `UsageError` for what this model cannot be asked."""
        for name in wanted.classes:
            if name not in self.classes:
                raise unknown("class of the model", name, self.classes)
        if wanted.threshold is not None and self.cuts_own_mask:
            raise UsageError(
                f"This model's readout ({self.config.readout}, {self.choice.readout}) cuts its own mask: it has no "
                f"threshold but got {wanted.threshold!r}."
            )

    def predict(
        self,
        images: Any,
        threshold: float | str | None = None,
        labels: Any = None,
        top: int | None = None,
        boxes: Literal["largest", "all"] = "largest",
        batch_size: int = 32,
        **more: Any,
    ) -> list[Localization]:
        """Localize objects in one image or a list of them, of any sizes: a list in order, an item per image and class.

        images: path, URI, PIL image, uint8 array [H, W, 3], tensor [3, H, W], or a list of these.
        threshold: on the map, 0 <= τ < 1, or "otsu"; by default the one chosen on validation.
        labels: the class of each image, by name or index, where it is known: then the map is that class's.
        top: how many classes an image; by default one, of a multi-label model all over a probability of 0.5.
        boxes: the largest part of the mask, or all of its parts, each an item.
        more: `conf`, `classes`, `max_det` and `min_area` of `Wanted`.

        Raises:
            UsageError: an option, an image or a label is not what it can be.
            DataError: a file is missing or broken.
        """
        images = as_list(images)
        labels = list(as_list(labels)) if labels is not None else [None] * len(images)
        if len(labels) != len(images):
            raise UsageError(f"labels must be one an image but there are {len(labels)} of {len(images)} images.")
        wanted = Wanted(threshold, top, boxes=boxes, **more)
        require(batch_size >= 1, "batch_size must be at least 1", batch_size)
        self.check(wanted)
        return list(self._stream(zip(images, labels, strict=True), wanted, batch_size))

    def stream(self, images: Iterable[Any], batch_size: int = 32, **options: Any) -> Iterator[Localization]:
        """`predict` of any number of images, of which `batch_size` are held at once. `options` are `Wanted`'s."""
        require(batch_size >= 1, "batch_size must be at least 1", batch_size)
        wanted = Wanted(**options)
        self.check(wanted)
        return self._stream(((image, None) for image in images), wanted, batch_size)

    def _stream(self, pairs: Iterable[tuple[Any, Any]], wanted: Wanted, batch_size: int) -> Iterator[Localization]:
        first = 0
        for some in batched(pairs, batch_size):
            given = [None if label is None else (self.class_id(label),) for _, label in some]
            if wanted.top is not None and any(given):
                raise UsageError(f"labels and top exclude each other but got top={wanted.top} and labels.")
            found = self.localize([self.prepare(pixels_of(image)) for image, _ in some], wanted, given)
            for number, ((image, _), own) in enumerate(zip(some, found, strict=True), first):
                path = str(image) if isinstance(image, PATHS) else None
                yield from (dataclasses.replace(one, image=number, path=path) for one in own)
            first += len(some)

    def class_id(self, label: str | int) -> int:
        """The index of a class by name or index. Raises `UsageError` with the nearest name."""
        if isinstance(label, str):
            if label not in self.classes:
                raise unknown("class of the model", label, self.classes)
            return self.classes.index(label)
        require(0 <= label < len(self.classes), f"a label is a name or 0..{len(self.classes) - 1}", label)
        return int(label)

    def prepare(self, pixels_CHW: torch.Tensor) -> Prepared:
        """Pixels, uint8 RGB [3, H, W], as the network is shown them."""
        return prepare(pixels_CHW, self.protocol, self.needs_stored)

    @as_models_are_read()
    def localize(
        self, images: Sequence[Prepared], wanted: Wanted, given: Sequence[Sequence[int] | None]
    ) -> list[list[Localization]]:
        """What is in each of some prepared images; `given` are their classes where they are known."""
        found: list[list[Localization]] = [[] for _ in images]
        shapes = [image.shape for image in images]
        for shape in dict.fromkeys(shapes):
            at = [i for i, own in enumerate(shapes) if own == shape]
            batch = self._localize([images[i] for i in at], wanted, [given[i] for i in at])
            for i, own in zip(at, batch, strict=True):
                found[i] = [dataclasses.replace(one, image=i) for one in own]
        return found

    def _localize(
        self, images: Sequence[Prepared], wanted: Wanted, given: Sequence[Sequence[int] | None]
    ) -> list[list[Localization]]:
        """`localize` of images of one shape."""
        device = next(self.method.parameters()).device
        seen_BCHW = torch.stack([image.image_CHW for image in images])
        with torch.no_grad():
            output = self.method(normalize(seen_BCHW, device, dtype_of(self.method)))
        scores_BK = (output.logits_BK.sigmoid() if self.multilabel else output.logits_BK.softmax(1)).cpu()
        wanted_BK = chosen_classes(scores_BK, self.classes, self.multilabel, wanted, given)
        image_N, class_N = wanted_BK.nonzero(as_tuple=True)
        one_each = bool((wanted_BK.sum(1) == 1).all())
        maps = self._maps(images, image_N, class_N, output if one_each else None)
        found: list[list[Localization]] = [[] for _ in images]
        for raw_HW, i, label in zip(maps, image_N.tolist(), class_N.tolist(), strict=True):
            seen = Seen(images[i].size_wh, label, given[i] is not None, int(scores_BK[i].argmax()))
            found[i] += self._objects(raw_HW, seen, float(scores_BK[i, label]), wanted)
        return found

    def _maps(
        self, images: Sequence[Prepared], image_N: torch.Tensor, class_N: torch.Tensor, output: Any = None
    ) -> list[np.ndarray]:
        """Raw maps of pairs of an image, by its number, and a class."""
        seen = [images[i] for i in image_N.tolist()]
        batch = SimpleNamespace(
            images_BCHW=torch.stack([image.image_CHW for image in seen]),
            stored_BCHW=torch.stack([image.stored_CHW for image in seen]) if self.needs_stored else None,
        )
        device = next(self.method.parameters()).device
        return list(plain(read_maps(
            self.method, self.readout, batch, class_N, self.choice.readout, self.protocol, output=output, device=device
        )))  # fmt: skip

    def _objects(self, raw_HW: np.ndarray, seen: Seen, score: float, wanted: Wanted) -> Iterator[Localization]:
        """The boxes of a raw map, largest first; an item without a box if there is none."""
        map_HW, frame = normalised_map(raw_HW, self.protocol, seen.size_wh), Frame.of(seen.size_wh, self.protocol)
        mask_HW, used, reason = self._mask(raw_HW, seen, score, wanted)
        nothing = Localization(
            0, None, *seen.size_wh, self.classes[seen.label], seen.label, "given" if seen.given else "predicted",
            self.classes[seen.predicted], score, score, None, 0, used, reason, map_HW, None, frame,
        )  # fmt: skip
        if not mask_HW.any():
            return iter([nothing])
        several = wanted.boxes == "all"
        parts = components(mask_HW, self.protocol) if several else [largest(mask_HW, self.protocol)]
        found: list[Localization] = []
        for part_HW in itertools.islice(parts, wanted.max_det):
            box = frame.box(extent(part_HW))
            if (box[2] - box[0]) * (box[3] - box[1]) >= wanted.min_area * nothing.width * nothing.height:
                mean = float(map_HW[part_HW].mean()) if several else 1.0
                found.append(dataclasses.replace(
                    nothing, box=box, score=score * mean, rank=len(found), reason="", cells_HW=part_HW
                ))  # fmt: skip
        small = f"no box over --min-area {wanted.min_area:g}"
        return iter(found or [dataclasses.replace(nothing, reason=small)])

    def _mask(
        self, raw_HW: np.ndarray, seen: Seen, score: float, wanted: Wanted
    ) -> tuple[np.ndarray, float | None, str]:
        """The object's cells, the threshold they were cut at, and why there are none where there are none."""
        nothing_HW = np.zeros(self.protocol.map_size(seen.size_wh)[::-1], bool)
        if not seen.given and score < (wanted.conf or 0):
            return nothing_HW, None, f"no class over --conf {wanted.conf:g}"
        if is_flat(raw_HW):
            return nothing_HW, None, "flat map"
        rule = self.threshold if wanted.threshold is None else wanted.threshold
        return *object_mask(raw_HW, rule, self.protocol, seen.size_wh), "empty mask"


def chosen_classes(
    scores_BK: torch.Tensor,
    classes: Sequence[str],
    multilabel: bool,
    wanted: Wanted,
    given: Sequence[Sequence[int] | None],
) -> torch.Tensor:
    """Which classes of each image are looked at, bool [B, K]: the given ones, else the most probable, one at least."""
    if wanted.classes:
        scores_BK = scores_BK.masked_fill(torch.tensor([label not in wanted.classes for label in classes]), -1)
    top = wanted.top or (len(classes) if multilabel else 1)
    order_BK = scores_BK.sort(dim=1, descending=True, stable=True).indices
    chosen_BK = torch.zeros_like(scores_BK, dtype=torch.bool).scatter(1, order_BK[:, :top], True)
    over = 0.5 if multilabel and wanted.top is None else 0.0
    chosen_BK &= scores_BK > over if wanted.conf is None else scores_BK >= wanted.conf
    chosen_BK.scatter_(1, order_BK[:, :1], True)
    for row, own in enumerate(given):
        if own is not None:
            chosen_BK[row] = False
            chosen_BK[row, list(own)] = True
    return chosen_BK


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one maybe shorter."""
    rest = iter(items)
    while some := list(itertools.islice(rest, size)):
        yield some


@dataclass(frozen=True)
class ModelFiles:
    """What a model is made of: bytes, which travel to any process."""

    weights: bytes
    description: bytes

    @property
    def sha256(self) -> str:
        """What tells this model from every other."""
        return hashlib.sha256(self.weights + self.description).hexdigest()


def load_model(folder: Store, device: torch.device | str = "cpu") -> Model:
    """The model in a sealed `final` folder. Raises `DataError` if a file is missing or altered."""
    return assemble(sealed_files(folder), device)


def sealed_files(folder: Store) -> ModelFiles:
    """The files of the model in a sealed folder. Raises `DataError` if one is missing or altered."""
    files = read_sealed(folder, WEIGHTS, DESCRIPTION)
    return ModelFiles(files[WEIGHTS], files[DESCRIPTION])


def load_model_files(folder: Path) -> Model:
    """The model whose two files lie in a local `folder`, as MLflow hands them out."""
    return assemble(local_files(folder))


def local_files(folder: Path) -> ModelFiles:
    """The files of the model in a local folder that bears no seal of ours: MLflow has its own."""
    return ModelFiles((folder / WEIGHTS).read_bytes(), (folder / DESCRIPTION).read_bytes())


def assemble(files: ModelFiles, device: torch.device | str = "cpu") -> Model:
    """The model that `files` hold. Raises `DataError` for those of another version, or that are damaged."""
    try:
        description = json.loads(files.description)
        newer = description.get("format", FORMAT) > FORMAT
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"The model's {DESCRIPTION} is damaged: {error}.") from error
    if newer:
        raise DataError(
            f"The model's {DESCRIPTION} has format {description['format']}; this code reads {FORMAT}: use a newer wsol."
        )
    if missing := {"train", "classes", "choice", "multilabel"} - description.keys():
        raise DataError(
            f"The model's description lacks {', '.join(sorted(missing))}: another version of this code wrote it. "
            "Train it again, or use that version."
        )
    config = from_dict(TrainConfig, {**description["train"], "weights": None})
    classes = tuple(description["classes"])
    method = build_method(dataclasses.replace(config, weights=LATER), len(classes))
    try:
        method.load_state_dict(safetensors.torch.load(files.weights))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise DataError(f"The model's {WEIGHTS} does not hold its tensors: {str(error).splitlines()[0]}") from error
    choice = Choice.from_dict(description["choice"])
    return Model(method.eval().to(device), config, classes, description["multilabel"], choice, description)
