"""What pseudo labels are worth: a detector that learned from them beside its teacher, on the same test images, once."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.images import decode
from wsol_pipeline.data.targets import edges
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.contours import ious_of_boxes
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.detection import Detection, mean_average_precision
from wsol_pipeline.evaluation.measures import is_judged
from wsol_pipeline.evaluation.metrics import LocalizationCounts
from wsol_pipeline.evaluation.protocols import Protocol, ground_truth_boxes
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.training.config import differences
from wsol_pipeline.training.localization import Wanted
from wsol_pipeline.training.model import Model, ModelFiles, assemble
from wsol_pipeline.use import detectors, student
from wsol_pipeline.use.models import named, pick
from wsol_pipeline.use.options import DetectorOptions, ModelOptions
from wsol_pipeline.use.run import CONTRACT, read_contract
from wsol_pipeline.use.student import Sample
from wsol_pipeline.verdict.costs import METRICS, SAMPLES, counted
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import dataset_at, finished_study
from wsol_pipeline.verdict.score import Progress, silent

VERDICT, WEIGHTS, TRAININGS = "student.json", "student.safetensors", "trainings"
RESULTS = ("arch", "steps", "batch_size", "learning_rate", "seed")  # options that one which is continued must share
AP_IOU = 0.5
TEACHER, SETTING, CONTROL = "teacher", "student", "centred boxes"


@dataclass(frozen=True)
class Shown:
    """A test image with its true boxes."""

    id: str
    label: int
    size_wh: tuple[int, int]
    image_CHW: Tensor
    boxes: list[Any]  # as they are stored, in this convention
    convention: str


@dataclass(frozen=True)
class Judged:
    """A row of the table: metrics on test in percent, AP at IoU 0.5 by the predicted class, and the difference to the
    teacher with its paired 95 % interval."""

    name: str
    figures: dict[str, float]
    average_precision: float
    beyond: dict[str, tuple[float, float, float]]  # difference, low, high


def learn_and_judge(options: DetectorOptions, progress: Progress = silent) -> tuple[list[Judged], int]:
    """Train on the boxes of a localization and, as a control, on boxes in the middle; judge both beside the teacher.

    One that was killed goes on where its last file of a training stands. Returns the rows and the number of boxes that
    were learned from. Raises `UsageError` and `DataError` before test is opened for what cannot be learned from or
    judged, and `ResourceError` while another process works on this --out.
    """
    out, source, device = Store.at(options.out), Store.at(options.taught), pick(options.device)
    if out.exists(VERDICT):
        raise UsageError(f"{out.path(VERDICT)} is there already: a student is judged once. Give another --out.")
    files = named(ModelOptions(study=options.study, storage=options.storage))
    place = options.data or finished_study(Store.at(options.storage), options.study)["data"]
    teacher, dataset = assemble(files, device), dataset_at(place)
    found = _learnable(source, files, teacher, dataset)
    with acquire(out.check_exclusive() / "lease"):
        _agree(out, options, files, dataset, found)
        with progress("evidence", len(found)) as add:
            kept = student.best_of_classes(found, student.evidence(teacher, found, add))
        networks = _trained(out, options, kept, len(dataset.classes), device, progress)
        judged = judge(teacher, networks, dataset, EvaluateOptions(cache_dir=options.cache_dir), device, progress)
        told = {"rows": [dataclasses.asdict(row) for row in judged], "boxes": len(kept), "classes": dataset.classes,
                "arch": options.arch, "steps": options.steps, "teacher": files.sha256}  # fmt: skip
        out.write(WEIGHTS, safetensors.torch.save(_plain(networks[SETTING])))
        out.write(VERDICT, json.dumps(told, indent=1).encode())
        out.remove_all(TRAININGS)
    return judged, len(kept)


def _agree(out: Store, options: DetectorOptions, files: ModelFiles, dataset: Dataset, found: Sequence[Sample]) -> None:
    """Begin a student in `out`, or raise `UsageError` where one was begun otherwise."""
    boxes = [(one.item["image_id"], one.item["state"], one.label, *one.box) for one in found]
    facts = {name: getattr(options, name) for name in RESULTS} | {
        "weights": options.weights and hashlib.sha256(detectors.found(options.weights).read_bytes()).hexdigest(),
        "teacher": files.sha256,
        "dataset": dataset.fingerprint,
        "boxes": hashlib.sha256(json.dumps(boxes).encode()).hexdigest(),
    }
    if not out.exists(CONTRACT):
        out.write(CONTRACT, json.dumps(facts, indent=1).encode())
    elif changes := differences(json.loads(out.read(CONTRACT)), facts):
        raise UsageError(f"{out.uri} was begun otherwise ({changes}): give another --out, or the same options.")


def _trained(
    out: Store, options: DetectorOptions, some: list[Sample], classes: int, device: str, progress: Progress
) -> dict[str, Any]:
    """The student and its control, each from the same random weights."""
    networks = {}
    for name, taught in ((SETTING, some), (CONTROL, student.centred(some))):
        networks[name] = make(options, classes)
        with progress(f"{name} learns", options.steps * options.batch_size) as add:
            place = student.Kept(out, f"{TRAININGS}/{name.replace(' ', '-')}.pt")
            student.train(networks[name], taught, options, device, place, add)
    return networks


def make(options: DetectorOptions, classes: int) -> Any:
    """An untrained detector, the same for every student of a seed."""
    torch.manual_seed(options.seed)
    network = detectors.build(options.arch, classes + 1)
    if options.weights:
        student.begin(network, options.weights)
    return network


def _plain(network: Any) -> dict[str, Tensor]:
    return {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}


def _learnable(source: Store, files: ModelFiles, teacher: Model, dataset: Dataset) -> list[Sample]:
    """The boxes of a localization by this very teacher, none of them of test."""
    if read_contract(source)["model_sha256"] != files.sha256:
        raise DataError(f"{source.uri} was localized by another model than the winner of this study.")
    if teacher.multilabel or not (teacher.protocol.ious and is_judged(teacher.protocol, dataset.test())):
        raise UsageError("A student is judged by boxes of test images, of one class each, as a protocol counts them.")
    found, of_test = student.samples(source), set(dataset.ids_of(Role.TEST))
    if leaks := [one.item["image_id"] for one in found if one.item["image_id"] in of_test]:
        raise DataError(f"{source.uri} has test images ({leaks[0]} first): nothing is learned from test.")
    if not found:
        raise DataError(f"{source.uri} has no box that takes 2 to 95 % of its image: there is nothing to learn from.")
    return found


class Tally:
    """What a detector has found so far: the IoU of its best box of the known label, and all its detections."""

    def __init__(self, rules: Protocol) -> None:
        self.rules = dataclasses.replace(rules, num_thresholds=1, masks="")  # no threshold cuts its boxes
        self.metric = LocalizationCounts(self.rules, settings=(SETTING,), keep_images=True)
        self.found: list[Detection] = []

    def add(self, image: Shown, network: Any, device: str) -> None:
        """Look at one more image."""
        boxes_N4, labels_N, scores_N = detections(network, image.image_CHW, device)
        self.found += [_detection(image.id, *of) for of in zip(labels_N, scores_N, boxes_N4, strict=True)]
        truth_M4 = ground_truth_boxes(image.boxes, image.size_wh, image.convention, self.rules)
        iou = iou_of_best(boxes_N4[labels_N == image.label], truth_M4, image.size_wh, self.rules)
        self.metric.update_ious(0, [np.array([iou])], np.zeros(1, np.int64))


def judge(
    teacher: Model, networks: dict[str, Any], dataset: Dataset, options: EvaluateOptions, device: str,
    progress: Progress = silent,
) -> list[Judged]:  # fmt: skip
    """The teacher and each detector on test, and how far each is from the teacher in the same redraws."""
    counts = {TEACHER: (counted(options, teacher, dataset, teacher.choice, device, progress), teacher.choice)}
    tallies = {name: Tally(teacher.protocol) for name in networks}
    truth: dict[tuple[str, int], NDArray[np.float64]] = {}
    by_teacher: list[Detection] = []
    with progress("students on test", dataset.test().num_rows) as add:
        for image in images_of_test(dataset):
            corners = np.array([edges(tuple(box), image.convention) for box in image.boxes], np.float64)
            truth[image.id, image.label] = corners - [0, 0, 1, 1]  # last pixels are inside, as of detections
            by_teacher += _of_teacher(teacher, image)
            for name, network in networks.items():
                tallies[name].add(image, network, device)
            add(1)
    ids, labels = (list(of) for of in zip(*truth, strict=True))
    counts |= {name: (tally.metric.counts(ids, labels), _choice()) for name, tally in tallies.items()}
    found = {TEACHER: by_teacher, **{name: tally.found for name, tally in tallies.items()}}
    return _rows(counts, {name: mean_average_precision(of, truth, AP_IOU) for name, of in found.items()})


def images_of_test(dataset: Dataset) -> Iterator[Shown]:
    """The test split, image after image."""
    split = dataset.test()
    shards, columns = split.shard_set(), ["id", "image", "labels", "boxes", "width", "height"]
    for first in range(0, split.num_rows, 32):
        for row in shards.read(np.arange(first, min(first + 32, split.num_rows)), columns).to_pylist():
            size_wh, image_CHW = (row["width"], row["height"]), decode(row["image"])
            yield Shown(row["id"], row["labels"][0], size_wh, image_CHW, row["boxes"], split.box_convention)


@torch.no_grad()
def detections(network: Any, image_CHW: Tensor, device: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A detector's boxes [N, 4], classes [N] (counted without the background) and scores [N], best first."""
    (found,) = network([image_CHW.to(device).float() / 255])
    order = found["scores"].argsort(descending=True, stable=True)
    boxes_N4, labels_N, scores_N = (found[name][order].cpu().numpy() for name in ("boxes", "labels", "scores"))
    return boxes_N4.astype(np.float64), labels_N - 1, scores_N


