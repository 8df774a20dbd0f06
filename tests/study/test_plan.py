"""What a study tries first, and under which name."""

import functools
import json
from dataclasses import replace

import pytest
import torch

from search_spaces import bas, cam
from wsol_pipeline.console.config_file import dump
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.plan import OWN, check_device, first_trials, make_plan, with_parameters
from wsol_pipeline.training import cluster
from wsol_pipeline.training.options import RunOptions
from wsol_pipeline.training.resolve import resolve

PRESET = "bas-ext/table1/cub/resnet50"


def first(space, count=3, method="bas", **options):
    return first_trials(resolve(RunOptions(name="s", **options), method), space, count, options.get("preset"))


def test_a_preset_is_tried_first_and_bears_its_name():
    found = first(bas.space, preset=PRESET)
    assert next(iter(found.items())) == (PRESET, {"lambda_": 1.0, "alpha": 0.5, "beta": 1.5})


def test_of_rows_with_equal_values_the_preset_gives_its_name():
    row = "bas-ext/table1/ilsvrc/mobilenet_v1"  # λ 1, α 0.5, β 1.5, as on CUB with ResNet50
    assert next(iter(first(bas.space, preset=row))) == row


def test_a_training_without_a_search_is_no_papers_unless_a_preset_says_so():
    assert list(first(lambda trial: {}, method="cam", count=1)) == [OWN]
    row = "b-cam/table1/cub/resnet50/cam"
    assert list(first(lambda trial: {}, method="cam", count=1, preset=row)) == [row]


def test_what_the_command_line_says_is_tried_first_and_is_nobodys_published_setting():
    found = first(bas.space, preset=PRESET, options={"alpha": "0.9"})
    name, values = next(iter(found.items()))
    assert (name, values["alpha"]) == (OWN, 0.9)
    assert found[PRESET]["alpha"] == 0.5


def test_a_preset_brings_its_evaluation_and_its_readout():
    config = resolve(RunOptions(name="s", preset="bas/table1/cub/resnet50"), "bas")
    assert (config.protocol, config.readout, config.fixed_setting) == ("bas-conf", "topk", 200)
    config = resolve(RunOptions(name="s", preset=PRESET, protocol="wsol-v2", readout="cam"), "bas")
    assert (config.protocol, config.readout, config.fixed_setting) == ("wsol-v2", "cam", None)
    assert resolve(RunOptions(name="s"), "bas").protocol == "wsol-v1"


def test_the_command_line_reaches_the_recipe():
    options = {"schedule": "poly", "train_geometry": "random_resized_crop", "crop_scale": 0.5, "drop_last": True}
    recipe = resolve(RunOptions(name="s", preset=PRESET, **options), "bas").recipe
    assert {name: getattr(recipe, name) for name in options} == options
    assert (recipe.epochs, recipe.plateau_patience) == (120, 2)


def recipe(**options):
    """(backbone, pixels, resized, epochs, learning rate) of a run without a preset."""
    config = resolve(RunOptions(name="s", **options), "cam")
    found = config.backbone, config.image_size, config.resize_size
    return *found, config.recipe.epochs, config.recipe.learning_rate


def test_pretrained_weights_are_fine_tuned_on_photographs_and_all_else_is_for_a_laptop():
    assert recipe() == ("tiny", 64, 72, 4, 0.003)
    assert recipe(backbone="resnet18") == ("resnet18", 64, 72, 4, 0.003)
    assert recipe(weights="imagenet") == ("resnet50", 224, 256, 10, 0.001)
    assert recipe(weights="/m.pth", backbone="mobilenet_v2") == ("mobilenet_v2", 224, 256, 10, 0.001)
    assert recipe(weights="/t.safetensors", backbone="tiny") == ("tiny", 64, 72, 4, 0.003)
    assert resolve(RunOptions(name="s", weights="imagenet"), "cam").recipe.batch_size == 16
    given = {"epochs": 3, "learning_rate": 0.01, "image_size": 112}
    assert recipe(weights="imagenet", **given) == ("resnet50", 112, 128, 3, 0.01)  # resized in proportion
    with pytest.raises(UsageError, match="need --backbone, the network that they are of, but got '/m.pth'"):
        recipe(weights="/m.pth")


