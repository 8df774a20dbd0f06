"""A model at work on a listing: rows of plain data out, a line for each image that is broken."""

import difflib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from wsol_pipeline.data.images import decoder
from wsol_pipeline.data.photographs import photograph
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.training import ray_internals
from wsol_pipeline.training.inputs import Prepared
from wsol_pipeline.training.localization import Localization
from wsol_pipeline.training.model import Model, ModelFiles, assemble, batched
from wsol_pipeline.use.models import pick
from wsol_pipeline.use.options import LocalizeOptions
from wsol_pipeline.use.sources import Item, read

Row = dict[str, Any]
Problem = dict[str, Any]  # index, uri, kind, reason
ROWS = pa.schema([
    ("index", pa.int64()), ("image_id", pa.string()), ("uri", pa.string()), ("width", pa.int32()),
    ("height", pa.int32()), ("exif_orientation", pa.int8()), ("class_id", pa.int32()), ("label", pa.string()),
    ("label_source", pa.string()), ("predicted", pa.string()), ("class_score", pa.float32()), ("score", pa.float32()),
    *((side, pa.float64()) for side in ("x0", "y0", "x1", "y1")), ("rle", pa.string()), ("area", pa.int64()),
    ("box_rank", pa.int32()), ("threshold", pa.float64()),
    *((f"window_{side}", pa.float64()) for side in ("x0", "y0", "x1", "y1")),
    ("reason", pa.string()), ("model_sha256", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """An image of the listing, ready for the network."""

    item: Item
    prepared: Prepared
    turn: int  # EXIF's orientation of the file
    given: tuple[int, ...] | None  # its classes, where they are known


class Localizer:
    """A loaded model that localizes rows of a listing; a Ray actor, or an object of this process."""

    def __init__(self, files: ModelFiles, options: LocalizeOptions) -> None:
        self.model = assemble(files, pick(options.device)).seeing(options.views)
        self.sha256 = files.sha256
        self.options, self.wanted = options, options.wanted()
        self.threads = options.decoders or ray_internals.cores()
        self.model.check(self.wanted)

    def run(self, items: Sequence[Item]) -> tuple[list[Row], list[Problem]]:
        """Rows and problems of some images; at most two batches of them are in memory."""
        rows: list[Row] = []
        problems: list[Problem] = []
        with decoder(self.threads) as pool:
            for opened in self._opened(items, pool):
                ready: list[Opened] = []
                for one in opened:
                    ready.append(one) if isinstance(one, Opened) else problems.append(one)
                rows += self._rows(ready, pool)
        return rows, problems

    def _opened(self, items: Sequence[Item], pool: ThreadPoolExecutor) -> Iterator[Iterator[Opened | Problem]]:
        """Batches, of which a GPU has the next one read meanwhile; on a CPU that would take cores from the network."""
        ahead = int(next(self.model.method.parameters()).is_cuda)
        waiting: deque[Iterator[Opened | Problem]] = deque()
        for some in batched(items, self.options.batch_size):
            waiting.append(pool.map(self._open, some))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting

    def _open(self, item: Item) -> Opened | Problem:
        """Read, decode and resize an image, or say what is wrong with it."""
        kind = "label"
        try:
            given = _classes(item["labels"], self.model)
            kind = "file"
            data = read(item, self.options)
            kind = "image"
            pixels_CHW, turn = photograph(data, self.options.scale_16bit)
            return Opened(item, self.model.prepare(pixels_CHW), turn, given)
        except (DataError, UsageError) as error:
            return {"index": item["index"], "uri": item["uri"], "kind": kind, "reason": str(error)}

    def _rows(self, opened: Sequence[Opened], pool: ThreadPoolExecutor) -> list[Row]:
        if not opened:
            return []
        found = self.model.localize([one.prepared for one in opened], self.wanted, [one.given for one in opened])
        pairs = [(one, of) for one, own in zip(opened, found, strict=True) for of in own]
        return list(pool.map(lambda pair: self._row(*pair), pairs))

    def _row(self, opened: Opened, found: Localization) -> Row:
        box = dict(zip(("x0", "y0", "x1", "y1"), found.box or (None,) * 4, strict=True))
        window = {f"window_{side}": value for side, value in zip(box, found.window, strict=True)}
        names = ("width", "height", "class_id", "label", "label_source", "predicted", "class_score", "score",
                 "threshold", "reason")  # fmt: skip
        return {
            "index": opened.item["index"], "image_id": opened.item["image_id"], "uri": opened.item["uri"],
            "exif_orientation": opened.turn, **{name: getattr(found, name) for name in names}, **box, **window,
            "rle": found.rle if found.box else None, "area": int(found.mask.sum()), "box_rank": found.rank,
            "model_sha256": self.sha256,
        }  # fmt: skip


def _classes(labels: Sequence[str] | None, model: Model) -> tuple[int, ...] | None:
    """Known labels as classes of the model. Raises `DataError` with the nearest name for one that it lacks."""
    if labels is None:
        return None
    for name in labels:
        if name not in model.classes:
            near = difflib.get_close_matches(name, model.classes, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise DataError(f"label {name!r} is no class of the model{hint}" if name else "label is empty")
    return tuple(sorted({model.classes.index(name) for name in labels}))
