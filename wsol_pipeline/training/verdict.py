"""The final evaluation: the test split, opened once per model, after every choice was made on validation.

Two numbers for every metric, never mixed: *transferred*, with readout and thresholds chosen on validation (the honest
number), and *oracle*, with thresholds picked on the test split itself (the field's habit: an upper bound).

Kept below a study's folder, for reports, which never open the test split themselves:

    evaluations/MODEL.json               rows, the counts behind them, provenance
    evaluations/MODEL/images-N.parquet   every single image as row N of them sees it (a `Case` each)
    evaluations/MODEL/pictures.json      some of these images: best, median and worst
    centred-box.json                     the baseline's row
"""

import base64
import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from mlflow.entities import Metric

import search_spaces
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.images import resize_to
from wsol_pipeline.data.reader import EvalRows, ReadConfig, eval_rows
from wsol_pipeline.errors import DataError, PartialError, ResourceError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.baseline import count_centred
from wsol_pipeline.evaluation.cases import Case, add_cases, spread
from wsol_pipeline.evaluation.contours import ious_of_boxes
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.detection import mean_average_precision
from wsol_pipeline.evaluation.evaluate import batch_boxes, class_pairs, count, detect
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import predicted_box
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.images import dtype_of, normalize
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.training import cluster, registry
from wsol_pipeline.training.config import check_name, require
from wsol_pipeline.training.gallery import Shown, draw_gallery
from wsol_pipeline.training.model import VAL_COUNTS, Model, load_model
from wsol_pipeline.training.provenance import provenance
from wsol_pipeline.training.study import WINNER
from wsol_pipeline.training.surface import published_choice, published_reading
from wsol_pipeline.training.terminal import print_verdict, progress
from wsol_pipeline.training.tracking import Connect, Projection, deliver
from wsol_pipeline.training.views import connect_mlflow

GALLERY_IMAGES = 8
GALLERY = "gallery.png"
EVALUATIONS, PICTURES, CENTRED_BOX = "evaluations", "pictures.json", "centred-box.json"
PICTURES_OF_A_KIND = 4
PICTURE_SIZE = 256  # pixels of the longer side, at most
DETECTION_IOUS = (0.1, 0.3, 0.5)


@dataclass(frozen=True)
class EvaluateOptions:
    """Which studies to judge, and where."""

    study: tuple[str, ...] = ("bas",)
    """Names of studies (or runs). The first one's winner is the contender; the others stand beside it."""
    storage: str = "runs"
    """The --storage of those studies."""
    champion: bool = True
    """Give the first study's winner the alias 'champion' in the model registry."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    batch_size: int = 64
    """Images a forward pass."""
    cache_dir: str | None = None
    """Where a node keeps decoded pixels; by default below the user's cache folder."""
    experiment: str = "wsol"
    """MLflow experiment of the studies."""

    def __post_init__(self) -> None:
        require(len(self.study) >= 1, "at least one --study is needed", self.study)
        for name in self.study:
            check_name("study", name)
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)

    @property
    def store(self) -> Store:
        """Where all studies are kept."""
        return Store.at(self.storage)


@dataclass(frozen=True)
class Contender:
    """A finished model to be judged. `preset` names the published setting it was trained with, if it was."""

    label: str
    study: str
    final: Store
    preset: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of the verdict: metrics in percent; intervals are 95 % bootstrap intervals over test images.

    `published` is what the paper reports for the setting `preset` under the same protocol, on its own data.
    """

    label: str
    readout: str
    val: Mapping[str, float]
    transferred: dict[str, float]
    oracle: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    preset: str | None = None
    published: Mapping[str, float] = field(default_factory=dict)


def judge(options: EvaluateOptions) -> int:
    """Evaluate the studies' winners on test, print and keep the result. Returns the exit code."""
    winners = {name: finished_study(options.store, name) for name in options.study}
    dataset = _same_dataset(winners)
    judged = contenders(winners)
    models = [load_model(contender.final) for contender in judged]
    _require_comparable(dataset, judged, models)
    connect = connect_mlflow(options.store, options.experiment)
    rules = models[0].protocol
    rows = [_centred_box(options, dataset, rules)]
    for study in options.study:
        (options.store / study).write(CENTRED_BOX, json.dumps(dataclasses.asdict(rows[0])).encode())
    for contender in judged:
        rows += judged_rows(options, contender, rules)
    folder = options.store / options.study[0]
    labels = [contender.label for contender in judged]
    picture = _draw(options, dataset, dict(zip(labels, models, strict=True)), folder)
    print_verdict(
        rows, models[-1].config.objective, rules.name, dataset.test().num_rows, folder, picture, options.storage
    )
    print(
        f"next:    python rayjobs/report.py --study {' '.join(options.study)} --storage {options.storage}", flush=True
    )
    tags = registry.model_tags({**models[-1].description, "dataset": dataset.fingerprint})
    _publish(options, connect, judged[-1], tags, rows, models[-1].config.objective)
    return 0


