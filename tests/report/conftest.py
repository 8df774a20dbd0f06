"""A study's facts, made up: three models on a protocol of few thresholds, six images, four trials."""

import base64
from dataclasses import replace

import cv2
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from wsol_pipeline.evaluation.cases import Case
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.selection import choose
from wsol_pipeline.report.facts import Facts, Line, Search, Subject
from wsol_pipeline.storage import Store
from wsol_pipeline.training.config import Recipe, TrainConfig
from wsol_pipeline.verdict.rows import Contender, Row

PRESET = "bas-ext/table1/cub/resnet50"
NOTHING = {"transferred": {}, "oracle": {}, "intervals": {}}
CONFIG = TrainConfig(method="bas", readout="topk", image_size=32, resize_size=36, recipe=Recipe(epochs=2, batch_size=8))


def row(label: str, value: float, judged: bool = True) -> Row:
    """A line whose GT-known is its objective plus 10; validation is 1 above test, the oracle 2."""
    val, test, oracle = ({"max_box_acc_v2": value + by, "gt_known_loc": value + by + 10} for by in (1, 0, 2))
    if not judged:
        return Row(label, "1 > 0.500", val, **NOTHING)
    return Row(label, "1 > 0.500", val, test, oracle, {"transferred": {"max_box_acc_v2": (value - 3, value + 3.25)}})


def counts(settings=(1, 2, 3)) -> Counts:
    """Of six images: hits rise to threshold 0.25 and fall; the first setting is best."""
    shape = np.array([2, 6, 4, 1])
    hits = np.stack([np.stack([np.maximum(shape - s, 0)] * 3) for s in range(len(settings))])
    six = np.full(len(settings), 6)
    return Counts("wsol-v1", tuple(settings), (0.3, 0.5, 0.7), np.arange(4) / 4, hits, hits, hits, six, six, six)


def case(number: int, iou: float) -> Case:
    box = (4.0, 4.0, 19.0, 19.0)
    return Case(number, f"image{number}", 0, 0, iou >= 0.5, iou, 0.6, 0.6, 1, 0.1 * (number + 1), box, (box,))


def picture(group: str, of: Case) -> dict:
    """What an evaluation keeps of an image."""
    grey = np.full((32, 32, 3), 99, np.uint8)
    encode = lambda kind, array: base64.b64encode(cv2.imencode(kind, array)[1].tobytes()).decode()  # noqa: E731
    return vars(of) | {
        "group": group, "class": "cat", "pixels": [32, 32], "image": encode(".jpg", grey),
        "map": encode(".png", grey[..., 0]),
    }  # fmt: skip


def subject(label: str, study: str, lines: list[Row], preset: str | None = None) -> Subject:
    """A judged model, if its last line has figures of test."""
    judged = bool(lines[-1].transferred)
    cases = tuple(case(n, iou) for n, iou in enumerate((0.9, 0.7, 0.6, 0.4, 0.2, 0.1))) if judged else ()
    return Subject(
        contender=Contender(label, study, Store(f"/runs/{study}/final"), preset),
        config=CONFIG,
        choice=choose(counts()),
        val=counts(),
        lines=tuple(Line(row, counts((1,)) if judged else None, cases) for row in lines),
        pictures=tuple(picture(g, c) for g, c in zip(("best", "median", "worst"), cases, strict=False)),
        description={
            "data": "/data/<script>alert(1)</script>",
            "dataset": "f",
            "val_split": "v",
            "arithmetic": "float32",
            "training_images": "exact pixels",
            "classes": ["cat"],
        },
        evaluation={"images": 6, "device": "cpu", "test_fingerprint": "t", "provenance": {}} if judged else None,
    )


def search(name: str = "a") -> Search:
    """Published, searched (the winner), pruned and failed."""
    study = optuna.create_study(study_name=name, direction="maximize")
    for alpha, state, value, attrs in (
        (0.5, TrialState.COMPLETE, 50.0, {"published": PRESET}),
        (0.7, TrialState.COMPLETE, 60.0, {}),
        (0.1, TrialState.PRUNED, 20.0, {}),
        (0.2, TrialState.FAIL, None, {"failure": {"kind": "<script>", "message": "no"}}),
    ):
        study.add_trial(
            optuna.trial.create_trial(
                params={"alpha": alpha},
                distributions={"alpha": optuna.distributions.FloatDistribution(0, 1)},
                value=value,
                state=state,
                user_attrs=attrs,
                intermediate_values={1: value} if value else {},
            )
        )
    return Search(name, tuple(study.trials), 1, {0: counts(), 1: counts()})


@pytest.fixture
def make_row():
    return row


@pytest.fixture
def make_subject():
    return subject


@pytest.fixture
def make_case():
    return case


@pytest.fixture
def make_counts():
    return counts


@pytest.fixture(scope="session")
def facts() -> Facts:
    """Study b's winner, study a as published and with its readout solved, a's winner; all judged."""
    published = [row("a: published", 36), row("a: published, readout solved", 52.5)]
    return Facts(
        subjects=(
            subject("b: winner", "b", [row("b: winner", 46)]),
            subject("a: published", "a", published, PRESET),
            subject("a: winner", "a", [row("a: winner", 71.75)]),
        ),
        searches=(search(),),
        centred_box=replace(row("centred box", 40), intervals={}, readout="area 0.40"),
        gallery=None,
    )
