"""IRN's training on confident labels, and the finished boundary network."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from wsol_models.segmentation import irn
from wsol_models.segmentation.losses import nearest
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.segmentation import station
from wsol_pipeline.segmentation.crops import Cropping, CropReader
from wsol_pipeline.segmentation.fit import Schedule, Sums, digest
from wsol_pipeline.segmentation.options import IrnOptions
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.loop import World
from wsol_pipeline.training.model import BACKBONE

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class IrnTask:
    """IRN on the confident labels of finished `seeds`."""

    data: str
    seeds: str  # uri
    seal: str
    options: IrnOptions
    seed: int
    start: str = ""  # folder of a finished model, whose backbone it begins with

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.options.irn_epochs, self.options.irn_momentum)

    @property
    def identity(self) -> str:
        return digest({"seal": self.seal, "seed": self.seed, **_trained(self.options)})

    def learner(self, device: torch.device) -> "IrnLearner":
        return IrnLearner(self, device)


def _trained(options: IrnOptions) -> dict[str, Any]:
    """The options that the boundary network depends on."""
    names = ("backbone", "weights", "irn_epochs", "irn_batch", "irn_lr", "irn_momentum", "irn_crop")
    return {name: asdict(options)[name] for name in names}


def started(task: IrnTask) -> irn.Network:
    """The network before its training."""
    if not task.start:
        return irn.build(task.options.backbone, task.options.weights)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / BACKBONE
        weights.write_bytes(read_sealed(Store.at(task.start), BACKBONE)[BACKBONE])
        return irn.build(task.options.backbone, str(weights))


class IrnLearner:
    """The boundary branch; displacements, on which no mask depends, are left out."""

    def __init__(self, task: IrnTask, device: torch.device) -> None:
        torch.manual_seed(task.seed)
        self.options = task.options
        self.model = started(task).to(device)
        split = open_dataset(task.data).train
        how = Cropping(task.options.irn_crop, (0.5, 1.5), smooth=Image.Resampling.BICUBIC, anywhere=True)
        plan = split.plan(task.options.irn_batch, task.seed, drop_last=True)
        seeds = station.sealed_as(Store.at(task.seeds), [task.seal], "seeds")
        self.reader = CropReader(split, seeds, "confident", how, plan)

    def groups(self) -> list[dict[str, Any]]:
        branch = list(self.model.boundary.parameters())
        return [{"params": branch, "lr": self.options.irn_lr, "weight_decay": WEIGHT_DECAY}]

    def sums(self, outputs: tuple[Tensor, Tensor | None], labels_BHW: Tensor) -> Sums:
        logits_BHW, _ = outputs
        return irn.boundary_sums(logits_BHW, nearest(labels_BHW, logits_BHW.shape[1:]))

    def loss(self, sums: Sums) -> Tensor:
        return irn.boundary_loss(sums)

    def validate(self, world: World) -> dict[str, Any]:
        """Nothing: masks are judged after the walk."""
        return {}

    def files(self, val: Mapping[str, Any]) -> dict[str, bytes]:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.model.state_dict().items()}
        told = {"kind": "irn", "backbone": self.options.backbone, "options": _trained(self.options)}
        return {WEIGHTS: safetensors.torch.save(tensors), DESCRIPTION: json.dumps(told, indent=1).encode()}


def load_boundaries(folder: Store, device: str = "cpu") -> irn.Network:
    """The finished boundary network in a sealed folder."""
    files = read_sealed(folder)
    network = irn.build(json.loads(files[DESCRIPTION])["backbone"])
    network.load_state_dict(safetensors.torch.load(files[WEIGHTS]))
    return network.eval().to(device)
