"""A model on the test split: counts, figures, intervals, and every single image as it sees it."""

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.reader import EvalRows, ReadConfig, eval_rows
from wsol_pipeline.errors import ResourceError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.baseline import count_centred
from wsol_pipeline.evaluation.cases import SCORES, Case, add_cases, with_scores
from wsol_pipeline.evaluation.counts import BOXES, Counts
from wsol_pipeline.evaluation.detection import mean_average_precision
from wsol_pipeline.evaluation.evaluate import count, detect
from wsol_pipeline.evaluation.measures import choosing, is_judged
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.selectors import said
from wsol_pipeline.study.surface import published_choice, published_reading
from wsol_pipeline.text import format_threshold
from wsol_pipeline.tracking.provenance import provenance
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.model import VAL_COUNTS, Model, load_model
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.pictures import PICTURES, pictures_of
from wsol_pipeline.verdict.rows import BASELINE, Contender, Row

# (what is passed, of how many images) -> a context whose value is called with how many more are done
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def silent(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Tells nobody how a pass goes on."""
    return nullcontext(lambda more: None)


def local_device(wanted: str) -> str:
    """ "cuda" if asked for, or if `wanted` is "auto" and this machine has a GPU; else "cpu". Raises `ResourceError`."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda needs a GPU but this machine has none.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def score_here(
    options: EvaluateOptions, contender: Contender, dataset: Dataset, progress: Progress
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """`score` on this machine's device."""
    return score(contender, dataset, options, local_device(options.device), progress)


def score(
    contender: Contender, dataset: Dataset, options: EvaluateOptions, device: str, progress: Progress = silent
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Open the test split for one model and count. Everything was chosen before.

    The result comes back as plain data, with the files beside it: every image as each row sees it, and pictures of some
    as the last row does. Class masks are scored together, so that there a single image has no result of its own.
    """
    model = load_model(contender.final, device)
    val = Counts.from_dict(json.loads(read_sealed(contender.final, VAL_COUNTS)[VAL_COUNTS]))
    rows, rules = test_rows(options, dataset, model.protocol), scored(model.protocol, dataset)
    results, kept, files = [], [], {}
    for number, (label, choice) in enumerate(choices(contender, model).items()):
        cases: list[Case] = []
        note = functools.partial(add_cases, cases, choice.threshold, model.protocol)
        with progress(f"{contender.label}{label} on test", rows.num_rows) as add:
            pass_test = functools.partial(
                count, model.method, model.readout, rows, rules, settings=[choice.readout], device=device,
                keep_images=True, ten_crop=rules.ten_crop,
            )  # fmt: skip
            truth = rules.ious or rules.masks
            counts = pass_test(on_batch=add, on_maps=note if rules.masks != "classes" and truth else None)
            ruled = pass_test(rule=choice.rule) if choice.rule else counts
        row = row_of(label, choice, val, counts, ruled, rules)
        if model.multilabel and model.protocol.box_rule == "components":
            row.transferred.update(_average_precisions(model, rows, choice, device))
        results.append(row)
        kept.append(counts.to_dict())
        cases = with_scores(cases, ruled.image_hits, selection.of_images(ruled, choice, SCORES))
        files[f"images-{number}.parquet"] = _parquet(cases)
    files[PICTURES] = json.dumps(pictures_of(model, rows, dataset.classes, cases, device)).encode()
    result = {
        "rows": [dataclasses.asdict(row) for row in results],
        "counts": kept,
        "model": options.store.relative(contender.final.uri),
        "description": model.description,
        "test_fingerprint": dataset.test().fingerprint,
        "images": dataset.test().num_rows,
        "shrunk": int(counts.shrunk or 0),
        "device": device,
        "provenance": provenance(),
    }
    return result, files


def choices(contender: Contender, model: Model) -> dict[str, Choice]:
    """How a model is read, by what is added to its label: as published, if its setting is, and as solved."""
    return _published_choice(contender, model) | {", readout solved" if contender.preset else "": model.choice}


def named(choice: Choice) -> str:
    """A readout setting and the threshold of its boxes or masks, as a table shows them."""
    by = "" if choice.selector == BOXES else f" by {said(choice.selector)}"
    return f"{choice.readout} > {format_threshold(choice.threshold)}{by}"


def _parquet(cases: Sequence[Case]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dataclasses.asdict(case) for case in cases]), file)
    return file.getvalue()


def _average_precisions(model: Model, rows: EvalRows, choice: Choice, device: str) -> dict[str, float]:
    """Detection mAP at the IoUs that mLDFR reports, percent."""
    found, truth = detect(model.method, model.readout, rows, model.protocol, choice, device=device)
    return {name: mean_average_precision(found, truth, iou) for name, iou in selection.DETECTION.items()}


def scored(rules: Protocol, dataset: Dataset) -> Protocol:
    """What of `rules` can be counted on test: nothing but classes where it has labels alone."""
    return rules if is_judged(rules, dataset.test()) else dataclasses.replace(rules, ious=(), masks="")


def row_of(label: str, choice: Choice, val: Counts, test: Counts, ruled: Counts, rules: Protocol) -> Row:
    """`val` is a mean over images, as the choices were; test is what the protocol says. `ruled`: test where each map is
    read by the choice's rule, if it has one: no threshold is then transferred."""
    weights = None
    if rules.over_classes and test.image_hits:
        weights = selection.class_weights(test.image_hits.labels)
        test, ruled = selection.balanced(test), selection.balanced(ruled)
    return Row(
        label=label,
        readout=named(choice),
        val={**selection.transferred(val, choice), choice.metric: choice.value},
        transferred=selection.transferred(ruled, choice),
        oracle=selection.oracle(test, choice),
        intervals={
            "transferred": selection.bootstrap(ruled, choice, weights_N=weights)["transferred"],
            "oracle": selection.bootstrap(test, choice, weights_N=weights)["oracle"],
        },
    )


def _published_choice(contender: Contender, model: Model) -> dict[str, Choice]:
    """The published setting and threshold too, for a model of a published row that names one and is read alike."""
    reading = published_reading(model.config, contender.preset)
    if reading is None:
        return {}
    val = Counts.from_dict(json.loads(contender.final.read(VAL_COUNTS)))
    return {"": published_choice(val, model.config.objective, reading)}


def centred_box(options: EvaluateOptions, dataset: Dataset, rules: Protocol, rows: Any) -> Row:
    """The centred box on `rows`, its area chosen on validation like every other threshold."""
    config = read_config(options, rules)
    chosen_by = choosing(rules, dataset.val)
    val = count_centred(eval_rows(dataset.val, config, rules.geometry, options.batch_size), chosen_by)
    test = count_centred(rows, rules)
    choice = selection.choose(val, selection.metrics_of(val)[0])
    threshold = float(choice.threshold)
    area = f"area {threshold if chosen_by.ious else 1 - threshold:.2f}"
    values = (selection.transferred(val, choice), selection.transferred(test, choice), selection.oracle(test, choice))
    val_boxes, transferred, oracle = map(_boxes_only, values)
    return Row(BASELINE, area, val_boxes, transferred, oracle, {})


def _boxes_only(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without those of a classifier, which a centred box has not."""
    return {name: value for name, value in metrics.items() if not name.startswith(("top", "cls"))}


def read_config(options: EvaluateOptions, rules: Protocol) -> ReadConfig:
    return ReadConfig(resize_size=rules.resize_size, image_size=rules.image_size, cache_dir=options.cache_dir)


def test_rows(options: EvaluateOptions, dataset: Dataset, rules: Protocol) -> EvalRows:
    """The test split, as `rules` cut its images."""
    return eval_rows(dataset.test(), read_config(options, rules), rules.geometry, options.batch_size)