def finished_study(store: Store, study: str) -> dict[str, Any]:
    """The winner's record of a study. Raises `DataError` with the finished ones if it is not among them."""
    try:
        return json.loads((store / study).read(WINNER))
    except FileNotFoundError:
        known = sorted({name.split("/")[0] for name in store.list() if name.endswith(f"/{WINNER}")})
        raise DataError(
            f"{store.uri} has no finished study {study!r}; finished ones: {', '.join(known) or 'none'}."
        ) from None


def _same_dataset(winners: Mapping[str, Mapping[str, Any]]) -> Dataset:
    places = {winner["data"] for winner in winners.values()}
    if len(places) > 1:
        raise DataError(f"Studies of different datasets cannot stand in one table: {', '.join(sorted(places))}.")
    return open_dataset(places.pop())


def contenders(winners: Mapping[str, Mapping[str, Any]]) -> list[Contender]:
    """Others' winners first, then the first study's published setting, then its winner; one line if it is both."""
    first, *others = winners
    found = [Contender(f"{name}: winner", name, Store(winners[name]["model"])) for name in others]
    main, published = winners[first], winners[first]["published"]
    if published and published["model"] == main["model"]:
        return [*found, Contender(f"{first}: winner, as published", first, Store(main["model"]), published["preset"])]
    if published:
        found.append(Contender(f"{first}: published", first, Store(published["model"]), published["preset"]))
    return [*found, Contender(f"{first}: winner", first, Store(main["model"]))]


def _require_comparable(dataset: Dataset, contenders: list[Contender], models: list[Model]) -> None:
    """Raise `DataError` for models of another evaluation, or trained on other data than lies there today."""
    for contender, model in zip(contenders, models, strict=True):
        if model.protocol != models[0].protocol:
            raise DataError(
                f"{contender.study} was tuned under {model.protocol.name} at {model.protocol.image_size} px, "
                f"{contenders[0].study} under {models[0].protocol.name} at {models[0].protocol.image_size} px: "
                "one table holds one evaluation."
            )
        if model.description["dataset"] != dataset.fingerprint:
            raise DataError(f"{dataset.uri} is not the data any more that {contender.study} was tuned on.")


def judged_rows(options: EvaluateOptions, contender: Contender, rules: Protocol) -> list[Row]:
    """The rows of one model: from the kept result if test was opened for it before, else from test, now."""
    folder, name = options.store / contender.study / EVALUATIONS, evaluation_name(contender)
    if not folder.exists(f"{name}.json"):
        result, files = _score_somewhere(options, contender)
        for file, data in files.items():
            (folder / name).write(file, data)
        folder.write(f"{name}.json", json.dumps(redact(result), indent=1).encode())
    return rows_of(contender, json.loads(folder.read(f"{name}.json"))["rows"], rules)


def evaluation_name(contender: Contender) -> str:
    """What a model's kept result is called: a model has one, and another if it is read as published too."""
    return f"{registry.model_fingerprint(contender.final)[:16]}{'-published' if contender.preset else ''}"


