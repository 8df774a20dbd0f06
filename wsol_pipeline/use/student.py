"""A detector that learns from a teacher's boxes: which boxes, and how it is trained.

A localizer's boxes of training images, whose labels are known, are a detector's training set (Zhang et al., PSOL, CVPR
2020, https://arxiv.org/abs/2002.11359, learn a regressor so). Nothing here sees a true box.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor, nn

from wsol_pipeline.data.photographs import photograph
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.labelfree import gains, label_evidence
from wsol_pipeline.evaluation.objects import Frame
from wsol_pipeline.evaluation.pointing import centres
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.training.model import Model
from wsol_pipeline.use.detectors import UNREADABLE, load_state
from wsol_pipeline.use.options import DetectorOptions, LocalizeOptions
from wsol_pipeline.use.run import by_image, read_listing
from wsol_pipeline.use.sources import Item, read

LEAST_AREA, MOST_AREA, KEPT = 0.02, 0.95, 0.8  # shares of the image; of a class's boxes, the best by evidence
BACKBONE = "backbone.body."  # where a detector has the tensors of a classifier
MOMENTUM, DECAY, WARM_UP = 0.9, 1e-4, 0.1  # of the optimizer; share of the steps in which its rate rises
KEEP_EVERY = 50  # steps, which a killed training loses at most
Box = tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """An image with the box that a detector is to learn, half-open pixels of the image as it is shown."""

    item: Item
    label: int
    box: Box
    size_wh: tuple[int, int]
    mask: str  # the teacher's, COCO's run-length code

    @property
    def share(self) -> float:
        """Of the image that the box takes."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0) / (self.size_wh[0] * self.size_wh[1])


def pixels(item: Item) -> Tensor:
    """An image of a listing, uint8 RGB [3, H, W], as viewers show it."""
    return photograph(read(item, LocalizeOptions(source="-", model="-")))[0]


def samples(store: Store) -> list[Sample]:
    """The boxes of a localization that are neither tiny nor nearly the image, one an image and class.

    Raises `UsageError` where the classes of the images were not known to it.
    """
    items, found = read_listing(store), []
    for row in (row for rows in by_image(store) for row in rows if row["x0"] is not None and not row["box_rank"]):
        if row["label_source"] != "given":
            raise UsageError(
                f"{store.uri} has predicted classes: localize with --labels, so that no box is of a wrong class."
            )
        box, size_wh = tuple(row[side] for side in ("x0", "y0", "x1", "y1")), (row["width"], row["height"])
        found.append(Sample(items[row["index"]], row["class_id"], box, size_wh, row["rle"]))
    return [sample for sample in found if LEAST_AREA <= sample.share <= MOST_AREA]


def best_of_classes(some: Sequence[Sample], gains_N: NDArray[np.float64]) -> list[Sample]:
    """Of each class the `KEPT` share with the highest evidence gain, in their order; those of no number come last."""
    labels_N = np.array([sample.label for sample in some])
    kept: list[int] = []
    for label in np.unique(labels_N):
        own = np.flatnonzero(labels_N == label)
        order = np.argsort(-np.nan_to_num(gains_N[own], nan=-np.inf), kind="stable")
        kept += own[order[: math.ceil(KEPT * len(own))]].tolist()
    return [some[at] for at in sorted(kept)]


def evidence(teacher: Model, some: Sequence[Sample], add: Callable[[int], None]) -> NDArray[np.float64]:
    """What a teacher's classifier loses without each sample's mask, beside the mask's share of what it sees, [N]."""
    found = []
    for sample in some:
        found.append(_gain(teacher, sample))
        add(1)
    return np.array(found)


def _gain(teacher: Model, sample: Sample) -> float:
    seen_CHW = teacher.prepare(pixels(sample.item)).image_CHW
    device, label = next(teacher.method.parameters()).device, torch.tensor([sample.label])
    inside_HW = torch.from_numpy(_seen_mask(sample, Frame.of(sample.size_wh, teacher.protocol), seen_CHW.shape[1:]))
    images_1CHW = normalize(seen_CHW[None], device, dtype_of(teacher.method))
    with torch.no_grad():
        both = torch.cat([images_1CHW, images_1CHW.masked_fill(inside_HW.to(device), 0.0)])
        evidence_B = label_evidence(teacher.method(both).logits_BK, label.expand(2).to(device)).cpu()
    return float(gains(evidence_B[:1], evidence_B[1:], inside_HW.double().mean()[None]))


def _seen_mask(sample: Sample, frame: Frame, shape_HW: Sequence[int]) -> NDArray[np.bool_]:
    """The teacher's mask at the pixels of what its network sees."""
    width, height = sample.size_wh
    mask_HW = rle.decode({"size": [height, width], "counts": sample.mask.encode()}).astype(bool)
    x_W, y_H = (centres(frame.window[axis], frame.window[axis + 2], shape_HW[1 - axis]) for axis in (0, 1))
    found: NDArray[np.bool_] = mask_HW[y_H.astype(int)[:, None], x_W.astype(int)]
    return found


