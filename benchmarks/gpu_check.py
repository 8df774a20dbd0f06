"""What of the product is right on a GPU, and how fast: ten minutes on one, for the day there is one.

    python benchmarks/gpu_check.py --out DIR [--data IMPORTED] [--weights FILE] [--seconds 540] [--only steps,maps]
    python benchmarks/gpu_check.py --device cpu --quick        # the same program, where there is none

Sections run in the order of what one short run should yield, each in a process of its own: one that fails, crashes,
hangs or leaves the GPU unusable to its process is noted with what it had found, and the next goes on. The JSON is
written anew after each, so that a kill loses one section at most. Needs PyTorch, torchvision, numpy, OpenCV,
pyarrow, numba, torchmetrics and safetensors; neither Ray nor MLflow, and no S3 client. `--data` is a dataset that
`import_dataset.py` made, by default generated images. What has "ok": false is not as it has to be: then its section is
among the failed ones, and the exit code is 1.
"""

import argparse
import copy
import dataclasses
import functools
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import absent  # noqa: F401 - before whatever imports what it stands in for
import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import wsol_models
from wsol_models import bas, readouts
from wsol_pipeline.data.augment import Augmentation
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode_resize
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.reader import Batch
from wsol_pipeline.device import as_models_are_read
from wsol_pipeline.evaluation import evaluate
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.images import normalize
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.training import loop
from wsol_pipeline.training.arithmetic import arithmetic
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.compiling import compiled
from wsol_pipeline.training.config import Reading, Recipe, TrainConfig
from wsol_pipeline.training.guard import Guard, NonFiniteError
from wsol_pipeline.training.optim import build_optimizer

Found = dict[str, Any]
READ = [
    ("cam", "cam", {}), ("cam", "gradcam", {}), ("cam", "gradcampp", {}), ("cam", "pcs", {}),
    ("cam", "bagcams", {"stages": "all", "weightings": ("ours1", "ours2", "ours3")}), ("bas", "topk", {}),
    ("bas", "suppression", {}), ("bcam", "bcam", {}), ("acol", "own", {}), ("mldfr", "topk", {}),
]  # fmt: skip
COMPILED = ("cam", "bas", "bcam", "mldfr", "acol", "spg")
Measure = Callable[["Check"], Iterator[Found]]  # gives what it finds piece by piece
SECTIONS: dict[str, tuple[Measure, float]] = {}  # what is run, and seconds below which it is not
SHARE = 0.25  # of all the time that one section may take, but for the last
FORK, SPAWN = (multiprocessing.get_context(how) for how in ("fork", "spawn"))


def section(seconds: float = 0.0) -> Callable[[Measure], Measure]:
    def add(measure: Measure) -> Measure:
        SECTIONS[measure.__name__] = measure, seconds
        return measure

    return add


@dataclasses.dataclass(frozen=True)
class Check:
    """What is checked where, and until when."""

    device: torch.device
    quick: bool
    data: str | None
    weights: str | None
    until: float

    @property
    def backbone(self) -> str:
        return "tiny" if self.quick else "resnet50"

    @property
    def side(self) -> int:
        return 64 if self.quick else 224

    @property
    def classes(self) -> int:
        return 10 if self.quick else 200

    @property
    def batch(self) -> int:
        return 4 if self.quick else 32

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def per_second(self, items: int, work: Callable[[], object], times: int = 1) -> float:
        """Items that `work` does in a second, after one turn that is not counted."""
        work()
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return items * times / (time.perf_counter() - start)