def test_weights_are_named_so_that_a_worker_in_another_folder_finds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = RunOptions(name="s", weights="m.pth", backbone="resnet18")
    assert resolve(options, "cam").weights == str(tmp_path / "m.pth")
    assert resolve(replace(options, weights="imagenet"), "cam").weights == "imagenet"


def test_what_a_trial_trains_is_said_in_a_line(plan):
    where = "tiny at 32 px, 4 epochs, batches of 32, learning rate 0.003"
    assert plan().recipe == f"recipe: for a laptop (neither --preset nor --weights): {where}"
    searched = replace(plan(), space=cam.space).recipe
    assert searched.endswith("learning rate 0.003, searched from there")


@pytest.mark.parametrize("reading", ["cached", "shrunk"])
def test_stored_images_are_not_to_be_cut_from_a_cache(reading):
    options = RunOptions(name="s", train_geometry="random_resized_crop_stored", reading=reading)
    with pytest.raises(UsageError, match=f"reading must be auto or streaming but got {reading!r}"):
        resolve(options, "bas")


def test_values_of_the_command_line_are_what_they_look_like():
    options = RunOptions(
        name="s",
        options={"head_width": "256", "alpha": "0.5", "relu_class_maps": "true", "generator_after": "layer2"},
        readout_options={"ks": "[1, 3]"},
    )
    config = resolve(options, "bas")
    expected = {"head_width": 256, "alpha": 0.5, "relu_class_maps": True, "generator_after": "layer2"}
    assert config.options == expected
    assert type(config.options["head_width"]) is int
    assert config.readout_options == {"ks": (1, 3)}


def test_a_learning_rate_beside_a_preset_wins():
    found = first(cam.space, method="cam", preset="bagcams/table2/cub/resnet50/cam", learning_rate=0.1)
    assert found[OWN] == {"learning_rate": 0.1}


def test_a_row_that_breaks_the_rule_for_beta_is_not_tried_under_it():
    tied = functools.partial(bas.space, beta="alpha+lambda")
    assert PRESET in first(tied, preset=PRESET)  # 1.5 = 0.5 + 1
    assert "bas-ext/table1/cub/mobilenet_v1" not in first(tied, count=20, preset=PRESET)  # 1.9


def test_the_forms_of_bas_are_not_mixed():
    assert not any(name.startswith("bas/") for name in first(bas.space, count=20, preset=PRESET))


def test_rows_of_the_same_backbone_come_before_others():
    names = list(first(bas.space, count=20, preset=PRESET))
    assert names[:2] == [PRESET, "bas-ext/table1/ilsvrc/resnet50"]


@pytest.mark.parametrize("count", [0, 1])
def test_no_more_are_tried_than_asked_for(count):
    assert len(first(bas.space, count=count)) == count


def test_parameters_go_to_the_recipe_or_to_the_method():
    config = with_parameters(resolve(RunOptions(name="s"), "bas"), {"learning_rate": 0.5, "alpha": 0.25})
    assert (config.recipe.learning_rate, config.options) == (0.5, {"alpha": 0.25})


@pytest.fixture
def plan(dataset, tmp_path):
    """`plan(**options)`: of a BAS study on the tiny dataset, whose protocol's objects have no masks."""
    small = {"name": "s", "data": dataset.uri, "storage": str(tmp_path), "image_size": 32, "resize_size": 36}
    return lambda **options: make_plan(StudyOptions(**small, **options), "bas", bas.space)


