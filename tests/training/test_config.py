"""Configurations: plain data and back, unknown keys, ranges."""

import json
from dataclasses import replace

import pytest

from wsol_pipeline.errors import UsageError
from wsol_pipeline.training.config import (
    Job,
    Reading,
    Recipe,
    TrainConfig,
    check_name,
    config_hash,
    from_dict,
    to_dict,
)

TRAIN = TrainConfig(options={"alpha": 0.25}, fixed_setting=3, rungs=(2, 5), recipe=Recipe(epochs=7, clip_norm=1.5))


@pytest.mark.parametrize(
    "config",
    [
        Recipe(learning_rate=0.3),
        TRAIN,
        Job(TRAIN, data="s3://bucket/cub", trial="/trial", attempt=4, workers=2, reading=Reading("cached", "/c", 2.5)),
    ],
)
def test_a_config_survives_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_an_unknown_key_is_refused_with_the_nearest_one_at_any_depth():
    data = to_dict(TRAIN)
    with pytest.raises(UsageError, match="Unknown TrainConfig field 'metod'. Did you mean 'method'?"):
        from_dict(TrainConfig, data | {"metod": "cam"})
    data["recipe"]["learning_rat"] = 1.0
    with pytest.raises(UsageError, match="Unknown Recipe field 'learning_rat'. Did you mean 'learning_rate'?"):
        from_dict(TrainConfig, data)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (Recipe, "epochs", 0),
        (Recipe, "batch_size", 0),
        (Recipe, "learning_rate", 0.0),
        (Recipe, "learning_rate", float("nan")),
        (Recipe, "weight_decay", -1e-9),
        (Recipe, "momentum", 1.0),
        (Recipe, "decay_every", -1),
        (Recipe, "decay_counts_from", 2),
        (Recipe, "clip_norm", -1.0),
        (Recipe, "schedule", "cosine"),
        (Recipe, "plateau_patience", -1),
        (Recipe, "train_geometry", "zoom"),
        (Recipe, "crop_scale", 0.0),
        (Recipe, "crop_scale", 1.5),
        (TrainConfig, "image_size", 7),
        (TrainConfig, "image_size", 73),  # over resize_size
        (TrainConfig, "seed", -1),
        (TrainConfig, "precision", "float16"),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(cls, field, value):
    with pytest.raises(UsageError, match=str(value)):
        cls(**{field: value})


def test_the_hash_is_of_the_values_not_of_their_order():
    data = to_dict(TRAIN)
    assert config_hash(data) == config_hash(dict(reversed(data.items())))
    assert config_hash(data) != config_hash(to_dict(replace(TRAIN, seed=1)))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "x" * 129])
def test_a_name_that_cannot_stand_in_a_path_is_refused(name):
    with pytest.raises(UsageError, match="1 to 128 letters"):
        check_name("study", name)


def test_a_usual_name_is_taken():
    assert check_name("study", "bas-cub_2.1") == "bas-cub_2.1"