def rows_of(contender: Contender, rows: Sequence[Mapping[str, Any]], rules: Protocol) -> list[Row]:
    """Rows of one model, as they are kept, with its label before theirs and the paper's figures beside them."""
    beside = {"preset": contender.preset, "published": paper_figures(contender.preset, rules)}
    return [Row(**{**row, "label": f"{contender.label}{row['label']}", **beside}) for row in rows]


def paper_figures(preset: str | None, rules: Protocol) -> Mapping[str, float]:
    """What the paper reports for a preset, if under these rules; under others the same name is another measure."""
    row = search_spaces.presets().get(preset or "")
    return row.published if row and row.protocol == rules.name else {}


def _score_somewhere(options: EvaluateOptions, contender: Contender) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Score here, or on a node with a GPU if this process runs as a job on a cluster that has one."""
    if not ray.is_initialized():
        device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
        if options.device == "cuda" and device == "cpu":
            raise ResourceError("--device cuda needs a GPU but this machine has none.")
        return score(contender, options, device)
    if cluster.pick_device(options.device) == "cpu":  # a worker would first import for seconds what is here already
        return score(contender, options, "cpu")
    return ray.get(ray.remote(score).options(num_gpus=1).remote(contender, options, "cuda"))


def score(contender: Contender, options: EvaluateOptions, device: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Open the test split for one model and count. Everything was chosen before.

    The result comes back as plain data, with the files beside it: every image as each row sees it, and pictures of some
    as the last row does. Class masks are scored together, so that there a single image has no result of its own.
    """
    model = load_model(contender.final, device)
    val = Counts.from_dict(json.loads(contender.final.read(VAL_COUNTS)))
    dataset = open_dataset(model.description["data"])
    rows = _test_rows(options, dataset, model.protocol)
    results, kept, files = [], [], {}
    for number, (label, choice) in enumerate(choices(contender, model).items()):
        cases: list[Case] = []
        note = functools.partial(add_cases, cases, choice.threshold, model.protocol)
        with progress(f"{contender.label}{label} on test", rows.num_rows) as add:
            counts = count(
                model.method, model.readout, rows, model.protocol, settings=[choice.readout], device=device,
                keep_images=True, ten_crop=model.protocol.ten_crop, on_batch=add,
                on_maps=note if model.protocol.masks != "classes" else None,
            )  # fmt: skip
        row = _row(label, choice, val, counts, model.protocol)
        if model.multilabel and model.protocol.box_rule == "components":
            row.transferred.update(_average_precisions(model, rows, choice, device))
        results.append(row)
        kept.append(counts.to_dict())
        files[f"images-{number}.parquet"] = _parquet(cases)
    files[PICTURES] = json.dumps(_pictures(model, rows, dataset.classes, cases, device)).encode()
    result = {
        "rows": [dataclasses.asdict(row) for row in results],
        "counts": kept,
        "model": contender.final.uri,
        "description": model.description,
        "test_fingerprint": dataset.test().fingerprint,
        "images": dataset.test().num_rows,
        "device": device,
        "provenance": provenance(),
    }
    return result, files


def choices(contender: Contender, model: Model) -> dict[str, Choice]:
    """How a model is read, by what is added to its label: as published, if its setting is, and as solved."""
    return _published_choice(contender, model) | {", readout solved" if contender.preset else "": model.choice}


def _parquet(cases: Sequence[Case]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dataclasses.asdict(case) for case in cases]), file)
    return file.getvalue()


def _pictures(
    model: Model, rows: EvalRows, classes: Sequence[str], cases: Sequence[Case], device: str
) -> list[dict[str, Any]]:
    """Images of best, median and worst IoU as plain data: the image, its map, and what its `Case` says."""
    found = []
    for group, some in spread(cases, PICTURES_OF_A_KIND).items():
        for case in some:
            (read,) = dataclasses.replace(rows, begin=case.row, end=case.row + 1).batches()
            batch = class_pairs(read, model.protocol)
            at = batch.labels_B.tolist().index(case.label)
            size_wh = model.protocol.map_size(batch.sizes_B2[at])
            images = normalize(batch.images_BCHW[at : at + 1], device, dtype_of(model.method))
            labels_B = batch.labels_B[at : at + 1].to(device)
            raw_HW = model.readout.maps(model.method, images, labels_B, model.choice.readout)[0].cpu().numpy()
            map_HW = np.rint(255 * normalised_map(raw_HW, model.protocol, size_wh)).astype(np.uint8)
            picture = _picture(batch.images_BCHW[at], size_wh)[..., ::-1]  # OpenCV's order
            encoded = {"image": _encoded(".jpg", picture), "map": _encoded(".png", map_HW)}
            seen = dataclasses.asdict(case) | {"group": group, "class": classes[case.label], "pixels": size_wh}
            found.append(seen | encoded)
    return found


