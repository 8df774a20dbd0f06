"""mLDFR's settings are those of its paper and code, and its space proposes what its method accepts."""

from collections import Counter

import numpy as np
import optuna
import pytest
import torch

from rayjobs import tune_mldfr
from search_spaces import preset, presets, space_for
from wsol_models import build, method_module
from wsol_models.readouts import readout
from wsol_models.readouts.pyramid import scaled
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.data.augment import Augmentation, hash_ids
from wsol_pipeline.data.images import resize
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.protocols import PROTOCOLS
from wsol_pipeline.training.config import Recipe
from wsol_pipeline.training.options import RunOptions
from wsol_pipeline.training.resolve import resolve

BASE = "mldfr/table13/cub/resnet50"


def test_every_row_of_the_paper():
    rows = [id.split("/") for id in presets("mldfr") if not id.endswith("/paper")]
    assert {paper for paper, *_ in rows} == {"mldfr"}
    assert Counter(table for _, table, *_ in rows) == {
        "table1-6": 4, "table7": 6, "table8": 16, "table9": 24, "table10": 16, "table11": 8, "table12": 8,
        "table13": 8, "table14": 1, "text": 1,
    }  # fmt: skip


@pytest.mark.parametrize("row", presets("mldfr").values(), ids=str)
def test_a_row_can_be_read_and_judged(row):
    options = row.readout["options"]
    with_own_maps = build("mldfr", backbone="tiny", num_classes=3).eval()
    assert row.readout["setting"] in readout("pyramid", **options).settings(with_own_maps)
    assert row.protocol in PROTOCOLS
    assert not Recipe(**row.recipe).nesterov


def test_the_codes_recipe_and_the_texts():
    code, text = preset(BASE), preset(f"{BASE}/paper")
    assert Recipe(**code.recipe) == Recipe(
        epochs=45, batch_size=256, learning_rate=0.03, weight_decay=1e-4, nesterov=False, schedule="plateau_top1",
        plateau_patience=2, train_geometry="random_resized_crop_stored", crop_scale=0.08, drop_last=True,
    )  # fmt: skip
    changed = {name for name, value in text.recipe.items() if value != code.recipe[name]}
    assert changed == {"epochs", "schedule", "plateau_patience", "crop_scale"}
    assert [text.recipe[name] for name in sorted(changed)] == [0.8, 50, 3, "plateau_loss"]
    assert (text.method_options, text.published) == (code.method_options, code.published)


def test_models_differ_in_batch_size_and_statistics():
    found = {
        name: (row.recipe["batch_size"], row.method_options["bn_virtual_batch"], row.image_size)
        for name, row in ((id.split("/")[3], row) for id, row in presets("mldfr").items() if id.count("/") == 3)
    }
    assert found == {
        "vgg16_bn": (256, 85, 224), "googlenet": (256, 128, 224), "inception_v3": (256, 64, 299),
        "resnet50": (256, 64, 224), "densenet161": (128, 26, 224), "mobilenet_v2": (256, 0, 224),
    }  # fmt: skip


def test_ablations_change_one_thing_of_their_row():
    config, base = method_module("mldfr").Config, preset("mldfr/table1-6/cub/vgg16_bn")

    def options(name: str):
        return config(**preset(f"mldfr/{name}").method_options)

    def scales(name: str):
        return preset(f"mldfr/{name}").readout["options"]["scales"]

    assert (options("table9/cub/vgg16_bn/s").sa, options("table9/cub/vgg16_bn/s").bn) == (True, False)
    assert (options("table9/cub/vgg16_bn/b").sa, options("table9/cub/vgg16_bn/b").bn) == (False, True)
    assert (options("table8/cub/vgg16_bn/m").sa, options("table8/cub/vgg16_bn/m").bn) == (False, False)
    assert (scales("table8/cub/vgg16_bn/m"), scales("table8/cub/vgg16_bn/f")) == ((1.0, 1.5, 2.0), (1.0,))
    assert scales("table10/ilsvrc/googlenet/1,1.5,2,2.5") == (1.0, 1.5, 2.0, 2.5)
    assert preset("mldfr/table11/cub/vgg16_bn/without").recipe == {**base.recipe, "train_geometry": "crop"}
    small = preset("mldfr/table12/cub/vgg16_bn/bs32")
    assert (small.recipe["batch_size"], small.method_options["bn_virtual_batch"]) == (32, 11)
    assert preset("mldfr/table7/cub/vgg16_bn").method_options == base.method_options


def test_a_row_decides_all_of_a_run():
    config = resolve(RunOptions(name="s", preset="mldfr/table13/cub/inception_v3"), "mldfr")
    assert (config.image_size, config.resize_size, config.protocol) == (299, 331, "mldfr")
    assert (config.readout, config.fixed_setting) == ("pyramid", "1+1.5+1.99666/1")
    assert config.recipe == Recipe(**preset("mldfr/table13/cub/inception_v3").recipe)


@pytest.mark.parametrize(
    ("row", "sides"), [("mldfr/table13/cub/inception_v3", [299, 448, 597]), (BASE, [224, 336, 448])]
)
def test_short_sides_are_the_authors(row, sides):
    base, scales = preset(row).image_size, preset(row).readout["options"]["scales"]
    assert [min(scaled((375, 500), scale, base)) for scale in scales] == sides


def test_training_crops_are_cut_from_the_stored_image():
    """Stripes of one pixel, which an image resized to 256 does not have any more."""
    row = preset(BASE)
    recipe, photograph_CHW = Recipe(**row.recipe), np.zeros((3, 1024, 1024), np.uint8)
    photograph_CHW[:, :, ::2] = 255
    crops = Augmentation(recipe.train_geometry, 256, row.image_size, recipe.crop_scale)
    if crops.decoded_size:
        photograph_CHW = resize(torch.from_numpy(photograph_CHW), crops.decoded_size).numpy()
    names, sizes_B2 = hash_ids(map(str, range(20))), np.full((20, 2), 1024)
    contrasts = crops.apply([photograph_CHW] * 20, names, sizes_B2, seed=0, epoch=0).std((1, 2, 3))
    assert contrasts.max() > 20  # a region of 300 of the 1024 px


def test_space_proposes_options_of_its_config():
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    values = space_for("mldfr")(trial, batch_sizes=(16, 32))
    assert 16 <= values.pop("batch_size") <= 32
    assert 1e-3 <= values.pop("learning_rate") <= 1e-1
    assert set(values) == {"sa", "bn", "kernel1", "kernel2", "kernel3"}
    method_module("mldfr").Config(**values)


def test_batch_sizes_rise():
    with pytest.raises(ValueError, match=r"two rising numbers from 2 on but is \(64, 32\)"):
        space_for("mldfr")(None, batch_sizes=(64, 32))


def test_the_job_takes_rising_batch_sizes():
    assert parse(tune_mldfr.Options, ["--batch-sizes", "8", "32"]).batch_sizes == (8, 32)
    with pytest.raises(UsageError, match=r"two rising numbers from 2 on but got \(32, 8\)"):
        parse(tune_mldfr.Options, ["--batch-sizes", "32", "8"])
