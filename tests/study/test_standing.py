"""A study's winner beside the centred box, on validation."""

import dataclasses
import json

import pytest

from wsol_pipeline.evaluation.baseline import verdict_on_box
from wsol_pipeline.study import standing
from wsol_pipeline.study.standing import beside_box
from wsol_pipeline.training.model import DESCRIPTION
from wsol_pipeline.verdict import score
from wsol_pipeline.verdict.options import EvaluateOptions


@pytest.fixture
def finished(fit, make_config):
    return fit(make_config("bas"), "standing")


def test_it_stands_beside_what_the_final_evaluation_has_for_validation(finished, make_config, dataset, reading):
    config = make_config("bas")
    told = beside_box(finished.final, config, dataset, reading.cache_dir)
    rules = standing.protocol(config.protocol, image_size=config.image_size, resize_size=config.resize_size)
    options = EvaluateOptions(study=("x",), cache_dir=reading.cache_dir)
    box = score.centred_box(options, dataset, rules, score.test_rows(options, dataset, rules)).val["max_box_acc_v2"]
    value = json.loads(finished.final.read(DESCRIPTION))["choice"]["value"]
    assert told.startswith(f"Validation, where it was chosen: MaxBoxAccV2 {value:.1f} % [")
    assert f"], centred box {box:.1f} %, Top-1 Loc " in told
    assert ", Top-1 Cls " in told


def test_where_boxes_have_not_chosen_or_the_metric_asks_a_classifier_nothing_is_compared(
    finished, make_config, dataset, monkeypatch
):
    config = make_config("bas")
    for other in ({"select_by": "evidence"}, {"threshold_by": "otsu"}):
        assert beside_box(finished.final, dataclasses.replace(config, **other), dataset) == ""
    counts, choice = standing._counts(finished.final)
    by_class = dataclasses.replace(choice, metric="top1_loc")
    monkeypatch.setattr(standing, "_counts", lambda final: (counts, by_class))
    assert "centred" not in beside_box(finished.final, config, dataset)


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ((45.1, 55.0), ""),
        ((45.0, 55.0), "The 95 % interval holds the centred box (45.0 %): nothing says that it localizes better"),
        ((40.0, 44.9), "A centred box is better (45.0 %): this model localizes worse than a box in the middle."),
        (None, ""),
    ],
)
def test_a_box_in_the_interval_is_said(interval, told):
    found = verdict_on_box(50.0, interval, 45.0)
    assert found.startswith(told)
    assert bool(found) == bool(told)
    assert verdict_on_box(45.0, None, 45.0).startswith("It does not beat the centred box (45.0 %)")
    assert verdict_on_box(50.0, (0.0, 99.0), None) == ""