def centred(some: Sequence[Sample]) -> list[Sample]:
    """The same images with a box in their middle, of their aspect and of the median share: what needs no teacher."""
    side = math.sqrt(float(np.median([sample.share for sample in some])))

    def box(width: int, height: int) -> Box:
        return tuple(edge * (1 + sign * side) / 2 for sign in (-1, 1) for edge in (width, height))

    return [replace(sample, box=box(*sample.size_wh)) for sample in some]


def begin(network: nn.Module, file: str) -> int:
    """Take from a file what fits of a detector, or of a classifier for its backbone; how many tensors that were.

    Heads of other classes are left as they are. Raises `DataError` for a file of which nothing fits.
    """
    own, given = network.state_dict(), load_state(file)
    named = {name if name in own else f"{BACKBONE}{name}": tensor for name, tensor in given.items()}
    fit = {name: tensor for name, tensor in named.items() if name in own and tensor.shape == own[name].shape}
    if not fit:
        raise DataError(
            f"{file} fits neither this detector nor its backbone; it has {next(iter(given), 'nothing')}, ..."
        )
    network.load_state_dict(fit, strict=False)
    return len(fit)


@dataclass(frozen=True)
class Kept:
    """A training that can be continued bit for bit: network, optimizer and random state in a file, written whole."""

    store: Store
    name: str

    def write(self, step: int, device: str, **parts: Any) -> None:
        """Keep where a training stands after `step` steps."""
        random = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if device == "cuda" else [])]
        sink = io.BytesIO()
        torch.save({"step": step, "random": random, **{name: part.state_dict() for name, part in parts.items()}}, sink)
        self.store.write(self.name, sink.getvalue())

    def read(self, device: str, **parts: Any) -> int:
        """Take up what was kept; the number of steps that were done, 0 if nothing was."""
        if not self.store.exists(self.name):
            return 0
        try:
            state = torch.load(io.BytesIO(self.store.read(self.name)), map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise DataError(
                f"{self.store.path(self.name)} was altered: without it this training begins anew."
            ) from error
        for name, part in parts.items():
            part.load_state_dict(state[name])
        own, *others = state["random"]
        torch.set_rng_state(own)
        if device == "cuda" and others:
            torch.cuda.set_rng_state_all(others)
        return int(state["step"])


def train(
    network: Any, some: Sequence[Sample], options: DetectorOptions, device: str, kept: Kept, add: Callable[[int], None]
) -> None:
    """A fixed number of steps of SGD, with mirror images; the rate rises and then falls by a cosine.

    `add` hears how many more images were learned from. Raises `DataError` for a loss that is no number, or a file of
    `kept` that cannot be read.
    """
    torch.manual_seed(options.seed)
    network.train().to(device)
    steps, warm = options.steps, max(1, round(WARM_UP * options.steps))
    optimizer = torch.optim.SGD(
        [one for one in network.parameters() if one.requires_grad], options.learning_rate, MOMENTUM, weight_decay=DECAY
    )
    falls = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    parts = {"network": network, "optimizer": optimizer, "falls": falls}
    done = kept.read(device, **parts)
    add(done * options.batch_size)
    for step, batch in enumerate(itertools.islice(batches(some, options), done, None), done + 1):
        _step(network, optimizer, batch, options, device)
        falls.step()
        if step % KEEP_EVERY == 0 or step == steps:
            kept.write(step, device, **parts)
        add(options.batch_size)
    network.eval()


def _step(
    network: Any, optimizer: Any, batch: list[tuple[Sample, bool]], options: DetectorOptions, device: str
) -> None:
    images, targets = zip(*(shown(sample, flip, device) for sample, flip in batch), strict=True)
    loss = sum(network(list(images), list(targets)).values())
    if not math.isfinite(value := float(loss.detach())):
        raise DataError(f"The detector's loss is {value}: --learning-rate {options.learning_rate:g} is too much.")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()


def batches(some: Sequence[Sample], options: DetectorOptions) -> Iterator[list[tuple[Sample, bool]]]:
    """Samples in an order drawn anew each time all were seen, each mirrored or not: one batch a step."""
    rng = np.random.default_rng(options.seed)
    order: list[int] = []
    for _ in range(options.steps):
        while len(order) < options.batch_size:
            order += rng.permutation(len(some)).tolist()
        drawn, order = order[: options.batch_size], order[options.batch_size :]
        yield [(some[at], bool(rng.integers(2))) for at in drawn]


def shown(sample: Sample, flip: bool, device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """An image as torchvision's detectors take it, 0..1, with its box; the background is their class 0."""
    image_CHW = pixels(sample.item).to(device).float() / 255
    x0, y0, x1, y1 = sample.box
    if flip:
        image_CHW, x0, x1 = image_CHW.flip(2), image_CHW.shape[2] - x1, image_CHW.shape[2] - x0
    box_14 = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32, device=device)
    return image_CHW, {"boxes": box_14, "labels": torch.tensor([sample.label + 1], device=device)}