def _encoded(kind: str, picture: np.ndarray) -> str:
    """A picture as a file of that kind, shrunk to `PICTURE_SIZE`, in base64."""
    scale = min(1.0, PICTURE_SIZE / max(picture.shape[:2]))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.imencode(kind, small)[1].tobytes()).decode()


def _average_precisions(model: Model, rows: EvalRows, choice: Choice, device: str) -> dict[str, float]:
    """Detection mAP at the IoUs that mLDFR reports, percent."""
    found, truth = detect(model.method, model.readout, rows, model.protocol, choice, device=device)
    return {f"map_{100 * iou:.0f}": mean_average_precision(found, truth, iou) for iou in DETECTION_IOUS}


def _row(label: str, choice: Choice, val: Counts, test: Counts, rules: Protocol) -> Row:
    """`val` is a mean over images, as the choices were; test is what the protocol says."""
    weights = None
    if rules.over_classes and test.image_hits:
        weights, test = selection.class_weights(test.image_hits.labels), selection.balanced(test)
    return Row(
        label=label,
        readout=named(choice),
        val=selection.transferred(val, choice),
        transferred=selection.transferred(test, choice),
        oracle=selection.oracle(test, choice),
        intervals=selection.bootstrap(test, choice, weights_N=weights),
    )


def named(choice: Choice) -> str:
    """A readout setting and the threshold of its boxes or masks, as a table shows them."""
    return f"{choice.readout} > {choice.threshold:.3f}"


def _published_choice(contender: Contender, model: Model) -> dict[str, Choice]:
    """The published setting and threshold too, for a model of a published row that names them and is read alike."""
    reading = published_reading(model.config, contender.preset)
    if reading is None:
        return {}
    return {"": published_choice(model.choice, tuple(model.readout.settings(model.method)), reading)}


def _centred_box(options: EvaluateOptions, dataset: Dataset, rules: Protocol) -> Row:
    """The centred box, its area chosen on validation like every other threshold."""
    config = _read_config(options, rules)
    val = count_centred(eval_rows(dataset.val, config, rules.geometry, options.batch_size), rules)
    test = count_centred(_test_rows(options, dataset, rules), rules)
    choice = selection.choose(val, selection.metrics_of(val)[0])
    area = f"area {choice.threshold if rules.ious else 1 - choice.threshold:.2f}"
    values = (selection.transferred(val, choice), selection.transferred(test, choice), selection.oracle(test, choice))
    val_boxes, transferred, oracle = map(_boxes_only, values)
    return Row("centred box", area, val_boxes, transferred, oracle, {})


