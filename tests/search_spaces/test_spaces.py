"""Every published setting can be built, and every space proposes what its method accepts."""

from collections import Counter
from dataclasses import replace

import optuna
import pytest

import wsol_models
from rayjobs import tune_cam
from search_spaces import cam, preset, presets, space_for, spaces
from wsol_models.readouts import readout
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.selection import BOX_METRICS, CLASS_METRICS, MASK_METRICS, SEGMENTATION_METRICS
from wsol_pipeline.training.build import build_method, build_readout
from wsol_pipeline.training.config import Recipe
from wsol_pipeline.training.options import RunOptions
from wsol_pipeline.training.resolve import resolve

RECIPE = {"epochs", "batch_size", "learning_rate", "weight_decay", "nesterov", "decay_every", "decay_counts_from"}
ERRORS = ("cls1_err", "cls5_err", "clsloc1_err", "clsloc5_err")  # of `selection.errors`
DETECTION = ("map_10", "map_30", "map_50")
KNOWN = (*BOX_METRICS, *CLASS_METRICS, *MASK_METRICS, *SEGMENTATION_METRICS, *DETECTION, *ERRORS)


@pytest.mark.parametrize("row", presets().values(), ids=str)
def test_preset_fits_its_method_and_its_id(row):
    wsol_models.method_module(row.method).Config(**row.method_options)
    dataset, backbone = row.id.split("/")[2:4]
    assert (dataset.removesuffix("-train").removesuffix("-val").removesuffix("-test"), backbone) == (
        row.dataset,
        row.backbone,
    )
    assert set(row.recipe) >= RECIPE
    Recipe(**row.recipe)
    readout(row.readout["name"], **row.readout.get("options", {}))
    assert all(0 < value <= 100 for value in row.published.values())
    assert all(name in KNOWN or name.startswith("ois_") for name in row.published)


def test_presets_of_one_method():
    assert {row.method for row in presets("bas").values()} == {"bas"}
    tables = Counter(id.rpartition(f"/{row.dataset}")[0] for id, row in presets("bas").items())
    assert tables == {
        "bas/table1": 8, "bas/table2": 8, "bas/figure4": 3, "bas/figure6": 3, "bas-ext/table1": 8, "bas-ext/table2": 3,
        "bas-ext/table3": 4, "bas-ext/table4": 6, "bas-ext/table6": 4, "bas-ext/table7": 25, "bas-ext/table8": 8,
        "bas-ext/table9": 1, "bas-ext/table15": 2, "bas-ext/figure15": 1,
    }  # fmt: skip
    assert {row.method for row in presets("cam").values()} == {"cam"}


def test_ablations_change_one_thing_of_their_row():
    base = preset("bas-ext/table1/cub/resnet50")
    moved, alone = preset("bas-ext/table3/cub/resnet50/layer2"), preset("bas-ext/table2/cub/resnet50/bas")
    assert moved.method_options == {**base.method_options, "generator_after": "layer2"}
    assert (moved.recipe, moved.readout, moved.protocol) == (base.recipe, base.readout, base.protocol)
    assert (alone.method_options, dict(alone.readout)) == (base.method_options, {**base.readout, "setting": 1})
    assert preset("bas-ext/table7/ilsvrc/resnet50/a0.7").method_options["beta"] == 1.7


def test_values_of_the_extension_on_cub():
    row = preset("bas-ext/table1/cub/resnet50")
    form = {"relu_class_maps": False, "segmentation": False}
    assert dict(row.method_options) == {"lambda_": 1.0, "alpha": 0.5, "beta": 1.5, **form}
    assert (row.recipe["epochs"], row.recipe["batch_size"], row.recipe["decay_every"]) == (120, 32, 80)
    assert dict(row.readout) == {"name": "topk", "setting": 200, "threshold": 0.1}
    assert dict(row.published) == {"top1_loc": 76.75, "top5_loc": 90.04, "gt_known_loc": 95.41}


def test_rule_of_the_extension_holds_where_the_specification_says():
    """β = α + λ: ResNet50 of the extension, and MobileNetV1 on ILSVRC."""
    for name in ("cub/resnet50", "ilsvrc/resnet50", "ilsvrc/mobilenet_v1"):
        options = preset(f"bas-ext/table1/{name}").method_options
        assert options["beta"] == options["alpha"] + options["lambda_"]


