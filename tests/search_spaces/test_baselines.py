"""Baselines' rows: CAM's network and recipe with what the papers tuned, and spaces around it."""

from collections import Counter

import optuna
import pytest

import wsol_models
from search_spaces import preset, presets, space_for

BASELINES = ("has", "cutmix", "adl", "acol", "spg", "dawsol")
OWN = {
    "has": {"grid_size": 120, "drop_rate": 0.66},
    "cutmix": {"beta": 1.35, "probability": 0.34},
    "adl": {"drop_rate": 0.24, "threshold": 0.76},
    "dawsol": {"beta": 0.3, "universum": 2.0, "uda": "mmd"},
}
RATES = {"has": 0.003619965, "cutmix": 0.002251717, "adl": 0.012534383, "dawsol": 0.001}


def of_tables(method: str) -> Counter[str]:
    """Rows of each table that a baseline was trained for."""
    return Counter("/".join(id.split("/")[:2]) for id in presets(method) if "+" not in id)


@pytest.mark.parametrize("method", BASELINES)
def test_every_table_is_there(method):
    """BagCAMs compares on three datasets and two networks, B-CAM on CUB, OpenImages (val, test) and ILSVRC."""
    bagcams = {"bagcams/table2": 3, "bagcams/table3": 3}
    bcam = {"b-cam/table1": 1, "b-cam/table3": 3, "b-cam/table4": 1, "b-cam/table8": 2, "b-cam/table10": 1}
    expected = {"dawsol": bagcams, "acol": bcam, "spg": bcam}.get(method, bagcams | bcam)
    assert of_tables(method) == expected


@pytest.mark.parametrize("method", OWN)
def test_what_bagcams_tuned_on_cub(method):
    row = preset(f"bagcams/table2/cub/resnet50/{'daol' if method == 'dawsol' else method}")
    base = preset("bagcams/table2/cub/resnet50/cam")
    assert row.method == method
    assert row.method_options == {**base.method_options, **OWN[method]}
    assert row.recipe == {**base.recipe, "learning_rate": RATES[method]}
    assert (row.readout, row.protocol) == (base.readout, base.protocol)


def test_published_figures():
    assert preset("bagcams/table2/cub/resnet50/daol").published == {
        "top1_loc": 62.40, "gt_known_loc": 81.83, "max_box_acc_v2": 69.87, "piou": 56.18, "pxap": 74.70,
    }  # fmt: skip
    assert preset("b-cam/table1/cub/resnet50/acol").published == {
        "top1_loc_70": 16.19, "top1_loc": 53.31, "top1_loc_30": 66.81, "top1_loc_mean": 45.43,
        "max_box_acc_iou70": 21.97, "gt_known_loc": 74.83, "max_box_acc_iou30": 96.53, "max_box_acc_v2": 64.45,
    }  # fmt: skip
    assert preset("b-cam/table3/openimages-val/resnet50/spg").published == {"piou": 42.17, "pxap": 56.45}


def test_bagcams_reads_every_baseline_anew():
    for name in ("has", "cutmix", "adl", "daol"):
        row, model = (preset(f"bagcams/table2/cub/resnet50/{name}{suffix}") for suffix in ("+bagcams", ""))
        assert (row.method_options, row.recipe) == (model.method_options, model.recipe)
        assert row.readout["name"] == "bagcams"


def test_acols_map_is_its_own_and_its_heads_learn_faster_in_b_cams_code():
    row = preset("b-cam/table1/cub/resnet50/acol")
    assert (row.readout["name"], row.method_options["head_lr_scale"]) == ("own", 10.0)
    assert preset("b-cam/table1/cub/resnet50/spg").method_options["head_lr_scale"] is None


@pytest.mark.parametrize("method", BASELINES)
def test_whatever_a_space_proposes_is_an_option_or_the_rate(method):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        values = space_for(method)(study.ask())
        assert 1e-5 <= values.pop("learning_rate") <= 1
        wsol_models.method_module(method).Config(**values)
