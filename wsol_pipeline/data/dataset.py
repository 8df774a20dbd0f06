"""An imported dataset and its three splits.

`train` has labels and no boxes; `val` is where every choice is made; `test()` is a method, because opening the test
split is an act that should be visible where it happens.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from wsol_pipeline.data.plan import EpochPlan
from wsol_pipeline.data.schema import ROW_GROUP
from wsol_pipeline.data.shards import Manifest, Shard, ShardSet, SplitInfo, read_manifest
from wsol_pipeline.errors import DataError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

WINDOW_BYTES = 128 * 2**20  # of a window of the plan, encoded: 1200 images of ImageNet


@dataclass(frozen=True)
class Split:
    """One split of a dataset. Nothing of its shards is touched before rows, `ids` or `labels` are asked for."""

    uri: str
    role: Role
    info: SplitInfo
    num_classes: int
    multilabel: bool
    box_convention: str

    @property
    def num_rows(self) -> int:
        return self.info.rows

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, labels, boxes and images: the same rows give the same, in whatever shards."""
        return self.info.fingerprint

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.info.shards

    def rows_within(self, size: int, most: int) -> int:
        """How many rows have `size` bytes in the shards, on average: at least a row group, and not over `most`."""
        stored = sum(shard.bytes for shard in self.shards)
        return max(ROW_GROUP, min(most, size * self.num_rows // stored))

    def shard_set(self, cache_dir: str | None = None, cache_gb: float = 0) -> ShardSet:
        """The shards as one table; remote ones are kept in `cache_dir` of this node if all fit `cache_gb` GiB."""
        return ShardSet(Store(self.uri), self.shards, cache_dir, int(cache_gb * 2**30))

    @property
    def has_masks(self) -> bool:
        """Whether any row has a mask to be evaluated with."""
        return self.info.masks > 0

    @property
    def has_boxes(self) -> bool:
        """Whether every row has a box to be evaluated with, of each of its classes."""
        return self.info.boxes == self.num_rows

    @cached_property
    def ids(self) -> list[str]:
        """The id of each row, in the order of rows."""
        return self.shard_set().read_all(["id"])["id"].to_pylist()

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of each row, int64 [N]; multi-hot float32 [N, K] if the dataset is multi-label."""
        return encode_labels(self.shard_set().read_all(["labels"])["labels"].to_pylist(), self)


class TrainSplit(Split):
    """Labels only: there is no box in its shards."""

    def plan(self, batch_size: int, seed: int, drop_last: bool = False) -> EpochPlan:
        """The order of this split's rows, with blocks that are the row groups of its shards.

        A window is held in memory while a stream reads it: of large images it has fewer rows, `WINDOW_BYTES` in all. It
        has whole batches where it can, so that a rank's parts of them lie in the same blocks.
        """
        window_rows = self.rows_within(WINDOW_BYTES, EpochPlan.window_rows)
        window_rows -= window_rows % batch_size if batch_size <= window_rows else 0
        return EpochPlan(self.num_rows, batch_size, seed, ROW_GROUP, window_rows, drop_last)


class ValSplit(Split):
    """Held out, with boxes: thresholds, readouts, checkpoints and trials are chosen on it."""


class LabelledSplit(Split):
    """`val` or `train` by its labels alone: columns of boxes and masks are never read."""

    @property
    def has_masks(self) -> bool:
        return False

    @property
    def has_boxes(self) -> bool:
        return False

    @cached_property
    def sizes_N2(self) -> np.ndarray:
        """Width and height of each stored image, int64 [N, 2]."""
        table = self.shard_set().read_all(["width", "height"])
        return np.stack([table[side].to_numpy() for side in ("width", "height")], axis=1).astype(np.int64)


class TestSplit(Split):
    """With boxes, for the final number only."""

    __test__ = False  # no test case, whatever pytest thinks of the name


_Kind = TypeVar("_Kind", bound=Split)


@dataclass(frozen=True)
class Dataset:
    """An imported dataset, by its manifest."""

    uri: str
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def multilabel(self) -> bool:
        return self.manifest.multilabel

    @property
    def is_located(self) -> bool:
        """Whether val has boxes or masks: without, nothing can be chosen by them."""
        return self.manifest.located

    @property
    def fingerprint(self) -> str:
        """SHA-256 over classes, conventions and the fingerprints of all splits."""
        splits = {role.value: info.fingerprint for role, info in self.manifest.splits.items()}
        facts = [list(self.classes), self.multilabel, self.manifest.box_convention, splits]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def train(self) -> TrainSplit:
        return self._split(TrainSplit, Role.TRAIN)

    @cached_property
    def val(self) -> ValSplit:
        return self._split(ValSplit, Role.VAL)

    @cached_property
    def val_labels(self) -> LabelledSplit:
        """The images and labels of `val`."""
        return self._split(LabelledSplit, Role.VAL)

    @cached_property
    def train_labels(self) -> LabelledSplit:
        """The images and labels of `train`, to be evaluated on once everything is chosen."""
        return self._split(LabelledSplit, Role.TRAIN)

    def test(self) -> TestSplit:
        """Open the test split. Only the final evaluation does, once everything is chosen."""
        return self._split(TestSplit, Role.TEST)

    def ids_of(self, role: Role) -> list[str]:
        """The ids of a split and no more: whether a file names images of test can be asked without opening it."""
        return self._split(Split, role).ids

    def _split(self, kind: type[_Kind], role: Role) -> _Kind:
        info = self.manifest.splits.get(role)
        if info is None:
            known = ", ".join(self.manifest.splits)
            raise DataError(f"Dataset {self.uri} has no split {role.value!r}; it has: {known}.")
        return kind(self.uri, role, info, len(self.classes), self.multilabel, self.manifest.box_convention)


def open_dataset(uri: str) -> Dataset:
    """The dataset at a local path or `s3://bucket/prefix`; reads its manifest only.

    Raises `DataError` if there is none, or one of another version; `ResourceError` if the place cannot be reached.
    """
    store = Store.at(uri)
    return Dataset(store.uri, read_manifest(store))


def encode_labels(labels: list[list[int]], split: Split) -> np.ndarray:
    """Class indices int64 [N], or multi-hot float32 [N, K] for a multi-label split."""
    if not split.multilabel:
        return np.array([row[0] for row in labels], np.int64)
    hot_NK = np.zeros((len(labels), split.num_classes), np.float32)
    for row, classes in enumerate(labels):
        hot_NK[row, classes] = 1
    return hot_NK