def test_a_plan_says_what_it_will_measure(plan):
    assert plan().promise.sentences == (
        "validation: 25 images, boxes alone; chooses trial, readout and thresholds by max_box_acc_v2",
        "test: 24 images, boxes alone; measures max_box_acc_v2, gt_known_loc, top1_loc, cls_top1 at what validation "
        "chose",
    )
    with pytest.raises(UsageError, match="wsol-mask scores masks but the 'test' split has boxes alone. What these"):
        plan(protocol="wsol-mask")


def test_boxes_choose_for_masks_that_validation_lacks_unless_told_otherwise(dataset, tmp_path):
    splits = dict(dataset.manifest.splits)
    splits[Role.TEST] = replace(splits[Role.TEST], masks=24)  # as CUB
    given = {"name": "s", "storage": str(tmp_path), "image_size": 32, "resize_size": 36, "protocol": "wsol-mask"}
    Store.at(tmp_path / "cub").write("manifest.json", replace(dataset.manifest, splits=splits).to_json())
    options = StudyOptions(**given, data=str(tmp_path / "cub"))
    made = make_plan(options, "bas", bas.space)
    assert (made.config.objective, made.config.protocol) == ("max_box_acc_v2", "wsol-mask")
    assert made.contract["train"]["objective"] == "max_box_acc_v2"
    with pytest.raises(UsageError, match="pxap under wsol-mask needs masks but the 'val' split has boxes alone"):
        make_plan(replace(options, objective="pxap"), "bas", bas.space)


def test_labels_alone_are_refused_before_anything_starts(tmp_path):
    source = synthetic.read(tmp_path, synthetic.Options(train=6, val=3, test=3, classes=3, size=32))
    import_dataset(replace(source, located=()), Store.at(tmp_path / "d"), name="d", origin={"importer": "folder"})
    options = StudyOptions(name="s", data=str(tmp_path / "d"), storage=str(tmp_path / "runs"), image_size=32)
    order = r"\(1\) annotated:FILE, 30 to 50 boxes .*\(2\) detector:FILE.*\(3\) .*evidence, or proposals:FILE"
    with pytest.raises(UsageError, match=f"wsol-v1 scores boxes but the 'val' split has labels alone.*{order}"):
        make_plan(options, "bas", bas.space)
    assert not (tmp_path / "runs/s").exists()
    plan = make_plan(replace(options, select_by="evidence", threshold_by="otsu"), "bas", bas.space)
    assert (plan.config.objective, plan.contract["train"]["select_by"]) == ("evidence_gain", "evidence")
    assert "localization is not measured" in plan.promise.sentences[1]
    with pytest.raises(UsageError, match="otsu finds thresholds but ranks no trials, of which there are 8"):
        make_plan(replace(options, select_by="otsu"), "bas", bas.space)
    with pytest.raises(UsageError, match="Unknown objective of --select-by evidence 'max_box_acc_v2'"):
        make_plan(replace(options, select_by="evidence", objective="max_box_acc_v2"), "bas", bas.space)


def test_one_objective_has_the_contract_it_always_had(plan):
    one, several = plan(), plan(also=("device_hours", "cls_top1"))
    assert list(one.contract) == ["train", "data", "space"]
    assert one.rule is None
    assert several.rule == Rule(("max_box_acc_v2", "cls_top1", "device_hours"), 1.0)  # cost stands last
    more = {"also": ("cls_top1", "device_hours"), "tolerance": 1.0}
    assert several.contract == {**one.contract, "train": several.contract["train"], **more}


SMALL, SMALLER = 150_000 / 2**30, 20_000 / 2**30  # 64 images of 36 px: pixels are 248,832 bytes, JPEGs 50 to 100 KB


