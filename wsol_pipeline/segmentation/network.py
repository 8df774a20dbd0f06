"""A segmentation network that learns from pseudo masks, and is judged by true ones."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from wsol_models.segmentation import Network, build
from wsol_models.segmentation.deeplabv2 import MEAN_BGR
from wsol_models.segmentation.networks import NETWORKS, total
from wsol_pipeline.data.dataset import Dataset, Split, open_dataset
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.segmentation import scores, station
from wsol_pipeline.segmentation.crops import Cropping, CropReader
from wsol_pipeline.segmentation.fit import Schedule, Sums, digest
from wsol_pipeline.segmentation.make_seeds import read_images
from wsol_pipeline.segmentation.segmenter import DESCRIPTION, WEIGHTS, predict
from wsol_pipeline.segmentation.station import Part
from wsol_pipeline.storage import Store
from wsol_pipeline.training.loop import World

VAL = "val.json"
V2_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class SegmentTask:
    """A network on finished pseudo masks. `crop` px; `lr` of the backbone."""

    data: str
    masks: str
    seal: str
    network: str
    weights: str | None
    supervision: str
    epochs: int
    batch_size: int
    lr: float
    crop: int
    frozen_batch_norm: bool
    seed: int

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.epochs, every=10 if self.network.startswith("deeplabv2") else 1)

    @property
    def identity(self) -> str:
        return digest({name: value for name, value in vars(self).items() if name not in ("data", "masks")})

    @property
    def cropping(self) -> Cropping:
        """DeepLabV2 draws of five scales, pads with its own mean and at the right and lower side."""
        if not self.network.startswith("deeplabv2"):
            return Cropping(self.crop)
        return Cropping(self.crop, V2_SCALES, steps=True, fill=(MEAN_BGR[2], MEAN_BGR[1], MEAN_BGR[0]))

    def learner(self, device: torch.device) -> "SegmentLearner":
        return SegmentLearner(self, device)


class SegmentLearner:
    """Reads `pseudo_mask` and nothing else: a training image's true mask has no way in."""

    def __init__(self, task: SegmentTask, device: torch.device) -> None:
        torch.manual_seed(task.seed)
        self.task, self.dataset = task, open_dataset(task.data)
        self.model = build(
            task.network, len(self.dataset.classes), task.weights, supervision=task.supervision,
            frozen_batch_norm=task.frozen_batch_norm,
        ).to(device)  # fmt: skip
        found = station.sealed_as(Store.at(task.masks), [task.seal], "pseudo masks")
        plan = self.dataset.train.plan(task.batch_size, task.seed, drop_last=True)
        self.reader = CropReader(self.dataset.train, found, "pseudo_mask", task.cropping, plan)

    def groups(self) -> list[dict[str, Any]]:
        return self.model.groups(self.task.lr, self.model.entry.weight_decay)

    def sums(self, outputs: Mapping[str, Tensor], labels_BHW: Tensor) -> Sums:
        return self.model.losses(outputs, labels_BHW)

    def loss(self, sums: Sums) -> Tensor:
        return total(sums, self.model.is_multi_scale)

    def validate(self, world: World) -> dict[str, Any]:
        """Figures on validation, where it has masks; ranks count their own parts."""
        if not self.dataset.val.has_masks:
            return {}
        world.share_buffers(self.model)
        rows = self.dataset.val.num_rows
        part = Part("val", 0, rows * world.rank // world.size, rows * (world.rank + 1) // world.size)
        counted = sum(
            matrix for _, matrix in judged(self.model, self.dataset.val, part, len(self.dataset.classes), world)
        )
        matrix_LL = np.sum([np.asarray(matrix) for matrix in world.gather(counted)], axis=0)
        return scores.figures(matrix_LL, self.dataset.classes)

    def files(self, val: Mapping[str, Any]) -> dict[str, bytes]:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.model.state_dict().items()}
        told = {
            "kind": "segmentation network", "network": self.task.network, "classes": list(self.dataset.classes),
            "supervision": self.task.supervision, "dataset": self.dataset.fingerprint, "masks": self.task.seal,
            "training": {name: value for name, value in vars(self.task).items() if name not in ("data", "masks")},
        }  # fmt: skip
        return {WEIGHTS: safetensors.torch.save(tensors), DESCRIPTION: json.dumps(told, indent=1).encode(),
                VAL: json.dumps(val).encode()}  # fmt: skip


def judged(
    network: Network, split: Split, part: Part, num_classes: int, world: World | None = None
) -> Iterator[tuple[str, scores.Ints]]:
    """(id, confusion matrix) of each image of a part, whole and at its own size. The network sees no label of it."""
    for image in read_images(split, part):
        labels_HW = predict(network, image.pixels_HW3)
        if image.mask_HW is None:
            raise DataError(f"{split.uri} has no masks in its {split.role.value!r} split: nothing can be judged.")
        yield image.id, scores.confusion(image.mask_HW, labels_HW, num_classes)
        if world:
            world.beat()


def check_batch(task: SegmentTask, dataset: Dataset, workers: int) -> None:
    """Raise `UsageError` for a batch that a network's batch norm cannot be trained with."""
    least = min(task.batch_size, dataset.train.num_rows) // workers
    if least < 2 and NETWORKS[task.network].pools and not task.frozen_batch_norm:
        raise UsageError(
            f"{task.network} pools each image to one value, which batch norm cannot train with {least} image a worker: "
            "take a larger --batch-size, fewer --workers or --freeze-batch-norm."
        )
