"""A model as one graph that other runtimes take: bytes in, scores and a raw map out, compared before it is kept.

Enlarging the map, its threshold and the box are outside: the graph's metadata says how, and `graph_reader`, which is
written beside it, does it by NumPy alone.
"""

import io
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol_pipeline.data.photographs import photograph
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.metrics import in_threads
from wsol_pipeline.evaluation.objects import Box, Frame, Size, extent, is_flat, largest, object_mask
from wsol_pipeline.images import normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.training.model import Model, assemble, batched
from wsol_pipeline.use import graph_reader
from wsol_pipeline.use.models import named
from wsol_pipeline.use.options import ExportOptions, LocalizeOptions
from wsol_pipeline.use.sources import listed, read
from wsol_pipeline.verdict.rows import finished_study

OF_FORWARDS = ("cam", "own", "topk")  # readouts whose maps need nothing but a forward pass
COMPARED = 64  # images
LOGIT, MAP = 1e-3, 1e-4  # largest differences: of a logit beside max(1, |logit|), of a map beside its range
OTHER_BOXES = 1  # images whose box may differ: a pixel at the threshold
Run = Callable[[Tensor, Tensor], tuple[NDArray[Any], NDArray[Any]]]


class Graph(nn.Module):
    """uint8 RGB [B, 3, H, W] at the network's size and classes int64 [B] (-1: the first) -> logits [B, K],
    probabilities [B, K] and raw maps [B, h, w]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.method, self.readout, self.setting = model.method, model.readout, model.choice.readout
        self.multilabel = model.multilabel

    def forward(self, images_BCHW: Tensor, classes_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen_BCHW = normalize(images_BCHW, images_BCHW.device)
        output = self.method(seen_BCHW)
        classes_B = torch.where(classes_B < 0, output.logits_BK.argmax(1), classes_B)
        maps_BHW = self.readout.maps(self.method, seen_BCHW, classes_B, self.setting, output=output)
        scores_BK = output.logits_BK.sigmoid() if self.multilabel else output.logits_BK.softmax(1)
        return output.logits_BK, scores_BK, maps_BHW


@dataclass(frozen=True)
class Parity:
    """How far a graph is from the model, over some images."""

    images: int
    logit: float  # the largest difference beside max(1, |logit|)
    map: float  # the largest beside the map's range
    boxes: int  # images whose box differs
    source: str

    @property
    def holds(self) -> bool:
        return self.logit <= LOGIT and self.map <= MAP and self.boxes <= OTHER_BOXES

    def __str__(self) -> str:
        return (
            f"parity on {self.images} images of {self.source}: logits {self.logit:.1e} (limit {LOGIT:g}), maps "
            f"{self.map:.1e} (limit {MAP:g}), {self.boxes} other boxes (limit {OTHER_BOXES})"
        )


def export_graph(options: ExportOptions) -> Parity:
    """Write the graph to --out, and its reader beside it, once both have given what the model gives.

    Raises:
        UsageError: the model's readout needs gradients, or ONNX cannot be had here.
        DataError: the graph differs; there is no file then.
    """
    model = assemble(named(options))
    if model.config.readout not in OF_FORWARDS or model.needs_stored:
        raise UsageError(
            f"Readout {model.config.readout!r} needs more than a forward pass, and no graph can hold that; those that "
            f"can: {', '.join(OF_FORWARDS)}. The model's folder (--format folder) has it all."
        )
    images_BCHW, source = comparison_images(model, options)
    data, run = (_onnx if options.format == "onnx" else _torch_export)(model, images_BCHW, options)
    parity = compare(model, run, images_BCHW, source)
    if not parity.holds:
        raise DataError(f"The graph is not the model, and was not written: {parity}.")
    folder, _, name = Store.at(options.out).uri.rpartition("/")
    Store(folder).write(name, data)
    Store(folder).write(reader_name(name), Path(graph_reader.__file__).read_bytes())
    return parity


def reader_name(graph: str) -> str:
    """What the reader beside a graph is called, so that Python can import it: `bas-cub.onnx` has bas_cub_reader.py."""
    return re.sub(r"\W", "_", graph.rpartition(".")[0] or graph) + "_reader.py"


def metadata(model: Model) -> dict[str, str]:
    """What a reader of the graph's maps needs to know, as JSON texts."""
    rules = model.protocol
    facts = {
        "classes": list(model.classes), "multilabel": model.multilabel, "threshold": model.threshold,
        "protocol": rules.name, "geometry": rules.geometry, "box_rule": rules.box_rule, "normalise": rules.normalise,
        "epsilon": rules.epsilon, "read_size": rules.read_size, "image_size": rules.image_size, "margin": rules.margin,
        "masks": rules.masks, "counts_boxes": bool(rules.ious), "num_thresholds": rules.num_thresholds,
    }  # fmt: skip
    return {name: json.dumps(value) for name, value in facts.items()}