def a_batch(count: int, classes: int, side: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(classes, (count,), generator=generator)
    images_BCHW = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    boxes = [np.array([[5, 5, 50, 50]], np.float32)] * count
    return Batch(
        [f"{seed}-{i}" for i in range(count)], images_BCHW, labels_B, boxes, np.full((count, 2), side), count,
        box_labels=[np.array([int(label)]) for label in labels_B], whole_BCHW=images_BCHW,
    )  # fmt: skip


def a_run(
    name: str, backbone: str, side: int, classes: int, device: Any, precision: str = "float32", batch: int = 4,
    last: bool = False, deterministic: bool = False,
) -> Any:  # fmt: skip
    """What `train_step` looks at; `last` lays channels last."""
    config = TrainConfig(
        method=name, backbone=backbone, image_size=side, resize_size=side, precision=precision, channels_last=last,
        deterministic=deterministic, recipe=Recipe(learning_rate=1e-3, batch_size=batch),
    )  # fmt: skip
    computes = arithmetic(config, torch.device(device))
    computes.settle()
    torch.manual_seed(0)
    method = wsol_models.build(name, backbone=backbone, num_classes=classes).to(device).train()
    method = method.to(memory_format=torch.channels_last) if last else method
    optimizer, device = build_optimizer(method, config.recipe), torch.device(device)
    return SimpleNamespace(
        config=config, world=loop.World(device=device), method=method, model=method,
        optimizer=optimizer, guard=Guard(optimizer), arithmetic=computes,
        progress=loop.Progress(Position(), [], {}),
        plan=SimpleNamespace(num_batches=100, samples=10**6),
    )  # fmt: skip


def steps(run: Any, count: int, batch: int, classes: int, side: int, first: int = 0) -> list[float]:
    """Train some steps of an epoch in which every term has begun; the loss of each."""
    losses = []
    for number in range(first, first + count):
        run.progress = loop.Progress(Position(1, number * batch), [], {})
        loop.train_step(run, 1, a_batch(batch, classes, side, number))
        losses.append(run.progress.sums["loss"] / batch)
    return [float(loss) for loss in losses]


def flat(run: Any) -> Tensor:
    return torch.cat([value.detach().double().cpu().flatten() for value in run.method.state_dict().values()])


def apart(found: Tensor, expected: Tensor) -> float:
    """How far apart, relative to what is expected."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


@section()
def machine(check: Check) -> Iterator[Found]:
    yield {
        "gpu": torch.cuda.get_device_name() if check.is_cuda else "none",
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0], "cores": os.cpu_count(),
        "tf32 in convolutions": torch.backends.cudnn.allow_tf32,
        "tf32 in products": torch.backends.cuda.matmul.allow_tf32,
    }  # fmt: skip


@section()
def steps_equal(check: Check) -> Iterator[Found]:
    """Losses of two steps and how far they move the weights, against a CPU's; bfloat16 with channels last beside."""
    for name in wsol_models.methods():
        for backbone in ("tiny",) if check.quick else ("tiny", "resnet18"):
            on_cpu, here = (a_run(name, backbone, 64, 7, device) for device in ("cpu", check.device))
            start = flat(on_cpu)
            losses = [steps(run, 2, 4, 7, 64) for run in (on_cpu, here)]
            half = a_run(name, backbone, 64, 7, check.device, "bfloat16", last=True)
            in_half = steps(half, 2, 4, 7, 64)
            moved, in_bfloat16 = (apart(flat(run) - start, flat(on_cpu) - start) for run in (here, half))
            yield {f"{name}/{backbone}": {
                "loss": losses, "bfloat16 loss": in_half, "steps apart": moved, "bfloat16 steps apart": in_bfloat16,
                "ok": moved < 0.02 and abs(in_half[0] / losses[0][0] - 1) < 0.05,
            }}  # fmt: skip


@section()
def maps_equal(check: Check) -> Iterator[Found]:
    """The worst map of each readout's search, against a CPU's."""
    images_BCHW, classes_B = torch.randn(4, 3, 64, 64), torch.arange(4)
    for name, readout, options in READ:
        torch.manual_seed(0)
        method = wsol_models.build(name, backbone="tiny" if check.quick else "resnet18", num_classes=5).eval()
        there = copy.deepcopy(method).to(check.device)
        search = readouts.readout(readout, **options).search
        with as_models_are_read():
            pairs = zip(
                search(method, images_BCHW, classes_B),
                search(there, images_BCHW.to(check.device), classes_B.to(check.device)),
                strict=True,
            )
            worst = max(apart(here.float().cpu(), cpu.float()) for (_, cpu), (_, here) in pairs)
        yield {f"{name}/{readout}": {"apart": worst, "ok": worst < 1e-3}}


@section()
def waits(check: Check) -> Iterator[Found]:
    """Lines at which the host waits in a step, by the driver's own word."""
    for name in wsol_models.methods() if check.is_cuda else ():
        run = a_run(name, "tiny", 64, 7, check.device)
        steps(run, 1, 4, 7, 64)
        batch = a_batch(4, 7, 64, 9)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                loop.train_step(run, 1, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        lines = [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)]
        ok = not lines or name == "dawsol"  # whose clusters are looked at
        yield {name: {**{line: lines.count(line) for line in lines}, "ok": ok}}


@section()
def not_finite(check: Check) -> Iterator[Found]:
    """A NaN in the third step: told by the end of the fourth, weights as after the second."""
    run = a_run("bas", "tiny", 64, 7, check.device)
    steps(run, 2, 4, 7, 64)
    before = torch.cat([p.detach().cpu().flatten() for p in run.method.parameters()])
    hook = run.method.F1.register_forward_hook(lambda module, inputs, output: (output[0] * float("nan"), output[1]))
    told = ""
    try:
        steps(run, 1, 4, 7, 64, first=2)
        hook.remove()
        steps(run, 1, 4, 7, 64, first=3)
    except NonFiniteError as error:
        told = str(error)
    after = torch.cat([p.detach().cpu().flatten() for p in run.method.parameters()])
    named, untouched = "after 8 samples" in told, torch.equal(before, after)
    yield {"told": told, "names the step": named, "weights untouched": untouched, "ok": named and untouched}


class Plain(nn.Module):
    """A classifier that nothing is localized with: what the network alone costs."""

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__()
        self.net = getattr(torchvision.models, "resnet18" if backbone == "tiny" else backbone)(num_classes=classes)

    def forward(self, images_BCHW: Tensor, targets_B: Tensor) -> dict[str, Tensor]:
        return {"cls": nn.functional.cross_entropy(self.net(images_BCHW), targets_B)}


class Product(nn.Module):
    """A method and its losses."""

    def __init__(self, name: str, backbone: str, classes: int, **options: Any) -> None:
        super().__init__()
        self.method = wsol_models.build(name, backbone=backbone, num_classes=classes, **options)
        self.losses = wsol_models.method_module(name).losses

    def forward(self, images_BCHW: Tensor, targets_B: Tensor) -> dict[str, Tensor]:
        return self.losses(self.method(images_BCHW, targets_B), self.method.config)


class Twice(Product):
    """BAS straightforwardly: the maps of all classes, and the masked pass through live weights."""

    def forward(self, images_BCHW: Tensor, targets_B: Tensor) -> dict[str, Tensor]:
        method = self.method
        features_BCHW, _ = method.F1(images_BCHW)
        maps_BKHW = torch.sigmoid(method.classifier_loc(features_BCHW))
        foreground_BHW = maps_BKHW[torch.arange(len(targets_B), device=targets_B.device), targets_B]
        hidden_BCHW, class_maps_BKHW = method.classifier_cls(method.F2(features_BCHW)[0])
        left_BCHW = features_BCHW.detach() * (1 - foreground_BHW[:, None])
        _, background_BKHW = method.classifier_cls(method.F2(left_BCHW)[0])
        output = bas.TrainingOutput(
            class_maps_BKHW.mean((2, 3)), hidden_BCHW, targets=targets_B, classes_B=targets_B,
            class_maps_BKHW=class_maps_BKHW, foreground_BHW=foreground_BHW,
            background_logits_BK=background_BKHW.mean((2, 3)),
        )  # fmt: skip
        return self.losses(output, method.config)


def timed(
    check: Check, network: nn.Module, batch: int, half: bool = True, last: bool = True, fused: bool = True,
    late: bool = True,
) -> Found:  # fmt: skip
    """Whole steps on pixels that lie on the device: images/s, milliseconds of which the host's, peak memory in GB,
    seconds and loss of the first one."""
    network = network.to(check.device).train()
    layout = torch.channels_last if last else torch.contiguous_format
    network = network.to(memory_format=layout)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, nesterov=True,
        fused=(fused and check.is_cuda) or None,
    )  # fmt: skip
    guard = Guard(optimizer)
    bytes_BCHW = torch.randint(256, (batch, 3, check.side, check.side), dtype=torch.uint8, device=check.device)
    targets_B = torch.randint(check.classes, (batch,), device=check.device)

    def step() -> Tensor:
        images_BCHW = normalize(bytes_BCHW, check.device, layout=layout)
        with torch.autocast(check.device.type, torch.bfloat16, enabled=half):
            loss = torch.stack(list(network(images_BCHW, targets_B).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        if not late:
            float(norm)
        guard.step(norm, lambda: "not finite")
        return loss.detach()

    if check.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    loss = float(step())
    first = time.perf_counter() - start
    for _ in range(2):
        step()
    check.wait()
    turns, start = 2 if check.quick else 12, time.perf_counter()
    for _ in range(turns):
        step()
    host = time.perf_counter() - start
    check.wait()
    whole = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if check.is_cuda else 0.0
    milliseconds = {"ms": 1e3 * whole / turns, "host ms": 1e3 * host / turns}
    begun = {"first s": first, "first loss": loss}
    return {"images/s": turns * batch / whole, **milliseconds, "peak GB": peak, **begun}


@section(60)
def throughput(check: Check) -> Iterator[Found]:
    """Methods against a plain classifier and BAS's double pass; and what each setting of the profile is worth."""
    torch.backends.cudnn.benchmark = True
    backbone, classes = check.backbone, check.classes
    networks: dict[str, Callable[[], nn.Module]] = {
        "plain": lambda: Plain(backbone, classes),
        "cam small": lambda: Product("cam", backbone, classes, large=False),
        **{name: functools.partial(Product, name, backbone, classes) for name in ("cam", "bas", "bcam", "mldfr")},
        "bas twice": lambda: Twice("bas", backbone, classes),
    }
    for name, make in networks.items():
        yield {name: timed(check, make(), check.batch)}
    for name in () if check.quick else ("plain", "cam", "bas"):
        yield {f"{name}, 128 images": timed(check, networks[name](), 128)}
    plain = {"half": False, "last": False, "fused": False, "late": False}
    for name in ("float32", "half", "last", "fused", "late"):
        plain |= {name: True} if name in plain else {}
        yield {f"bas, up to {name}": timed(check, networks["bas"](), check.batch, **plain)}


@section(60)
def compiled_steps(check: Check) -> Iterator[Found]:
    """`--compile` against none: a small network in float32, whose first losses are to agree, and steps as the profile
    has them. Kernels take a minute a method to make: `--only compiled_steps --seconds 3000` has time for all."""
    until = time.monotonic() + SHARE * check.left / 2  # one that is begun then still ends
    # kernels of an earlier run would take no time
    with tempfile.TemporaryDirectory() as own, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=own):
        for name in COMPILED[:2] if check.quick else COMPILED:
            if time.monotonic() > until:
                yield {name: "left out: no time"}
                continue
            with as_models_are_read():
                found = {"float32": _both_ways(check, name, "tiny", half=False)}
            eager, made = (found["float32"][kind]["first loss"] for kind in ("eager", "compiled"))
            if check.is_cuda:
                found["profile"] = _both_ways(check, name, check.backbone, half=True)
            yield {name: {"ok": abs(made / eager - 1) < 1e-4, **found}}


def _both_ways(check: Check, name: str, backbone: str, half: bool) -> Found:
    """Eager and compiled steps of a method, from the same weights on the same images."""
    found = {}
    for kind in ("eager", "compiled"):
        torch.manual_seed(0)
        network = Product(name, backbone, check.classes)
        if kind == "compiled":
            network.method = compiled(network.method, network.method, check.device)
        found[kind] = timed(check, network, check.batch, half, half)
    return found


@section(30)
def kernels(check: Check) -> Iterator[Found]:
    """Kernels of a step and how much of its time they run."""
    from torch.profiler import ProfilerActivity, profile

    for name in ("cam", "bas", "bcam") if check.is_cuda else ():
        run = a_run(name, check.backbone, check.side, check.classes, check.device, "bfloat16", check.batch, last=True)
        steps(run, 3, check.batch, check.classes, check.side)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            start = time.perf_counter()
            steps(run, 3, check.batch, check.classes, check.side, first=3)
            check.wait()
            wall = time.perf_counter() - start
        events = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(event.device_time for event in events) / 1e6 / wall
        yield {name: {"kernels": len(events) / 3, "busy": busy, "ms": 1e3 * wall / 3}}


@section(60)
def training(check: Check) -> Iterator[Found]:
    """The loop as a trial runs it: input, steps, validation with a search at the end, checkpoints."""
    config = _trained_config(check, "bas", epochs=1 if check.quick else 2)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        records = _trained(check, config, folder)
        wall = time.perf_counter() - start
    names = ("seconds", "device_seconds", "images_per_second", "value")
    epochs = {f"epoch {r['epoch']}": {name: r[name] for name in names} for r in records}
    yield {**epochs, "wall s": wall, "beyond training s": wall - sum(r["seconds"] for r in records)}


def _trained_config(check: Check, method: str, epochs: int, seed: int = 0) -> TrainConfig:
    backbone = "mobilenet_v2" if check.weights else check.backbone
    recipe = Recipe(epochs=epochs, batch_size=check.batch, learning_rate=1e-3, clip_norm=1.0)
    return TrainConfig(
        method, backbone, check.weights, readout="topk" if method == "bas" else "cam", recipe=recipe, seed=seed,
        image_size=check.side, resize_size=check.side + 8, precision="bfloat16", channels_last=True,
    )  # fmt: skip


def _trained(check: Check, config: TrainConfig, folder: str) -> list[loop.Record]:
    data, world = dataset(check, folder), loop.World(device=check.device)
    pixels = Reading("cached", str(Path(check.data or folder).parent / "gpu-check-pixels"))
    return list(loop.train(config, data, CheckpointStore(Store.at(f"{folder}/trial"), 1), world, pixels))


def dataset(check: Check, folder: str) -> Dataset:
    """What `--data` names, else generated images."""
    if check.data:
        return open_dataset(check.data)
    options = synthetic.Options(train=64 if check.quick else 2048, val=16 if check.quick else 256, test=8)
    import_dataset(synthetic.read(Path(), options), Store.at(f"{folder}/data"), name="generated", origin={})
    return open_dataset(f"{folder}/data")


@section(40)
def resumed(check: Check) -> Iterator[Found]:
    """Whether two runs under --deterministic, and one that goes on from a checkpoint, are equal to the last bit; else
    which operation cannot be."""
    for name in wsol_models.methods():
        try:
            yield {name: _resumed(check, name)}
        except RuntimeError as error:  # the other methods are of interest all the same
            yield {name: {"refused": str(error), "ok": False}}


def _resumed(check: Check, name: str) -> Found:
    make = functools.partial(a_run, name, "tiny", 64, 7, check.device, "bfloat16", last=True, deterministic=True)
    whole, again, begun, gone_on = (make() for _ in range(4))
    for run in (whole, again):
        steps(run, 4, 4, 7, 64)
    steps(begun, 2, 4, 7, 64)
    with tempfile.TemporaryDirectory() as folder:
        state = {"method": begun.method.state_dict(), "optimizer": begun.optimizer.state_dict()}
        saved = _saved(CheckpointStore(Store.at(folder), 1), Position(1, 8), state)
    gone_on.method.load_state_dict(saved["method"])
    gone_on.optimizer.load_state_dict(saved["optimizer"])
    steps(gone_on, 2, 4, 7, 64, first=2)
    twice, resumed = (torch.equal(flat(whole), flat(run)) for run in (again, gone_on))
    return {
        "two runs equal": twice, "resumed equal": resumed, "apart": apart(flat(gone_on), flat(whole)),
        "ok": twice and resumed,
    }  # fmt: skip


def _saved(store: CheckpointStore, position: Position, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint as a thread of its own writes it and another process finds it."""
    with store.saving(position, state) as seal:
        seal([])
    saved = store.newest()
    assert saved is not None
    return saved.state


@section(20)
def reading(check: Check) -> Iterator[Found]:
    """Images a second of one process: crops of cached pixels, decoded photographs; bytes to the device."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 3, 256, 256), np.uint8)
    hashes, sizes = hash_ids(map(str, range(256))), np.full((256, 2), 256)
    crop = Augmentation("crop", 256, 224, 0.08)
    yield {"crops/s": check.per_second(256, lambda: crop.apply(iter(pixels), hashes, sizes, 0, 1))}
    encoded = [torchvision.io.encode_jpeg(torch.from_numpy(image), 90).numpy().tobytes() for image in pixels[:32]]
    pairs = [(str(i), image) for i, image in enumerate(encoded)]
    yield {"decoded/s": check.per_second(32, lambda: list(decode_resize(pairs, 256)))}
    if check.is_cuda:
        pageable = torch.from_numpy(pixels)
        for kind, of in (("pageable", pageable), ("pinned", pageable.pin_memory())):
            times = check.per_second(1, functools.partial(of.to, check.device), 10)
            yield {f"{kind} GB/s": times * of.nbytes / 1e9}


class Rows:
    """Two batches of validation images."""

    role, has_masks, box_convention = Role.VAL, False, "inclusive0"

    def __init__(self, check: Check) -> None:
        self.check, self.num_classes, self.num_rows = check, check.classes, 2 * check.batch

    def batches(self) -> Iterator[Batch]:
        for seed in range(2):
            yield a_batch(self.check.batch, self.check.classes, self.check.side, seed)


def _search(check: Check) -> tuple[nn.Module, Callable[..., object]]:
    """BAS, and its search over `settings` of those rows, by default all k."""
    torch.manual_seed(0)
    method = wsol_models.build("bas", backbone=check.backbone, num_classes=check.classes).to(check.device).eval()
    rules = protocol("wsol-v1", check.side, check.side)
    search = functools.partial(
        evaluate.count, method, readouts.readout("topk"), Rows(check), rules, device=check.device
    )
    return method, search


@section(30)
def evaluator(check: Check) -> Iterator[Found]:
    """Maps scored a second: one setting and a search, by one thread in turn and by all beside the device."""
    (method, search), before = _search(check), torch.get_num_threads()
    for threads in (1, before):
        torch.set_num_threads(threads)
        for name, settings in (("one setting", [1]), ("search", None)):
            maps = 2 * check.batch * (1 if settings else check.classes)
            yield {f"{name}, {threads} threads": check.per_second(maps, functools.partial(search, settings=settings))}
    images_BCHW = torch.randn(check.batch, 3, check.side, check.side, device=check.device)
    with torch.no_grad():
        yield {"forward images/s": check.per_second(check.batch, lambda: method(images_BCHW), 3)}


@section(30)
def overlap(check: Check) -> Iterator[Found]:
    """A search whose maps are scored after each batch, and beside the next; how much of the shorter part is hidden."""
    method, search = _search(check)
    arguments = method, readouts.readout("topk"), Rows(check), protocol("wsol-v1", check.side, check.side)

    def maps_alone() -> None:
        for step in evaluate.walk(*arguments, device=check.device):
            for _, arrived in evaluate.parts_on_host(step, check.device):
                arrived()

    alone, beside = (1 / check.per_second(1, work) for work in (maps_alone, search))
    with mock.patch.object(evaluate, "open_parts", return_value=0):
        in_turn = 1 / check.per_second(1, search)
    hidden = (in_turn - beside) / max(1e-9, min(alone, in_turn - alone))
    yield {"maps alone s": alone, "scored in turn s": in_turn, "scored beside s": beside, "hidden": hidden}


@section(20)
def checkpoint(check: Check) -> Iterator[Found]:
    """Seconds of a checkpoint, and those after which training could go on while a thread writes it; whether that has
    the bits of the device."""
    run = a_run("bas", check.backbone, check.side, check.classes, check.device)
    steps(run, 1, 4, check.classes, check.side)
    state = {"method": run.method.state_dict(), "optimizer": run.optimizer.state_dict()}
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Store.at(folder), 1)
        save = 1 / check.per_second(1, lambda: store.save(Position(1), state, []))
        yield {"save s": save, "load s": 1 / check.per_second(1, store.newest)}
        start = time.perf_counter()
        with store.saving(Position(2), state) as seal:
            begun = time.perf_counter() - start
            seal([])
        saved = store.newest()
        assert saved is not None
        pairs = zip(state["method"].values(), saved.state["method"].values(), strict=True)
        yield {"begun after s": begun, "ok": all(torch.equal(there.cpu(), here) for there, here in pairs)}


def _steps_for(seconds: float, check: Check, rates: Any) -> None:
    torch.set_num_threads(1)
    if check.is_cuda:
        torch.cuda.set_per_process_memory_fraction(0.45)
    run = a_run("bas", "tiny", check.side, check.classes, check.device, "bfloat16", check.batch, last=True)
    steps(run, 2, check.batch, check.classes, check.side)
    done, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        steps(run, 1, check.batch, check.classes, check.side, first=2 + done)
        done += 1
    rates.put(done * check.batch / (time.monotonic() - start))


@section(60)
def two_trials(check: Check) -> Iterator[Found]:
    """Images a second of a small network's trial alone on the device, and of two together."""
    for trials in (1, 2):
        rates = SPAWN.Queue()
        seconds = 1 if check.quick else 8
        processes = [SPAWN.Process(target=_steps_for, args=(seconds, check, rates)) for _ in range(trials)]
        for process in processes:
            process.start()
        yield {f"{trials} at once": [rates.get(timeout=check.left) for _ in processes]}
        for process in processes:
            process.join()


@section(120)
def ranking(check: Check) -> Iterator[Found]:
    """CAM and BAS on real photographs from ImageNet weights, three seeds each: needs --data and --weights."""
    if not check.quick and not (check.data and check.weights):
        yield {"left out": "no --data or no --weights"}
        return
    seeds, epochs = (1, 1) if check.quick else (3, 6)  # from the sixth epoch BAS's generator has long begun
    for seed in range(seeds):
        for method in ("cam", "bas"):
            with tempfile.TemporaryDirectory() as folder:
                records = _trained(check, _trained_config(check, method, epochs, seed), folder)
            yield {f"{method}, seed {seed}": {"value": records[-1]["value"], **records[-1]["val"]}}


def rows(name: str, found: Any) -> Iterator[tuple[str, str]]:
    """A nested record as lines of a table."""
    if not isinstance(found, dict):
        yield name, f"{found:.4g}" if isinstance(found, float) else str(found)
        return
    for key, value in found.items():
        yield from rows(f"{name} · {key}" if name else key, value)


def found_apart(measure: Measure, check: Check, most: float) -> Found:
    """What a section finds in a process of its own within `most` seconds; what it had found if it ends otherwise."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send, args=(measure, check, sender))
    process.start()
    sender.close()
    found: Found = {}
    until = time.monotonic() + most
    try:
        while receiver.poll(max(0.0, until - time.monotonic())):
            found |= receiver.recv()
        return found | {"error": f"cut off after {most:.0f} s"}
    except EOFError:
        process.join(10)
        crashed = {"error": f"its process ended with {process.exitcode}"} if process.exitcode else {}
        return crashed | found
    finally:
        process.kill()
        process.join()


def _send(measure: Measure, check: Check, sender: Connection) -> None:
    try:
        for found in measure(check):
            sender.send(found)
    except Exception as error:  # noqa: BLE001 - one section's failure is a finding, and not the others'
        sender.send({"error": f"{type(error).__name__}: {error}"})


def run(check: Check, only: list[str], out: Path) -> Found:
    """Every section that there is time for, written after each."""
    results: Found = {}
    whole, last = check.left, list(SECTIONS)[-1]
    for name, (measure, seconds) in SECTIONS.items():
        if only and name not in only:
            continue
        start = time.monotonic()
        most = check.left if name == last else min(check.left, SHARE * whole)
        enough = check.left >= seconds
        results[name] = found_apart(measure, check, most) if enough else {"left out": f"{check.left:.0f} s were left"}
        results[name] |= {"section s": round(time.monotonic() - start, 1)}
        (out / "gpu_check.json").write_text(json.dumps(results, indent=1, default=str))
        for what, value in rows(name, results[name]):
            print(f"{what:70s} {value}", flush=True)
    return results


def _verdicts(found: Any) -> Iterator[bool]:
    """Every "ok" in a nested record."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from [bool(value)] if key == "ok" else _verdicts(value)


def _devices(check: Check) -> Iterator[Found]:
    yield {"gpus": torch.cuda.device_count()}


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=".")
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(args)
    only = [name for name in options.only.split(",") if name]
    if unknown := [name for name in only if name not in SECTIONS]:
        parser.error(f"--only knows {', '.join(SECTIONS)} but got {unknown[0]!r}")
    until = time.monotonic() + options.seconds
    check = Check(torch.device(options.device), options.quick, options.data, options.weights, until)
    # asked in another process: one that has looked at a GPU cannot fork others that use it
    if options.device == "cuda" and not found_apart(_devices, check, 60).get("gpus"):
        parser.error("--device cuda needs a GPU but this machine has none; --device cpu --quick tries the program")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    results = run(check, only, out)
    failed = [name for name, found in results.items() if "error" in found or not all(_verdicts(found))]
    print(json.dumps({"benchmark": "gpu_check", "failed": failed, **results}, default=str))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
