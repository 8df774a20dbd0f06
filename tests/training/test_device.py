"""Steps and readouts on a pretended GPU: on one device, with the values of a CPU, and without making the host wait."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import wsol_models
from tests.twin import Twin, moved, pretended
from wsol_models import bcam, readouts
from wsol_models._backbones import BACKBONES
from wsol_pipeline.data.reader import Batch
from wsol_pipeline.evaluation import evaluate, labelfree
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.images import normalize
from wsol_pipeline.protocol import Role
from wsol_pipeline.training import checkpoint, loop
from wsol_pipeline.training.arithmetic import arithmetic
from wsol_pipeline.training.config import Recipe, TrainConfig
from wsol_pipeline.training.guard import Guard
from wsol_pipeline.training.optim import build_optimizer

K, B, SIDE = 6, 4, 64
CUDA = "cuda:0"
SAMPLER = 24  # waits of DA-WSOL's at most: whether clusters have settled, and once which they are


@pytest.fixture
def waits(monkeypatch):
    with pretended(monkeypatch) as counted:
        normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), CUDA)  # makes what a process makes once
        yield counted


def a_batch(several: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images_BCHW = torch.randint(0, 256, (B, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    labels_B = torch.randint(0, K, (B,), generator=generator)
    labels = F.one_hot(labels_B, K).float().index_fill(1, torch.tensor(0), 1) if several else labels_B
    return Batch([f"image {i}" for i in range(B)], images_BCHW, labels, None, np.full((B, 2), SIDE), B)


def a_run(name: str, device: str, backbone: str = "tiny", options=None, **config) -> SimpleNamespace:
    """What `train_step` looks at, of a network with the same weights on either device."""
    torch.manual_seed(0)
    config = TrainConfig(
        method=name, backbone=backbone, image_size=SIDE, resize_size=SIDE, recipe=Recipe(clip_norm=1.0, batch_size=B),
        **config,
    )  # fmt: skip
    method = wsol_models.build(name, backbone=backbone, **{"num_classes": K, **(options or {})})
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)
    method = moved(method) if device == CUDA else method
    optimizer, device = build_optimizer(method, config.recipe), torch.device(device)
    return SimpleNamespace(
        config=config,
        world=loop.World(device=device),
        arithmetic=arithmetic(config, device),
        method=method.train(),
        model=method,
        optimizer=optimizer,
        guard=Guard(optimizer),
        progress=loop.Progress(loop.Position(), [], {}),
        plan=SimpleNamespace(num_batches=10, samples=100),
    )


def steps(run: SimpleNamespace, batch: Batch, count: int = 2) -> float:
    """Train some steps in an epoch where every term has begun; their summed loss."""
    for _ in range(count):
        loop.train_step(run, 3, batch)
    return float(run.progress.sums["loss"])


STEPS = [(name, "tiny", {}) for name in wsol_models.methods()]
OTHERS = [
    ("cam", "resnet18", {}), ("bas", "mobilenet_v2", {}), ("dawsol", "tiny", {"uda": "dann"}),
    ("bas", "tiny", {"mask": "image"}),
]  # fmt: skip


@pytest.mark.parametrize(("precision", "several"), [("float32", False), ("bfloat16", True)])
@pytest.mark.parametrize(("name", "backbone", "options"), [*STEPS, *OTHERS])
def test_a_step_stays_on_its_device_and_makes_no_host_wait(name, backbone, options, precision, several, waits):
    config = {"precision": precision, "channels_last": precision == "bfloat16"}
    on_cpu = steps(a_run(name, "cpu", backbone, options, **config), a_batch(several))
    run = a_run(name, CUDA, backbone, options, **config)
    steps(run, a_batch(several), 1)  # the optimizer's first step is looked at as it is made
    waits.clear()
    loop.train_step(run, 3, a_batch(several))
    others = {what: count for what, count in waits.items() if what != "a flag of the step before"}
    if name == "dawsol":
        assert all("dawsol.py" in what for what in others)
        assert sum(others.values()) <= SAMPLER
    else:
        assert not others
    assert float(run.progress.sums["loss"]) == pytest.approx(on_cpu, rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_teacher_is_where_its_method_is_and_its_scores_are_float32(precision, waits, tmp_path, monkeypatch):
    torch.manual_seed(5)
    save_file(BACKBONES["tiny"].network().state_dict(), tmp_path / "tiny.safetensors")
    options = {"soft_topk": 5, "weights": str(tmp_path / "tiny.safetensors"), "num_classes": 1000}
    config = {"precision": precision, "channels_last": True}
    on_cpu = a_run("bcam", "cpu", "tiny", options, **config)
    [teacher] = on_cpu.method._teacher
    assert teacher.network.block1[0].weight.is_contiguous(memory_format=torch.channels_last)
    loss = steps(on_cpu, a_batch())
    told, labels = [], bcam.soft_labels
    monkeypatch.setattr(bcam, "soft_labels", lambda logits, *more: told.append(logits.dtype) or labels(logits, *more))
    run = a_run("bcam", CUDA, "tiny", options, **config)
    for of in run.method._teacher:
        moved(of)
    steps(run, a_batch(), 1)
    waits.clear()
    loop.train_step(run, 3, a_batch())
    assert set(waits) <= {"a flag of the step before"}
    assert set(told) == {torch.float32}
    assert float(run.progress.sums["loss"]) == pytest.approx(loss, rel=1e-5)
    assert on_cpu.method.double()._teacher[0].head.weight.dtype == torch.float64


def test_a_checkpoint_leaves_the_device_by_one_wait_of_another_thread_and_in_its_layout(waits):
    """A fused optimizer refuses momentum that lies otherwise than its parameter."""
    run = a_run("cam", CUDA, channels_last=True)
    steps(run, a_batch(), 1)
    state = {"method": run.method.state_dict(), "optimizer": run.optimizer.state_dict(), "rows": 4}
    waits.clear()
    arrives = checkpoint._to_host(state)
    assert not waits
    found = arrives()
    assert sum(waits.values()) == 1
    pairs = list(zip(checkpoint._tensors(found), checkpoint._tensors(state), strict=True))
    assert any(there.is_contiguous(memory_format=torch.channels_last) for _, there in pairs if there.ndim == 4)
    for here, there in pairs:
        assert not isinstance(here, Twin)
        assert here.stride() == there.stride()
        assert torch.equal(here, there.held)
    assert found["method"]._metadata == state["method"]._metadata
    assert found["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert found["rows"] == 4


@dataclasses.dataclass(frozen=True)
class Rows:
    """One batch of validation images, each with a box of each of its classes."""

    several: bool = False
    role, box_convention, has_masks, num_classes, num_rows = Role.VAL, "inclusive0", False, K, B

    def with_stored(self) -> "Rows":
        return self

    def batches(self):
        batch = a_batch(self.several)
        classes = [row.nonzero()[:, 0].numpy() if self.several else np.array([int(row)]) for row in batch.labels_B]
        boxes = [np.tile(np.array([[4, 4, 30, 30]], np.float32), (len(of), 1)) for of in classes]
        yield dataclasses.replace(
            batch, boxes=boxes, box_labels=classes, whole_BCHW=batch.images_BCHW, stored_BCHW=batch.images_BCHW
        )


READ = [
    ("cam", "cam", {}), ("cam", "gradcam", {"stages": "all"}), ("cam", "gradcampp", {}), ("cam", "pcs", {}),
    ("cam", "bagcams", {"stages": "all", "weightings": ("ours1", "ours2", "ours3")}),
    ("cam", "bagcams", {"formula": "paper", "score": "log_softmax", "guided_relu": False}), ("cam", "pyramid", {}),
    ("bas", "topk", {}), ("bas", "suppression", {}), ("bcam", "bcam", {}),
    ("bcam", "bcam", {"readings": ("grad_x_meangrad/paper", "plain_relu"), "class_agnostic": True}),
    ("mldfr", "pyramid", {"over": "topk", "mirror": True}), ("acol", "own", {}), ("acol", "topk", {}),
    ("spg", "cam", {}), ("dawsol", "bagcams", {}), ("has", "cam", {}), ("cutmix", "cam", {}), ("adl", "cam", {}),
]  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])  # of a search, and of the epochs between
@pytest.mark.parametrize(("name", "readout", "options"), READ)
def test_a_search_stays_on_its_device_and_makes_the_host_wait_once_a_batch(name, readout, options, precision, waits):
    several = readout in ("topk", "bcam", "cam")  # images of several classes too
    counted = {}
    for device in ("cpu", CUDA):
        torch.manual_seed(0)
        method = wsol_models.build(name, backbone="tiny", num_classes=K).to(memory_format=torch.channels_last)
        method = moved(method) if device == CUDA else method
        waits.clear()
        rules = protocol("wsol-v1", image_size=SIDE, resize_size=SIDE)
        with arithmetic(TrainConfig(precision=precision), torch.device(device)).autocast():
            counted[device] = evaluate.count(
                method, readouts.readout(readout, **options), Rows(several), rules, device=device
            )
    assert sum(waits.values()) <= 1, dict(waits)
    if readout != "pyramid":  # a GPU resizes bytes in float, and rounds them
        assert counted["cpu"].to_dict() == counted[CUDA].to_dict()


class Labels:
    """Those rows as selectors without boxes are shown them."""

    role, num_rows = Role.VAL, B

    def with_stored(self) -> "Labels":
        return self

    def batches(self):
        yield a_batch()


@pytest.mark.parametrize("selector", [labelfree.Otsu(), labelfree.Area(0.5), labelfree.Evidence()])
def test_a_selector_without_boxes_makes_the_host_wait_once_a_batch(selector, waits):
    """The classifier's evidence once more a setting, for what it thinks of the image without the mask."""
    seen = {}
    for device in ("cpu", CUDA):
        torch.manual_seed(0)
        method = wsol_models.build("bas", backbone="tiny", num_classes=K)
        method = moved(method) if device == CUDA else method
        waits.clear()
        seen[device] = labelfree.observe(
            selector, method, readouts.readout("topk"), Labels(), protocol("wsol-v1", SIDE, SIDE),
            settings=range(1, K + 1), device=device,
        )  # fmt: skip
    evidence = isinstance(selector, labelfree.Evidence)
    assert sum(waits.values()) <= 1 + K * evidence, dict(waits)
    assert seen["cpu"].ids == seen[CUDA].ids
    for mine, theirs in zip(seen["cpu"].kept, seen[CUDA].kept, strict=True):
        np.testing.assert_allclose(np.hstack(mine), np.hstack(theirs), rtol=1e-6)
