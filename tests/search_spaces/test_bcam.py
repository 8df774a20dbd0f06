"""B-CAM's settings are those of its paper and code, and its space proposes what its method accepts."""

from collections import Counter

import optuna
import pytest

from search_spaces import preset, presets, space_for
from wsol_models import build, method_module
from wsol_models.readouts import readout
from wsol_pipeline.study.surface import published_reading
from wsol_pipeline.training.options import RunOptions
from wsol_pipeline.training.resolve import resolve


def test_every_row_of_the_paper_that_trains_a_model_here():
    tables = Counter(id.split("/")[1] for id in presets("bcam") if id.startswith("b-cam/"))
    counts = {
        "table1": 2,
        "table2": 2,
        "table3": 6,
        "table4": 2,
        "table5": 4,
        "table7": 6,
        "table8": 2,
        "table9": 3,
        "table10": 1,
    }
    assert tables == counts


def test_values_of_the_scripts():
    resnet, vgg, inception = (
        preset(f"b-cam/{row}/bcam-p") for row in ("table1/cub/resnet50", "table8/cub/vgg16", "table8/cub/inception_v3")
    )
    config = method_module("bcam").Config
    assert config(**resnet.method_options) == config()
    assert config(**vgg.method_options) == config(lambda2=0.2, lambda3=0.4, lambda4=0.4, large=False)
    assert config(**inception.method_options) == config(lambda2=0.2, lambda3=0.4, lambda4=0.4, bias_lr_scale=2)
    recipes = [
        (row.recipe["epochs"], row.recipe["learning_rate"], row.recipe["weight_decay"])
        for row in (resnet, vgg, inception)
    ]
    assert recipes == [(20, 1.7e-4, 1e-4), (20, 1.7e-5, 5e-4), (50, 1.7e-3, 5e-4)]
    assert resnet.recipe["decay_every"] == 15
    assert resnet.recipe["decay_counts_from"] == 1


def test_values_of_the_text():
    ilsvrc, openimages = preset("b-cam/table4/ilsvrc/resnet50/bcam-m"), preset("b-cam/table9/openimages-val/resnet50")
    config = method_module("bcam").Config
    assert config(**ilsvrc.method_options) == config(lambda2=0.2, lambda3=0.2, lambda4=0.4, soft_topk=5)
    assert config(**openimages.method_options) == config(lambda2=0.5, heads=80)
    assert (ilsvrc.recipe["epochs"], ilsvrc.recipe["decay_every"]) == (3, 0)
    assert (openimages.recipe["epochs"], openimages.recipe["decay_every"]) == (10, 3)
    assert openimages.protocol == "wsol-mask-background"


@pytest.mark.parametrize(
    ("row", "setting"),
    [
        ("table1/cub/resnet50/bcam-p", "block4/grad_x_meangrad/code/object"),
        ("table1/cub/resnet50/bcam-m", "block4/grad_x_meangrad/code/mask"),
        ("table4/ilsvrc/resnet50/bcam-p", "block4/grad_x_relu_meangrad/code/object"),
        ("table3/openimages-val/resnet50/bcam-p", "block4/feat_x_meangrad/code/object"),
        ("table9/cub/resnet50", "block4/grad_x_meangrad/code/background"),
        ("table7/cub/resnet50/oa+ba+bc+sp-m", "plain/mask"),
        ("table7/cub/resnet50/full-m", "block4/grad_x_meangrad/code/mask"),
    ],
)
def test_published_map_comes_first_of_those_a_study_solves(row, setting):
    found = readout("bcam", **preset(f"b-cam/{row}").readout["options"])
    settings = found.settings(build("bcam", backbone="tiny", num_classes=3).eval())
    assert settings[0] == setting
    assert len(settings) == (1 if row.startswith("table7") else 4)


def test_rows_of_the_ablation_are_read_by_what_defines_them():
    """Without gradients by the classifiers' maps alone: of the others validation could pick the row below."""
    read = {id.split("/")[-1]: row.readout["options"] for id, row in presets("bcam").items() if "table7" in id}
    assert {name: (options["readings"], options["modes"]) for name, options in read.items()} == {
        "oa": (("plain",), ("object",)),
        "oa+ba+bc": (("plain",), ("object",)),
        "oa+ba+bc+sp-p": (("plain",), ("object",)),
        "oa+ba+bc+sp-m": (("plain",), ("mask",)),
        "full-p": (("grad_x_meangrad/code",), ("object",)),
        "full-m": (("grad_x_meangrad/code",), ("mask",)),
    }


def test_every_row_has_a_reading_as_published():
    tiny = build("bcam", backbone="tiny", num_classes=3).eval()
    for row in presets("bcam").values():
        if row.id.startswith("b-cam"):
            config = resolve(RunOptions(name="s", preset=row.id), "bcam")
            setting, threshold = published_reading(config, row.id)
            assert (setting, threshold) == (row.readout["setting"], row.readout.get("threshold"))
            settings = readout(row.readout["name"], **row.readout["options"]).settings(tiny)
            assert setting is None or setting in settings


def test_masks_of_a_row_that_reports_none_are_not_judged_by_pxap():
    """Their maps are cut already: PxAP is not a number."""
    row, other = "b-cam/table3/cub/resnet50/bcam-m", "b-cam/table3/cub/resnet50/bcam-p"
    assert [resolve(RunOptions(name="s", preset=id), "bcam").objective for id in (row, other)] == ["piou", "pxap"]


def test_masks_of_several_scales_are_those_of_the_maps():
    p, m = (preset(f"b-cam/table5/voc12-val/resnet50/{mode}").readout for mode in ("bcam-p", "bcam-m"))
    assert (m["options"]["scales"], m["options"]["mirror"]) == (p["options"]["scales"], p["options"]["mirror"])
    assert (m["name"], m["setting"]) == ("pyramid", "0.5+1+1.5+2/plain/mask")


def test_ablation_leaves_terms_out():
    steps = {id.split("/")[-1]: row.method_options for id, row in presets("bcam").items() if "table7" in id}
    left = {name: [options[f"lambda{i}"] for i in (1, 2, 3, 4)] for name, options in steps.items()}
    assert left["oa"] == [1, 0, 0, 0]
    assert left["oa+ba+bc"] == [1, 0, 1, 1]
    assert left["oa+ba+bc+sp-p"] == left["full-m"] == [1, 1, 1, 1]


def test_space_proposes_options_of_its_config():
    values = {"lambda1": 0.9, "lambda2": 0.4, "lambda3": 0.0, "lambda4": 1.0, "heads": 40}
    proposed = space_for("bcam")(optuna.trial.FixedTrial(values), aggregator_init="xavier")
    assert proposed == {**values, "aggregator_init": "xavier"}
    assert method_module("bcam").Config(**proposed).heads == 40
    with pytest.raises(ValueError, match="aggregator_init must be 'zero' or 'xavier' but is 'one'"):
        space_for("bcam")(optuna.trial.FixedTrial(values), aggregator_init="one")