def _boxes_only(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without those of a classifier, which a centred box has not."""
    return {name: value for name, value in metrics.items() if not name.startswith(("top", "cls"))}


def _read_config(options: EvaluateOptions, rules: Protocol) -> ReadConfig:
    return ReadConfig(resize_size=rules.resize_size, image_size=rules.image_size, cache_dir=options.cache_dir)


def _test_rows(options: EvaluateOptions, dataset: Dataset, rules: Protocol) -> EvalRows:
    return eval_rows(dataset.test(), _read_config(options, rules), rules.geometry, options.batch_size)


def _draw(options: EvaluateOptions, dataset: Dataset, models: Mapping[str, Model], folder: Store) -> str:
    """Write the gallery, the same test images, evenly spread over the split, through every model; where it is.

    An image of several classes is shown with the first of them.
    """
    rules = next(iter(models.values())).protocol
    rows = _test_rows(options, dataset, rules)
    wanted = sorted(set(np.linspace(0, rows.num_rows - 1, GALLERY_IMAGES).astype(int).tolist()))
    shown: dict[str, list[Shown]] = {label: [] for label in models}
    images, classes, truths = [], [], []
    first = 0
    for found in rows.batches():
        local = [row - first for row in wanted if first <= row < first + len(found.ids)]
        first += len(found.ids)
        if not local:
            continue
        batch = class_pairs(found, rules)
        at = np.searchsorted(batch.pairs[0], local).tolist()
        truth = batch_boxes(batch, rows.box_convention, rules)
        sizes = [rules.map_size(batch.sizes_B2[i]) for i in at]
        classes += [dataset.classes[batch.labels_B[i]] for i in at]
        images += [_picture(batch.images_BCHW[i], size) for i, size in zip(at, sizes, strict=True)]
        truths += [truth[i] for i in at]
        for label, model in models.items():
            shown[label] += _seen(model, batch.images_BCHW[at], batch.labels_B[at], [truth[i] for i in at], sizes)
    with tempfile.TemporaryDirectory() as temporary:
        picture = draw_gallery(images, classes, truths, shown, Path(temporary) / GALLERY)
        folder.write(GALLERY, picture.read_bytes())
    return folder.path(GALLERY)


def _picture(image_CHW: torch.Tensor, size_wh: tuple[int, int]) -> np.ndarray:
    """The image as its map and boxes are measured, uint8 [H, W, 3]."""
    return resize_to(image_CHW, size_wh[::-1]).permute(1, 2, 0).numpy()


def _seen(
    model: Model,
    images_BCHW: torch.Tensor,
    labels_B: torch.Tensor,
    truths: list[np.ndarray],
    sizes: list[tuple[int, int]],
) -> list[Shown]:
    images = normalize(images_BCHW, dtype=dtype_of(model.method))
    maps_BHW = model.readout.maps(model.method, images, labels_B, model.choice.readout).cpu().numpy()
    found = []
    for raw_HW, truth_N4, size_wh in zip(maps_BHW, truths, sizes, strict=True):
        box = predicted_box(raw_HW, model.threshold, model.protocol, size_wh)
        map_HW = normalised_map(raw_HW, model.protocol, size_wh)
        found.append(Shown(map_HW, box, float(ious_of_boxes(box[None], truth_N4)[0])))
    return found


def _publish(
    options: EvaluateOptions, connect: Connect, winner: Contender, judged: Mapping[str, str], rows: list[Row],
    objective: str,
) -> None:  # fmt: skip
    """Put the verdict on the first study's MLflow run and crown its winner. Raises `DataError` if it cannot be crowned,
    `PartialError` if MLflow is away."""
    name, transferred = options.study[0], rows[-1].transferred
    projection = Projection(connect, name, {}, list)
    figures = {metric: transferred[metric] for metric in sorted(transferred, key=lambda metric: metric != objective)}

    def add_rows() -> None:
        values = redact({row.label: dataclasses.asdict(row) for row in rows})
        projection.client.log_dict(projection.parent_run(), values, "evaluation.json")

    def add_metrics() -> None:
        run = projection.client.get_run(projection.parent_run()).info
        metrics = [
            Metric(f"test/{kind}/{metric}", value, run.start_time, 0)  # at one time: written again it is the same
            for kind, values in (("transferred", transferred), ("oracle", rows[-1].oracle))
            for metric, value in values.items()
        ]
        projection.client.log_batch(run.run_id, metrics)

    def add_gallery() -> None:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / GALLERY
            picture.write_bytes((options.store / name).read(GALLERY))
            projection.add_pictures([picture])

    def crown() -> None:
        fingerprint = registry.model_fingerprint(winner.final)
        print(registry.crown(projection.client, name, fingerprint, judged, figures), flush=True)

    steps = {"evaluation.json": add_rows, "metrics on test": add_metrics, "the gallery": add_gallery}
    missing = deliver(projection, steps | ({"the champion": crown} if options.champion else {}))
    if missing:
        raise PartialError(f"{missing}: the same command writes it, and judges nothing again.")