def iou_of_best(
    boxes_N4: NDArray[np.float64], truth_M4: NDArray[np.float64], size_wh: tuple[int, int], rules: Protocol
) -> float:
    """The IoU of the first box with any true one, as `rules` count; 0 where there is none."""
    if not len(boxes_N4):
        return 0.0
    mine_14 = ground_truth_boxes(boxes_N4[:1], size_wh, "exclusive0", rules)
    return float(ious_of_boxes(mine_14, truth_M4)[0])


def _of_teacher(teacher: Model, image: Shown) -> list[Detection]:
    (found,) = teacher.localize([teacher.prepare(image.image_CHW)], Wanted(top=1), [None])
    return [_detection(image.id, one.class_id, one.class_score, np.array(one.box)) for one in found if one.box]


def _detection(id: str, label: int, score: float, box_4: NDArray[np.float64]) -> Detection:
    x0, y0, x1, y1 = box_4.tolist()
    return Detection(id, int(label), float(score), (x0, y0, x1 - 1, y1 - 1))


def _choice() -> Choice:
    return Choice(METRICS[0], 0.0, 0, SETTING, {METRICS[0]: (0.0,) * 3, METRICS[1]: (0.0,)})


def _rows(counts: dict[str, tuple[Counts, Choice]], precisions: dict[str, float]) -> list[Judged]:
    redrawn = {
        name: np.stack([selection.redrawn(of, choice, metric, SAMPLES) for metric in METRICS])
        for name, (of, choice) in counts.items()
    }
    figures = {
        name: {metric: selection.transferred(of, choice)[metric] for metric in METRICS}
        for name, (of, choice) in counts.items()
    }
    rows = []
    for name in counts:
        apart_MR = redrawn[name] - redrawn[TEACHER]
        low_M, high_M = np.quantile(apart_MR, [0.025, 0.975], axis=1)
        beyond = {
            metric: (figures[name][metric] - figures[TEACHER][metric], float(low_M[m]), float(high_M[m]))
            for m, metric in enumerate(METRICS)
        }
        rows.append(Judged(name, figures[name], precisions[name], beyond))
    return rows


def verdict(rows: Sequence[Judged]) -> str:
    """Whether the student is above its teacher: within the interval they are equal."""
    (difference, low, high), name = next(row for row in rows if row.name == SETTING).beyond[METRICS[0]], METRICS[0]
    word = "better than" if low > 0 else "worse than" if high < 0 else "equal to"
    return f"The student is {word} its teacher: {difference:+.1f} [{low:+.1f}, {high:+.1f}] points of {name}."
