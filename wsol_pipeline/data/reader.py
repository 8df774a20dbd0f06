"""Batches of a split, one interface over two executors: images cached on the node, or a Ray Data stream.

Both follow the same `EpochPlan` and draw the same crops, so they give the same ids and, unless the cache is of shrunk
JPEGs, the same pixels. Evaluation rows come in the order of rows, each exactly once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, tee
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch

from wsol_pipeline.data.augment import TRAIN_GEOMETRIES, Augmentation
from wsol_pipeline.data.dataset import LabelledSplit, Split, TestSplit, TrainSplit, ValSplit
from wsol_pipeline.data.headers import STORED_PIXELS
from wsol_pipeline.data.images import decode_resize, resize, shrunk
from wsol_pipeline.data.jpegs import Jpegs, cached_jpegs
from wsol_pipeline.data.pixels import (
    EXACT,
    Pixels,
    Rows,
    cached_pixels,
    fact_columns,
    id_and_image,
    pixel_bytes,
    read_masks,
    read_rows,
)
from wsol_pipeline.data.plan import EpochPlan
from wsol_pipeline.data.stream import Columns, Work, regroup, stream
from wsol_pipeline.errors import UsageError, unknown
from wsol_pipeline.protocol import Role

_CHOICES = {"train_geometry": TRAIN_GEOMETRIES, "mode": ("auto", "cached", "streaming")}
GEOMETRIES = ("resize", "resize_crop", "short_side")


@dataclass(frozen=True)
class Batch:
    """Images of one step on one rank. B images, K classes, N boxes."""

    ids: list[str]
    images_BCHW: torch.Tensor  # uint8 RGB
    labels_B: torch.Tensor  # class indices int64; multi-hot float32 [B, K] if the dataset is multi-label
    boxes: list[np.ndarray] | None  # N4 float32 x0, y0, x1, y1 each, as stored; None for training rows
    sizes_B2: np.ndarray  # width, height of the stored images, int64
    global_size: int  # rows of this step over all ranks: what a mean loss is weighted by
    box_labels: list[np.ndarray] | None = None  # class of each box, N int64 each; None for training rows
    masks: list[np.ndarray] | None = None  # uint8 [H, W] of `label_mask`, at the images' size or, of a "short_side", at
    # that of the stored ones; None if the split has none
    whole_BCHW: torch.Tensor | None = None  # evaluation images before the centre crop, if there is one
    stored_BCHW: torch.Tensor | None = None  # photographs as they are stored, if asked for: of one size, see `shrunk`
    num_shrunk: int = 0  # of these


@dataclass(frozen=True)
class ReadConfig:
    """How rows become pixels."""

    resize_size: int = 256
    """Side in pixels to which images are resized, ignoring the aspect ratio, before they are cropped."""
    image_size: int = 224
    """Side in pixels of the images that the network sees."""
    train_geometry: str = "crop"
    """What training images are, and a mirror image half of the time: "crop" of the resized image, or a
    "random_resized_crop" of it, or the exact "random_resized_crop_stored", which is streamed (see `Augmentation`)."""
    crop_scale: float = 0.08
    """Smallest share of an image's area in a random resized crop."""
    mode: str = "auto"
    """"cached": decode once per node; "streaming": Ray Data; "auto": cached if the pixels fit the budget."""
    cache_budget_gb: float = 8.0
    """Disk space in GiB that the decoded pixels of one split may take for mode "auto"."""
    cache_dir: str | None = None
    """Where this node keeps decoded pixels, shrunk JPEGs and shards. Default: `wsol` in the user's cache folder."""
    shard_cache_gb: float = 64.0
    """Disk space in GiB for this node's copies of remote shards, of all datasets together. A streamed split that is
    larger is fetched anew in each epoch, as are all for 0."""
    shrunk_jpegs: int = 0
    """Quality of JPEGs at `resize_size` from which training images are read, in any mode; 0: exact pixels. Evaluation
    always sees these."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if not 1 <= self.image_size <= self.resize_size:
            raise UsageError(
                f"image_size must be in 1..resize_size ({self.resize_size}) but got {self.image_size}: the crop is cut "
                "from the resized image."
            )
        if not 0 < self.crop_scale <= 1:
            raise UsageError(f"crop_scale must be in (0, 1] but got {self.crop_scale}: it is a share of the area.")
        if self.shard_cache_gb < 0:
            raise UsageError(f"shard_cache_gb cannot be negative but got {self.shard_cache_gb}.")
        if (self.mode == "cached" or self.shrunk_jpegs) and self.augmentation.decoded_size is None:
            raise UsageError(f"{self.train_geometry} cuts stored images, which no cache holds: use mode 'streaming'.")

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.train_geometry, self.resize_size, self.image_size, self.crop_scale)

    def caches(self, split: Split, size: int) -> bool:
        """Whether this split is read from cached pixels of this size."""
        if self.mode == "auto":
            return pixel_bytes(split, size) <= self.cache_budget_gb * 2**30
        return self.mode == "cached"


class TrainReader:
    """Training batches of one rank, epoch by epoch. Close it (or use `with`) when epochs are left unread.

    `epochs` is how many epochs the training has in all. Epochs that are asked for one after the other are one
    streaming execution, so that only the first one waits for a start.
    """

    def __init__(
        self, split: TrainSplit, plan: EpochPlan, config: ReadConfig, *, epochs: int, rank: int = 0, world: int = 1
    ) -> None:
        if plan.rows != split.num_rows:
            raise UsageError(f"The plan has {plan.rows} rows but the split has {split.num_rows}.")
        next(plan.spans(rank=rank, world=world))  # a wrong rank or world is said here, not at the first batch
        self.split, self.plan, self.config, self.epochs = split, plan, config, epochs
        self.rank, self.world = rank, world
        self._streamed: Iterator[Columns] | None = None
        self._next: tuple[int, int] = (-1, 0)  # epoch and sample where the stream stands

    def __enter__(self) -> "TrainReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End a streaming execution; nothing to do for cached pixels."""
        self._streamed = None  # the generator's end stops Ray Data's executor

    @property
    def is_cached(self) -> bool:
        """Whether this node keeps what is read, as pixels or as JPEGs."""
        size = self.config.augmentation.decoded_size
        return size is not None and (bool(self.config.shrunk_jpegs) or self.config.caches(self.split, size))

    @property
    def told(self) -> str:
        """What is read, in words. JPEGs are made for it, if they are not there."""
        return self._kept.told if self.config.shrunk_jpegs else EXACT

    def epoch(self, epoch: int, start_sample: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from the global sample `start_sample` on. Raises `UsageError` as `EpochPlan.spans`."""
        if not 0 <= epoch < self.epochs:
            raise UsageError(f"epoch must be in 0..{self.epochs - 1} but got {epoch}.")
        return self._cached(epoch, start_sample) if self.is_cached else self._stream(epoch, start_sample)

    @cached_property
    def _kept(self) -> Pixels | Jpegs:
        size, quality, where = self.config.resize_size, self.config.shrunk_jpegs, self.config.cache_dir
        return cached_jpegs(self.split, size, quality, where) if quality else cached_pixels(self.split, size, where)

    def _cached(self, epoch: int, start_sample: int) -> Iterator[Batch]:
        sizes, known = np.diff(self.plan.bounds()).tolist(), self._kept.rows
        spans, again = tee(self.plan.batches(epoch, rank=self.rank, world=self.world, start_sample=start_sample))
        found = self._kept.each(row for _, rows in again for row in rows.tolist())
        for index, rows in spans:
            images = islice(found, len(rows))
            augmented_BCHW = self.config.augmentation.apply(
                images, known.hashes_N[rows], known.sizes_N2[rows], self.plan.seed, epoch
            )
            yield Batch(
                ids=[known.ids[row] for row in rows],
                images_BCHW=torch.from_numpy(augmented_BCHW),
                labels_B=torch.from_numpy(known.labels_N[rows]),
                boxes=None,
                sizes_B2=known.sizes_N2[rows],
                global_size=sizes[index],
            )

    def _stream(self, epoch: int, start_sample: int) -> Iterator[Batch]:
        if self._streamed is None or self._next != (epoch, start_sample):
            self._streamed = self._start(epoch, start_sample)
        bounds = self.plan.bounds()
        for index, _, _ in self._spans(start_sample):
            columns = next(self._streamed)
            end = int(bounds[index + 1])
            self._next = (epoch, end) if end < self.plan.samples else (epoch + 1, 0)
            yield Batch(
                ids=columns["id"].tolist(),
                images_BCHW=torch.from_numpy(columns["image"]),
                labels_B=torch.from_numpy(columns["labels"]),
                boxes=None,
                sizes_B2=columns["size"],
                global_size=end - int(bounds[index]),
            )

    def _spans(self, start_sample: int) -> Iterator[tuple[int, int, int]]:
        return self.plan.spans(rank=self.rank, world=self.world, start_sample=start_sample)

    def _start(self, epoch: int, start_sample: int) -> Iterator[Columns]:
        config = self.config
        where = (config.cache_dir, config.shard_cache_gb)
        work = Work(self.split, self.plan, config.augmentation, *where, self.rank, self.world)
        lengths = (
            end - begin
            for number in range(epoch, self.epochs)
            for _, begin, end in self._spans(start_sample if number == epoch else 0)
        )
        return regroup(stream(work, range(epoch, self.epochs), start_sample), lengths)


def train_batches(
    split: TrainSplit,
    plan: EpochPlan,
    epoch: int,
    config: ReadConfig,
    *,
    rank: int = 0,
    world: int = 1,
    start_sample: int = 0,
) -> Iterator[Batch]:
    """The batches of a single epoch. A training of several epochs keeps one `TrainReader`."""
    with TrainReader(split, plan, config, epochs=epoch + 1, rank=rank, world=world) as reader:
        yield from reader.epoch(epoch, start_sample)


@dataclass(frozen=True)
class EvalRows:
    """The rows of `val` or `test` that one rank evaluates, in order. Made by `eval_rows`.

    `at`: numbers of the split's rows, of which `begin` to `end` are meant; None: all of them.
    """

    split: ValSplit | TestSplit | LabelledSplit
    config: ReadConfig
    geometry: str
    batch_size: int
    begin: int
    end: int
    stored: bool = False  # whether batches have the photographs as they are stored
    at: tuple[int, ...] | None = None

    def with_stored(self) -> "EvalRows":
        """The same rows, with the photographs as they are stored."""
        return replace(self, stored=True)

    def few(self, count: int) -> "EvalRows":
        """The first `count` of these rows, or all if there are fewer."""
        return replace(self, end=min(self.end, self.begin + count))

    @property
    def role(self) -> Role:
        return self.split.role

    @property
    def box_convention(self) -> str:
        return self.split.box_convention

    @property
    def has_masks(self) -> bool:
        """Whether the split has masks."""
        return self.split.has_masks if self._cached is None else self._cached.masks is not None

    @property
    def num_classes(self) -> int:
        return self.split.num_classes

    @property
    def num_rows(self) -> int:
        """Rows of this rank."""
        return self.end - self.begin

    def batches(self) -> Iterator[Batch]:
        """All rows of this rank once, in order; the last batch is as long as what is left.

        Images that keep their aspect come together while they have one shape; so do those with stored photographs, of
        which a batch has no more than `STORED_PIXELS` (of each class of an image, since each is a pass), or one image.
        """
        if self.stored or self.geometry == "short_side":
            yield from self._of_one_shape()
            return
        size, cached, inner = self._read_size, self._cached, self._inner
        for rows in self._numbers():
            pixels, at = (cached, rows) if cached else (self._decoded(rows, size), np.arange(len(rows)))
            masks = None if pixels.masks is None else list(pixels.masks[at][:, inner, inner])
            yield _batch(pixels.rows, at, torch.from_numpy(pixels.images[at]), masks, inner)

    def _numbers(self) -> Iterator[np.ndarray]:
        """Numbers of the split's rows, a batch each."""
        for first in range(self.begin, self.end, self.batch_size):
            rows = np.arange(first, min(first + self.batch_size, self.end))
            yield rows if self.at is None else np.array(self.at)[rows]

    def _of_one_shape(self) -> Iterator[Batch]:
        for rows in self._numbers():
            table = self._read(rows)
            known, inner = read_rows(table, self.split), self._inner
            masks = self._masks(table, known.sizes_N2 if self.geometry == "short_side" else None)
            seen = map(self._seen, decode_resize(id_and_image(table), None))
            passes_N = (known.labels_N > 0).sum(1) if self.split.multilabel else np.ones(len(known.ids), int)
            for at, (whole_BCHW, stored_BCHW) in neighbours(seen, passes_N):
                of_run = None if masks is None else [masks[row][inner, inner] for row in at]
                batch = _batch(known, at, whole_BCHW, of_run, inner)
                over = self.stored & (known.sizes_N2[at].prod(1) > STORED_PIXELS)
                yield replace(batch, stored_BCHW=stored_BCHW, num_shrunk=int(over.sum()))

    def _seen(self, image_CHW: np.ndarray) -> "Seen":
        """A stored image as the network is shown it, before a crop, and as it is stored if that is asked for."""
        decoded_CHW = torch.from_numpy(image_CHW)
        whole_CHW = resize(decoded_CHW, self._read_size, keep_aspect=self.geometry == "short_side")
        return Seen(whole_CHW, shrunk(decoded_CHW) if self.stored else None)

    @property
    def _read_size(self) -> int:
        return self.config.resize_size if self.geometry == "resize_crop" else self.config.image_size

    @property
    def _inner(self) -> slice:
        """What the centre crop, if there is one, leaves of both sides."""
        if self.geometry == "short_side":
            return slice(None)
        margin = round((self._read_size - self.config.image_size) / 2)  # as torchvision's CenterCrop rounds
        return slice(margin, margin + self.config.image_size)

    @property
    def _cached(self) -> Pixels | None:
        if self.stored or self.geometry == "short_side" or not self.config.caches(self.split, self._read_size):
            return None
        return cached_pixels(self.split, self._read_size, self.config.cache_dir)

    def _decoded(self, rows: np.ndarray, size: int) -> Pixels:
        table = self._read(rows)
        images = np.stack(list(decode_resize(id_and_image(table), size)))
        masks = self._masks(table)
        return Pixels(images, None if masks is None else np.stack(masks), read_rows(table, self.split))

    def _masks(self, table: pa.Table, sizes_N2: np.ndarray | None = None) -> list[np.ndarray] | None:
        """Masks at their own of `sizes`, by default as large as square images before the crop."""
        if not self.has_masks:
            return None
        sizes_N2 = np.full((table.num_rows, 2), self._read_size) if sizes_N2 is None else sizes_N2
        return read_masks(table, self.split, sizes_N2)

    def _read(self, rows: np.ndarray) -> pa.Table:
        columns = [*fact_columns(self.split), "image", *(("mask", "ignore") if self.has_masks else ())]
        return self.split.shard_set(self.config.cache_dir, self.config.shard_cache_gb).read(rows, columns)


@dataclass(frozen=True)
class LabelledBatch:
    """Validation images with their labels: there is no field for a box or a mask. As in `Batch`."""

    ids: list[str]
    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    sizes_B2: np.ndarray
    whole_BCHW: torch.Tensor | None
    stored_BCHW: torch.Tensor | None
    num_shrunk: int


@dataclass(frozen=True)
class RowsShown:
    """Rows of `val` as a selector is shown them: masks never, and only what `batches` of a subclass lets through."""

    rows: EvalRows
    has_masks = False

    @property
    def role(self) -> Role:
        return self.rows.role

    @property
    def num_classes(self) -> int:
        return self.rows.num_classes

    @property
    def num_rows(self) -> int:
        """Rows of this rank."""
        return self.rows.num_rows

    @property
    def batch_size(self) -> int:
        return self.rows.batch_size

    def with_stored(self) -> Self:
        """The same rows, with the photographs as they are stored."""
        return replace(self, rows=self.rows.with_stored())

    def few(self, count: int) -> Self:
        """The first `count` of these rows."""
        return replace(self, rows=self.rows.few(count))


class LabelledRows(RowsShown):
    """The rows of `val` by their labels alone: all that may be seen by what chooses without their boxes."""

    def batches(self) -> Iterator[LabelledBatch]:
        """All rows of this rank once, in order."""
        names = LabelledBatch.__dataclass_fields__
        for batch in self.rows.batches():
            yield LabelledBatch(**{name: getattr(batch, name) for name in names})


def labelled_rows(
    split: LabelledSplit, config: ReadConfig, geometry: str, batch_size: int, *, rank: int = 0, world: int = 1
) -> LabelledRows:
    """`eval_rows` of labels alone."""
    return LabelledRows(eval_rows(split, config, geometry, batch_size, rank=rank, world=world))


class Seen(NamedTuple):
    """An evaluation image, uint8 [3, H, W], or some of one shape: before the centre crop, and as stored if asked."""

    whole: torch.Tensor
    stored: torch.Tensor | None

    @property
    def shape(self) -> torch.Size:
        """What images of one batch share."""
        return (self.whole if self.stored is None else self.stored).shape


def neighbours(images: Iterable[Seen], passes_N: np.ndarray) -> Iterator[tuple[np.ndarray, Seen]]:
    """Rows and images in order, cut where the shape changes or stored ones would have over `STORED_PIXELS` in all.

    An image's pixels count once for each of its `passes`.
    """
    run: list[Seen] = []
    held = end = 0
    for end, image in enumerate(images):
        more = 0 if image.stored is None else image.stored[0].numel() * int(passes_N[end])
        if run and (image.shape != run[0].shape or held + more > STORED_PIXELS):
            yield np.arange(end - len(run), end), _joined(run)
            held = 0
        run.append(image)
        held += more
    yield np.arange(end + 1 - len(run), end + 1), _joined(run)


def _joined(run: list[Seen]) -> Seen:
    """The images as a batch; the list is empty then, so that they are not held twice."""
    stored = [image.stored for image in run if image.stored is not None]
    batch = Seen(torch.stack([image.whole for image in run]), torch.stack(stored) if stored else None)
    run.clear()
    return batch


def _batch(
    known: Rows,
    at: np.ndarray,
    whole_BCHW: torch.Tensor,
    masks: list[np.ndarray] | None,
    inner: slice = slice(None),
) -> Batch:
    """The rows `at` with their masks and images, of these `inner` of both sides."""
    return Batch(
        ids=[known.ids[row] for row in at],
        images_BCHW=whole_BCHW[:, :, inner, inner].contiguous(),
        labels_B=torch.from_numpy(known.labels_N[at]),
        boxes=[known.boxes[row] for row in at] if known.boxes is not None else None,
        sizes_B2=known.sizes_N2[at],
        global_size=len(at),
        box_labels=[known.box_labels[row] for row in at] if known.box_labels is not None else None,
        masks=masks,
        whole_BCHW=whole_BCHW,
    )


def eval_rows(
    split: ValSplit | TestSplit | LabelledSplit,
    config: ReadConfig,
    geometry: str,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    at: tuple[int, ...] | None = None,
) -> EvalRows:
    """The rows of a held-out split for evaluation; ranks get contiguous, disjoint parts (of unequal length if need be).

    `geometry` is "resize" (straight to `image_size`), "resize_crop" (to `resize_size`, then the centre) or "short_side"
    (to a short side of `image_size`, aspect kept; decoded each time). `at`: numbers of the only rows that are wanted.
    """
    if geometry not in GEOMETRIES:
        raise unknown("geometry", geometry, GEOMETRIES)
    if batch_size < 1 or not 0 <= rank < world:
        raise UsageError(
            f"batch_size and world must be at least 1, rank in 0..world-1; got {batch_size}, {rank}/{world}."
        )
    count = split.num_rows if at is None else len(at)
    begin, end = (count * part // world for part in (rank, rank + 1))
    return EvalRows(split, config, geometry, batch_size, begin, end, at=at)