@pytest.mark.parametrize("name", spaces())
def test_space_holds_the_published_settings(name):
    """Enqueued, a published value must lie in the range of its distribution."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    space_for(name)(trial)
    for row in presets(name).values():
        published = {**row.method_options, **row.recipe}
        for parameter, distribution in trial.distributions.items():
            assert distribution._contains(distribution.to_internal_repr(published[parameter])), (row.id, parameter)


def test_bas_space_proposes_options_of_its_config():
    trial = optuna.trial.FixedTrial({"lambda_": 0.9, "alpha": 0.4, "beta": 2.0, "generator_after": "layer3"})
    values = space_for("bas")(trial, stages=("layer2", "layer3"))
    config = wsol_models.method_module("bas").Config(**values)
    assert (config.lambda_, config.alpha, config.beta, config.generator_after) == (0.9, 0.4, 2.0, "layer3")


def test_bas_rule_saves_a_dimension():
    trial = optuna.trial.FixedTrial({"lambda_": 0.75, "alpha": 0.5})
    assert space_for("bas")(trial, beta="alpha+lambda") == {"lambda_": 0.75, "alpha": 0.5, "beta": 1.25}


def test_errors_name_the_known():
    with pytest.raises(ValueError, match=r"Unknown search space 'bass'. Did you mean 'bas'\? Known: acol, adl, "):
        space_for("bass")
    with pytest.raises(ValueError, match=r"Did you mean 'bas-ext/table1/cub/resnet50'\?"):
        preset("bas-ext/table1/cub/resnet5")
    with pytest.raises(ValueError, match="beta must be 'free' or 'alpha\\+lambda' but is 'fixed'"):
        space_for("bas")(None, beta="fixed")


@pytest.mark.parametrize(
    ("id", "batch_size", "learning_rate", "shown"),
    [
        ("bas-ext/table6/voc12/resnet50/bas", 16, 0.005, "0.5+1+1.5+2/1"),
        ("bas-ext/table15/voc12/resnet50/image-specific", 16, 0.005, "0.5+1+1.5+2/1"),
        ("bas-ext/table6/coco14/resnet50/baseline", 64, 0.005, "0.5+1+1.5+2/1"),
        ("b-cam/table5/voc12-val/resnet50/bcam-p", 8, 0.01, "0.5+1+1.5+2/plain_relu/object"),
    ],
)
def test_a_row_of_several_classes_decides_all_of_a_run(id, batch_size, learning_rate, shown):
    config = resolve(RunOptions(name="s", preset=id), preset(id).method)
    assert (config.protocol, config.objective) == ("voc-miou", "miou")
    assert (config.image_size, config.resize_size) == (448, 512)
    assert (config.recipe.batch_size, config.recipe.learning_rate) == (batch_size, learning_rate)
    assert config.recipe.schedule == "poly"
    below = config.readout_options.get("options", {}) if config.readout == "suppression" else config.readout_options
    seen = {name: below[name] for name in ("base", "mirror", "resampling", "canvas")}
    assert seen == {"base": "stored", "mirror": True, "resampling": "bicubic", "canvas": 16}
    built = build_method(replace(config, backbone="tiny"), 3).eval()
    assert build_readout(config).settings(built)[-1] == config.fixed_setting == shown


def test_seeds_for_segmentation_have_their_own_form_of_bas():
    base, moved = preset("bas-ext/table6/voc12/resnet50/bas"), preset("bas-ext/table8/voc12/resnet50/layer2")
    config = wsol_models.method_module("bas").Config
    form = {"segmentation": True, "bias_lr_scale": 1.0}
    assert config(**base.method_options) == config(alpha=0.2, beta=1.2, **form)
    assert config(**moved.method_options) == config(alpha=0.2, beta=1.2, generator_after="layer2", **form)
    assert config(**preset("bas-ext/table7/coco14/resnet50/a0.7").method_options) == config(alpha=0.7, beta=1.7, **form)


def test_the_range_of_cams_learning_rate_can_be_told():
    trial = optuna.create_study().ask()
    assert 0.01 <= cam.space(trial, rates=(0.01, 0.02))["learning_rate"] <= 0.02
    with pytest.raises(UsageError, match=r"rates must be two positive numbers, the lower first, but got \(0.1, 0.01\)"):
        tune_cam.Options(rates=(0.1, 0.01))