def comparison_images(model: Model, options: ExportOptions) -> tuple[Tensor, str]:
    """Up to 64 images as the network is shown them, uint8 [B, 3, H, W], and what they are. Raises `DataError`, and
    `UsageError` where none are named."""
    source = options.images
    if not source and options.study:
        source = f"{finished_study(Store.at(options.storage), options.study)['data']}:val"
    if not source:
        raise UsageError(
            "A graph is compared with its model on images: name some by --images FOLDER, or the model by --study NAME, "
            "whose validation split they then are."
        )
    reading = LocalizeOptions(source=source, model="-")
    found = [model.prepare(photograph(read(item, reading))[0]).image_CHW for item in listed(reading)[:COMPARED]]
    if len({image_CHW.shape for image_CHW in found}) > 1:  # a short side's: the graph takes any size
        found = [image_CHW for image_CHW in found if image_CHW.shape == found[0].shape]
    return torch.stack(found), source if options.images else "the study's validation split"


def compare(model: Model, run: Run, images_BCHW: Tensor, source: str) -> Parity:
    """The largest differences between a graph with its reader and the model, in batches of two sizes."""
    graph, facts = Graph(model).eval(), {name: json.loads(text) for name, text in metadata(model).items()}
    size_wh = (model.protocol.image_size,) * 2
    logit = of_map = 0.0
    boxes = 0
    for at in batched(range(len(images_BCHW)), 24):
        some_BCHW, classes_B = images_BCHW[at], torch.full((len(at),), -1)
        with torch.no_grad():
            expected, _, raw_BHW = (part.numpy() for part in graph(some_BCHW, classes_B))
        found, maps_BHW = run(some_BCHW, classes_B)
        logit = max(logit, float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max()))
        span_B = np.maximum(np.ptp(raw_BHW, axis=(1, 2)), 1e-12)
        of_map = max(of_map, float((np.abs(maps_BHW - raw_BHW).max((1, 2)) / span_B).max()))
        pairs = in_threads(
            lambda one, two: _box(one, size_wh, model) != graph_reader.box(two, size_wh, facts), raw_BHW, maps_BHW
        )
        boxes += sum(pairs)
    return Parity(len(images_BCHW), logit, of_map, boxes, source)


def _box(raw_HW: NDArray[Any], size_wh: Size, model: Model) -> Box | None:
    if is_flat(raw_HW):
        return None
    rules = model.protocol
    mask_HW, _ = object_mask(raw_HW, model.threshold, rules, size_wh)
    return Frame.of(size_wh, rules).box(extent(largest(mask_HW, rules))) if mask_HW.any() else None


def _example(images_BCHW: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Any, Any]]:
    """Two images, and that their number may be any."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    some = images_BCHW[:2] if len(images_BCHW) > 1 else images_BCHW.repeat(2, 1, 1, 1)
    return (some, torch.full((2,), -1)), ({0: batch}, {0: batch})


def _torch_export(model: Model, images_BCHW: Tensor, options: ExportOptions) -> tuple[bytes, Run]:
    example, shapes = _example(images_BCHW)
    with torch.no_grad():
        program = torch.export.export(Graph(model).eval(), example, dynamic_shapes=shapes)
    sink = io.BytesIO()
    torch.export.save(program, sink, extra_files=metadata(model))
    loaded = program.module()

    def run(some_BCHW: Tensor, classes_B: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        with torch.no_grad():
            logits_BK, _, maps_BHW = loaded(some_BCHW, classes_B)
        return logits_BK.numpy(), maps_BHW.numpy()

    return sink.getvalue(), run


def _stable_sort(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """What PyTorch's exporter lacks: ONNX's TopK gives the lower index of equals first."""
    from onnxscript import opset18

    op: Any = opset18
    size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
    return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def _why(error: Exception) -> str:
    """The line of an exporter's many that names what is missing."""
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    named = (line for line in lines if "No ONNX function" in line or "not supported" in line.lower())
    return next(named, next(filter(None, lines), type(error).__name__))[:300]


def _onnx(model: Model, images_BCHW: Tensor, options: ExportOptions) -> tuple[bytes, Run]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"--format onnx needs {error.name}: pip install 'wsol[export]'.") from error
    example, shapes = _example(images_BCHW)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "model.onnx"
        try:
            with torch.no_grad():
                torch.onnx.export(
                    Graph(model).eval(), example, place, dynamo=True, dynamic_shapes=shapes, external_data=False,
                    opset_version=options.opset, verbose=False, input_names=["images", "classes"],
                    output_names=["logits", "probabilities", "map"],
                    custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
                )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
            raise UsageError(f"ONNX cannot hold this model at --opset {options.opset}: {_why(error)}") from error
        made = onnx.load(place)
    if (opset := next(one.version for one in made.opset_import if one.domain == "")) != options.opset:
        raise UsageError(f"ONNX cannot hold this model at --opset {options.opset}: the exporter made {opset} of it.")
    for key, text in metadata(model).items():
        made.metadata_props.add(key=key, value=text)
    data = made.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(some_BCHW: Tensor, classes_B: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        logits_BK, _, maps_BHW = session.run(None, {"images": some_BCHW.numpy(), "classes": classes_B.numpy()})
        return logits_BK, maps_BHW

    return data, run