@pytest.mark.parametrize(
    ("options", "kept", "quality", "streamed"),
    [
        ({}, None, 0, False),
        ({"cache_budget_gb": SMALL}, None, 90, False),
        ({"cache_budget_gb": SMALLER}, None, 0, True),
        ({"cache_budget_gb": SMALLER, "reading": "shrunk"}, None, 90, False),
        ({"cache_budget_gb": SMALL, "reading": "streaming"}, None, 0, True),
        ({"cache_budget_gb": SMALL, "train_geometry": "random_resized_crop_stored"}, None, 0, True),
        ({}, 75, 75, False),  # what a study was begun with, it keeps
        ({"cache_budget_gb": SMALL}, 0, 0, True),
        ({"reading": "shrunk"}, 75, 75, False),
        ({"reading": "cached"}, 0, 0, False),
    ],
)
def test_training_images_are_shrunk_where_that_fits_and_pixels_do_not(plan, tmp_path, options, kept, quality, streamed):
    if kept is not None:
        Store.at(tmp_path / "s").write("reading.json", json.dumps({"shrunk_jpegs": kept}).encode())
    made = plan(**options)
    assert (made.config.shrunk_jpegs, made.streamed) == (quality, streamed)
    assert made.contract["train"]["shrunk_jpegs"] == quality
    assert made.job({}, 0, made.folder, 1, "cpu").train.shrunk_jpegs == quality
    if quality:
        assert made.training_images.startswith(f"JPEGs of 36x36, quality {quality}, about ")
        assert "reading: shrunk" in dump(made)
    else:
        assert made.training_images == "exact pixels"


@pytest.mark.parametrize(
    ("kept", "reading", "begun"),
    [(90, "cached", "small JPEGs"), (90, "streaming", "small JPEGs"), (0, "shrunk", "exact pixels")],
)
def test_a_study_is_not_continued_on_other_pixels(plan, tmp_path, kept, reading, begun):
    Store.at(tmp_path / "s").write("reading.json", json.dumps({"shrunk_jpegs": kept}).encode())
    with pytest.raises(UsageError, match=rf"begun on {begun}, not on what --reading {reading} gives: --reading auto"):
        plan(reading=reading)


def test_a_damaged_note_of_what_a_study_trains_on_is_said(plan, tmp_path):
    Store.at(tmp_path / "s").write("reading.json", b"{}")
    with pytest.raises(DataError, match=r"reading.json is damaged: it says what is trained on"):
        plan()


def test_what_prunes_is_said(plan):
    assert plan(epochs=4).pruning == "successive-halving prunes by the searched max_box_acc_v2 after epoch 2"
    assert plan(epochs=4, pruner="median", rungs=(1, 3)).pruning.endswith("after epoch 1, 3")
    assert plan(epochs=4, pruner="none").pruning == "nothing is pruned"
    several = plan(epochs=4, also=("cls_top1",))
    assert several.pruning.startswith("nothing is pruned: what is poor in one objective")
    assert several.config.rungs == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"also": ("top1_los",)}, "further objective under wsol-v1 'top1_los'. Did you mean 'top1_loc'?.*device_hours"),
        ({"also": ("pxap",)}, "further objective under wsol-v1 'pxap'"),  # without masks
        ({"also": ("max_box_acc_v2",)}, "--also must differ from --objective"),
        ({"also": ("cls_top1", "cls_top1")}, "name each once"),
        ({"also": ("cls_top1",), "pruner": "median"}, "pruner must be none or auto but got 'median'"),
        ({"also": ("cls_top1",), "sampler": "cma-es"}, "with --also the sampler cannot be cma-es"),
        ({"sampler": "nsga2"}, "nsga2 needs --also"),
        ({"also": ("cls_top1",), "tolerance": -1.0}, "tolerance cannot be negative"),
    ],
)
def test_objectives_that_do_not_go_together_are_refused(plan, options, message):
    with pytest.raises(UsageError, match=message):
        plan(**options)


def test_bfloat16_is_refused_before_the_start_where_a_gpu_without_is_seen(monkeypatch):
    options, here = StudyOptions(precision="bfloat16"), [True]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(cluster, "is_one_machine", lambda: here[0])
    check_device(options, "cpu")
    with pytest.raises(UsageError, match="--precision bfloat16 needs a GPU that has it"):
        check_device(options, "cuda")
    here[0] = False
    check_device(options, "cuda")  # its workers will say so
