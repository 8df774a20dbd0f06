"""The loop: steps against plain PyTorch, restarts bit for bit, stops before harm, no sight of the test split."""

import contextlib
import itertools
import json
import math
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

import wsol_models
from tests.trained import Killed
from wsol_models import cam
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.reader import EvalRows, ReadConfig, eval_rows, train_batches
from wsol_pipeline.errors import DataError, MismatchError, ProtocolError
from wsol_pipeline.evaluation import evaluate, selection
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.images import normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.training import loop
from wsol_pipeline.training.build import build_method, build_readout
from wsol_pipeline.training.checkpoint import CheckpointStore, Position, read_sealed
from wsol_pipeline.training.guard import NonFiniteError
from wsol_pipeline.training.loop import best_epoch, train
from wsol_pipeline.training.model import DESCRIPTION, load_model
from wsol_pipeline.training.optim import build_optimizer, set_learning_rate


def assert_equal_runs(a, b) -> None:
    """The same weights to the last bit, and the same records."""
    assert a.records == b.records
    assert a.weights.keys() == b.weights.keys()
    for name, weight in a.weights.items():
        assert torch.equal(weight, b.weights[name]), name


def plain_pytorch(config, dataset, reading) -> tuple[dict[str, torch.Tensor], list[float]]:
    """CAM trained as one would without us: torch's own SGD, clipping and StepLR. Weights and each epoch's mean loss.

    In float64, as the config says: a training amplifies the last bits of a sum.
    """
    torch.manual_seed(config.seed)
    method, recipe = build_method(config, 3), config.recipe
    head = [p for name, p in method.named_parameters() if name.startswith("fc.")]
    rest = [p for name, p in method.named_parameters() if not name.startswith("fc.")]
    optimizer = torch.optim.SGD(
        [{"params": rest, "lr": recipe.learning_rate}, {"params": head, "lr": 10 * recipe.learning_rate}],
        momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, recipe.decay_every)
    read = ReadConfig(resize_size=36, image_size=32, cache_dir=reading.cache_dir)
    losses = []
    for epoch in range(recipe.epochs):
        total = 0.0
        plan = dataset.train.plan(recipe.batch_size, config.seed)
        for batch in train_batches(dataset.train, plan, epoch, read):
            images_BCHW = normalize(batch.images_BCHW, dtype=torch.float64)
            loss = F.cross_entropy(method(images_BCHW).logits_BK, batch.labels_B)
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(method.parameters(), recipe.clip_norm)
            optimizer.step()
            total += loss.item() * len(batch.ids)
        losses.append(total / 64)
        schedule.step()
    return method.state_dict(), losses


@pytest.mark.parametrize("clip_norm", [0.0, 0.2])
def test_training_equals_plain_pytorch(dataset, reading, make_config, fit, clip_norm):
    config = make_config("cam", decay_every=1, clip_norm=clip_norm, precision="float64")
    run = fit(config)
    weights, losses = plain_pytorch(config, dataset, reading)
    for name, weight in weights.items():
        torch.testing.assert_close(run.weights[name], weight, rtol=1e-9, atol=1e-9)
    assert [record["train"]["loss"] for record in run.records] == pytest.approx(losses, rel=1e-9)


def test_clipping_changes_the_weights(make_config, fit):
    free, clipped = fit(make_config("cam"), "free"), fit(make_config("cam", clip_norm=0.2), "clipped")
    assert any(not torch.equal(weight, clipped.weights[name]) for name, weight in free.weights.items())


def test_a_record_per_epoch_says_what_happened(make_config, fit):
    run = fit(make_config("bas", epochs=3, decay_every=2, rungs=(2,)))
    assert run.yielded is not None
    assert [r["epoch"] for r in run.yielded] == [1, 2, 3]
    assert [r["step"] for r in run.yielded] == [5, 10, 15]  # 64 images by 14
    assert [r["learning_rate"] for r in run.yielded] == pytest.approx([0.02, 0.02, 0.002])
    assert [r["searched"] for r in run.yielded] == [False, True, True]
    assert [r["final"] for r in run.yielded] == [False, False, True]
    for record in run.yielded:
        terms = dict(record["train"])
        assert terms.pop("loss") == pytest.approx(sum(terms.values()))
        assert set(terms) == {"cls", "frg", "area", "bas"}
        assert record["value"] == record["val"]["max_box_acc_v2"]
        assert record["seconds"] > 0
        assert record["images_per_second"] > 0
    assert run.yielded[0]["choice"] is None
    assert run.yielded[2]["choice"]["value"] == run.yielded[2]["value"]


@pytest.mark.parametrize(
    ("values", "best"),
    [([40.0], 1), ([40.0, 50.0, 45.0], 2), ([40.0, 50.0, 50.0], 2), ([math.nan, 40.0], 2), ([math.nan, math.nan], 1)],
)
def test_the_best_epoch_is_the_first_with_the_highest_value(values, best):
    assert best_epoch(values) == best


@pytest.fixture
def valued(monkeypatch):
    """`valued(values)`: validation of epoch n says values[n - 1], whatever the network; the last of them stays."""

    choose = selection.choose

    def fake(values):
        said = iter(values)

        def chosen(counts, metric):
            return replace(choose(counts, metric), value=next(said))

        monkeypatch.setattr(selection, "choose", chosen)

    return fake


def test_the_best_epoch_is_kept_and_the_last_beside_it(make_config, fit, valued):
    """Epoch 2 of 3 is the best: the model is that of a training that ended there, bit for bit."""
    valued([40.0, 60.0, 50.0, 60.0])
    kept = fit(make_config("cam", epochs=3, keep="best"), "kept")
    assert [(r["value"], r["searched"], r["final"]) for r in kept.records] == [
        (40.0, True, False),
        (60.0, True, False),
        (60.0, True, True),
    ]
    assert kept.records[-1]["kept_epoch"] == 2
    assert kept.records[-1]["val"] == kept.records[1]["val"]
    valued([40.0, 60.0, 50.0] + [0.0] * 9)
    whole, two = fit(make_config("cam", epochs=3), "whole"), fit(make_config("cam", epochs=2), "two")
    assert all(torch.equal(weight, two.weights[name]) for name, weight in kept.weights.items())
    last = safetensors.torch.load(
        read_sealed(Store(kept.final.uri.removesuffix("final") + "last"))["model.safetensors"]
    )
    assert all(torch.equal(weight, whole.weights[name]) for name, weight in last.items())
    assert whole.records[-1]["kept_epoch"] == 3


def test_a_training_without_a_better_epoch_ends_early(make_config, fit, valued):
    valued([40.0, 60.0, 50.0, 55.0])
    last = fit(make_config("cam", epochs=9, patience=2), "last")
    assert not [name for name in Store(last.final.uri.removesuffix("/final")).list() if name.startswith("e0004")]
    assert [r["final"] for r in last.records] == [False, False, False, True]
    assert (last.records[-1]["kept_epoch"], last.records[-1]["value"]) == (4, 55.0)
    valued([40.0, 60.0, 50.0, 55.0, 60.0])
    best = fit(make_config("cam", epochs=9, patience=2, keep="best"), "best")
    assert (len(best.records), best.records[-1]["kept_epoch"], best.records[-1]["value"]) == (4, 2, 60.0)


def test_a_restart_remembers_the_best_epoch(make_config, fit, kill, valued):
    valued([40.0, 60.0, 50.0, 60.0])
    config = make_config("cam", epochs=3, keep="best")
    undisturbed = fit(config, "undisturbed")
    valued([40.0, 60.0, 50.0, 60.0])
    kill(config, Position(2), "killed")
    killed = fit(config, "killed", attempt=2)
    assert killed.records == undisturbed.records
    assert all(torch.equal(weight, killed.weights[name]) for name, weight in undisturbed.weights.items())


def test_the_value_of_an_epoch_without_search_is_that_of_the_fixed_setting(dataset, reading, make_config, tmp_path):
    """Also: searching at a rung changes no weight."""
    values = {}
    for k in (1, 2, 3):
        checkpoints = CheckpointStore(Store.at(tmp_path / str(k)), 1)
        values[k] = next(train(make_config("bas", fixed_setting=k), dataset, checkpoints, reading=reading))["value"]
    searched = next(
        train(make_config("bas", rungs=(1,)), dataset, CheckpointStore(Store.at(tmp_path / "s"), 1), reading=reading)
    )
    assert searched["value"] == max(values.values())


def test_a_plateau_is_one_of_the_records_and_goes_on_after_a_restart(make_config, fit, kill):
    """With no patience the rate falls after every epoch without a better Top-1; a restart counts those before it."""
    config = make_config("cam", epochs=5, schedule="plateau_top1", plateau_patience=0, learning_rate=1e-5)
    undisturbed = fit(config, "undisturbed")
    top1 = [record["val"]["cls_top1"] for record in undisturbed.records]
    better = [i == 0 or value > max(top1[:i]) for i, value in enumerate(top1)]
    expected = [1e-5 * 0.1 ** better[:i].count(False) for i in range(5)]
    assert [record["learning_rate"] for record in undisturbed.records] == pytest.approx(expected)
    assert expected[3] < 1e-5
    kill(config, Position(3), "killed")
    assert_equal_runs(fit(config, "killed", attempt=2), undisturbed)


def test_poly_sets_the_rate_of_every_step(make_config, fit, monkeypatch):
    """Two epochs of five steps: at step t of ten, (1 - t/10)^0.9."""
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    fit(make_config("bas", schedule="poly", learning_rate=0.01))
    assert rates == pytest.approx([0.01 * (1 - t / 10) ** 0.9 for t in range(10)])


def test_a_recipe_may_cut_random_regions_and_leave_out_the_rest(dataset, reading, make_config, fit, kill):
    cut = {"train_geometry": "random_resized_crop", "crop_scale": 0.5, "drop_last": True}
    config = make_config("cam", precision="float64", **cut)
    undisturbed = fit(config, "undisturbed")
    assert [record["step"] for record in undisturbed.records] == [4, 8]  # 56 of 64 images by 14
    kill(config, Position(0, 42), "killed", checkpoint_batches=1)
    assert_equal_runs(fit(config, "killed", attempt=2), undisturbed)
    torch.manual_seed(config.seed)
    method, total = build_method(config, 3), 0.0
    optimizer = build_optimizer(method, config.recipe)
    set_learning_rate(optimizer, config.recipe.learning_rate)
    read = ReadConfig(36, 32, "random_resized_crop", crop_scale=0.5, cache_dir=reading.cache_dir)
    for batch in train_batches(dataset.train, dataset.train.plan(14, config.seed, drop_last=True), 0, read):
        images_BCHW = normalize(batch.images_BCHW, dtype=torch.float64)
        loss = F.cross_entropy(method(images_BCHW).logits_BK, batch.labels_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() / 4
    assert undisturbed.records[0]["train"]["loss"] == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("method", "quality"), [("cam", 0), ("bas", 0), ("cam", 90)])
def test_a_run_killed_between_epochs_ends_as_if_nothing_had_happened(make_config, fit, kill, method, quality):
    config = make_config(method, epochs=3, shrunk_jpegs=quality)
    undisturbed = fit(config, "undisturbed")
    kill(config, Position(2), "killed")
    killed = fit(config, "killed", attempt=2)
    assert_equal_runs(killed, undisturbed)
    told = json.loads(killed.final.read(DESCRIPTION))["training_images"]
    assert told.startswith(f"JPEGs of 36x36, quality {quality}, about " if quality else "exact pixels")


def test_a_checkpoint_is_written_while_its_epoch_is_validated(make_config, fit, monkeypatch):
    """The weights stand still meanwhile. Its records come last: what is reported is kept."""
    validating, beside, batches, write = threading.Event(), [], EvalRows.batches, Store.write

    def seen(rows):
        validating.set()
        yield from batches(rows)

    def waiting(store, name, data):
        if name == "state.pt":
            beside.append(validating.wait(20))
        write(store, name, data)

    monkeypatch.setattr(EvalRows, "batches", seen)
    monkeypatch.setattr(Store, "write", waiting)
    fit(make_config("cam"))
    assert beside == [True]


def test_a_run_killed_at_any_write_of_an_epochs_end_ends_as_if_nothing_had_happened(
    dataset, reading, make_config, fit, tmp_path, monkeypatch
):
    """In the thread that writes the state or after it: the seal alone makes a checkpoint, then a record is told."""
    config, left, places, told = make_config("cam", rungs=(1,)), iter(()), [], []
    undisturbed = fit(config, "undisturbed")

    def mortal(of):
        original = getattr(Store, of)

        def call(store, *args):
            places.append(f"{of} {args[0]}")
            if next(left, 1) == 0:
                raise Killed
            return original(store, *args)

        monkeypatch.setattr(Store, of, call)

    mortal("write")
    mortal("remove")
    for number in itertools.count():
        left, places, told = iter(range(number, -1, -1)), [], []
        checkpoints = CheckpointStore(Store.at(tmp_path / f"{number}"), 1)
        with contextlib.suppress(Killed):
            told += itertools.islice(train(config, dataset, checkpoints, reading=reading), 1)
        left, sealed = iter(()), checkpoints.position()
        assert (sealed == Position(1)) == bool(told)
        assert_equal_runs(fit(config, f"{number}", attempt=2), undisturbed)
        if told:
            break
    assert places[:number] == [
        "remove seal.json", "write state.pt", "write rung/val_counts.json", "remove seal.json", "write records.json",
        "write seal.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "ahead"),
    [
        ("cam", False),
        ("bas", False),
        ("has", False),
        ("cutmix", False),
        ("dawsol", False),
        ("bas", True),
        ("has", True),
    ],
)
def test_a_run_killed_inside_an_epoch_ends_as_if_nothing_had_happened(
    make_config, fit, kill, monkeypatch, method, ahead
):
    """With batches that were made ahead of the one that it died after, too, and maps scored beside the network."""
    config = make_config(method)
    undisturbed = fit(config, "undisturbed")
    if ahead:  # as where a process has a second thread, but with sums in one order
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    kill(config, Position(1, 28), "killed", checkpoint_batches=1)
    resumed = fit(config, "killed", attempt=2)
    assert_equal_runs(resumed, undisturbed)
    assert [record["epoch"] for record in resumed.yielded] == [2]


def test_a_run_whose_batches_and_scores_are_made_beside_is_the_same_run(make_config, fit):
    """With a second thread batches are cropped ahead and maps scored behind; float64 bears another order of sums."""
    config = make_config("bas", precision="float64")
    one = fit(config, "one")
    torch.set_num_threads(2)
    two = fit(config, "two")
    torch.set_num_threads(1)
    assert one.records[-1]["val"] == two.records[-1]["val"]
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, two.weights[name], rtol=1e-9, atol=1e-12)


def test_a_checkpoint_of_other_arithmetic_is_left_alone(make_config, fit, kill, monkeypatch):
    """What "auto" was on another device is not gone on with here."""
    kill(make_config("cam"), Position(1), "killed")
    told = property(lambda computes: "bfloat16")
    monkeypatch.setattr(loop.Arithmetic, "told", told)
    with pytest.raises(MismatchError, match="of another configuration"):
        fit(make_config("cam"), "killed", attempt=2)


def test_a_method_is_told_the_epoch_and_the_images(make_config, fit, dataset, monkeypatch):
    told = []
    monkeypatch.setattr(cam.Method, "begin_step", lambda method, *step: told.append(step))
    fit(make_config("cam"))
    batches = [
        (epoch, batch.ids, batch.global_size)
        for epoch in range(2)
        for batch in train_batches(dataset.train, dataset.train.plan(14, 0), epoch, ReadConfig(36, 32))
    ]
    assert told == batches


def test_what_a_network_draws_is_drawn_again_after_a_restart(make_config, fit, kill, monkeypatch):
    """Noise on the images, fresh in every step, stands for dropout, CutMix and the like."""
    build, drawn = wsol_models.build, []

    def noise(method, inputs):
        images_BCHW, *targets = inputs
        if not method.training:
            return inputs
        drawn.append(torch.randn_like(images_BCHW))
        return images_BCHW + drawn[-1], *targets

    def noisy(*args, **options):
        method = build(*args, **options)
        method.register_forward_pre_hook(noise)
        return method

    monkeypatch.setattr(wsol_models, "build", noisy)
    config = make_config("cam")
    undisturbed = fit(config, "undisturbed")
    assert len({float(sample.flatten()[0]) for sample in drawn}) == 10  # 2 epochs of 5 steps, none like another
    kill(config, Position(1, 28), "killed", checkpoint_batches=1)
    torch.manual_seed(99)
    assert_equal_runs(fit(config, "killed", attempt=2), undisturbed)


def test_a_generator_closed_after_an_epoch_is_taken_up_by_the_next(dataset, reading, make_config, fit, tmp_path):
    config = make_config("bas", epochs=3)
    run = train(config, dataset, CheckpointStore(Store.at(tmp_path / "closed"), 1), reading=reading)
    next(run)
    run.close()
    assert_equal_runs(fit(config, "closed"), fit(config, "undisturbed"))


def test_checkpoints_inside_an_epoch_change_nothing(make_config, fit):
    config = make_config("bas")
    assert_equal_runs(fit(config, "often", checkpoint_batches=2), fit(config, "seldom"))


def test_a_checkpoint_of_another_configuration_is_refused_and_left_alone(make_config, fit, kill, tmp_path):
    kill(make_config("cam"), Position(1))
    before = Store.at(tmp_path / "trial").list()
    with pytest.raises(DataError, match="another configuration"):
        fit(make_config("cam", learning_rate=0.01))
    assert Store.at(tmp_path / "trial").list() == before


def test_the_seed_decides(make_config, fit):
    same, other = fit(make_config("cam"), "same"), fit(make_config("cam", seed=1), "other")
    assert_equal_runs(same, fit(make_config("cam"), "again"))
    assert same.records != other.records


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_optimizer_moves(
    dataset, reading, make_config, monkeypatch, tmp_path, poison
):
    steps = []
    true_losses, true_step = cam.losses, torch.optim.SGD.step
    factor = {2: poison}  # after two good steps
    monkeypatch.setattr(cam, "losses", lambda *a: {"cls": true_losses(*a)["cls"] * factor.get(len(steps), 1.0)})
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(true_step(self)))
    checkpoints = CheckpointStore(Store.at(tmp_path), 1)
    with pytest.raises(NonFiniteError, match=r"epoch 1 after 28 samples \(cls (nan|inf)\)"):
        next(train(make_config("cam"), dataset, checkpoints, reading=reading, checkpoint_batches=1))
    assert len(steps) == 2
    saved = checkpoints.newest()
    assert saved is not None
    assert saved.position == Position(0, 28)
    assert all(torch.isfinite(weight).all() for weight in saved.state["method"].values())


@pytest.mark.parametrize("method", wsol_models.methods())
def test_bfloat16_computes_in_bfloat16_and_keeps_weights_in_float32(make_config, fit, method):
    """A gradient that is no number would have stopped it."""
    changes = {"epochs": 1, "learning_rate": 1e-3, "options": {"first_epoch": 0} if method == "dawsol" else {}}
    full = fit(make_config(method, **changes), "full")
    half = fit(make_config(method, precision="bfloat16", **changes), "half")
    assert {weight.dtype for weight in half.weights.values() if weight.is_floating_point()} == {torch.float32}
    losses = full.records[0]["train"]["loss"], half.records[0]["train"]["loss"]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_float64_trains_and_keeps_weights_that_rounding_does_not_move(make_config, fit):
    """Another number of threads sums in another order. The finished model localizes in float64 too."""
    config = make_config("bas", precision="float64")
    alone = fit(config, "alone")
    torch.set_num_threads(3)
    together = fit(config, "together")
    for name, weight in alone.weights.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(together.weights[name], weight, rtol=1e-9, atol=1e-9)
    assert together.records[-1]["choice"] == alone.records[-1]["choice"]
    (found,) = load_model(alone.final).predict(np.zeros((1, 40, 40, 3), np.uint8))
    assert np.isfinite(found.map_HW).all()


def test_gradients_that_differ_in_last_bits_are_the_same_where_a_training_shall_reproduce():
    layer = torch.nn.Linear(20, 30, dtype=torch.float64)
    found, exact = [], torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for disturbance in (0, 1e-15):
        layer.weight.grad = exact * (1 + disturbance)
        loop._round_gradients(layer)
        found.append(layer.weight.grad)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], exact, rtol=2**-8, atol=0)


def test_channels_last_is_another_layout_of_the_same_numbers(make_config, fit, monkeypatch):
    strides = set()
    build = wsol_models.build

    def watched(*args, **options):
        method = build(*args, **options)
        method.register_forward_pre_hook(lambda _, images: strides.add(images[0].stride(1)))
        return method

    monkeypatch.setattr(wsol_models, "build", watched)
    config = make_config("cam", epochs=1, precision="float64")
    usual = fit(config, "usual")
    assert strides == {32 * 32}
    strides.clear()
    last = fit(replace(config, channels_last=True), "last")
    assert 1 in strides
    assert last.records[0]["train"]["loss"] == pytest.approx(usual.records[0]["train"]["loss"], rel=1e-9)


def test_a_finished_run_leaves_a_model_that_reads_the_very_counts_it_was_chosen_from(
    dataset, reading, make_config, fit
):
    run = fit(make_config("bas"))
    assert run.final.list() == [
        "backbone.safetensors", "model.json", "model.safetensors", "records.json", "seal.json", "val_counts.json",
        "val_images.json",
    ]  # fmt: skip
    model = load_model(run.final)
    read = ReadConfig(resize_size=36, image_size=32, cache_dir=reading.cache_dir)
    rows = eval_rows(dataset.val, read, model.protocol.geometry, batch_size=14)
    choice, _ = evaluate.solve(model.method, model.readout, rows, model.protocol)
    assert choice == model.choice
    assert choice.to_dict() == selection.Choice.from_dict(run.records[-1]["choice"]).to_dict()
    assert model.description["val_split"] == dataset.val.fingerprint


def test_counts_of_any_number_of_ranks_add_up_to_those_of_one(dataset, reading, make_config):
    """25 validation images; of 30 ranks five have none, and bring counts that add nothing."""
    config = make_config("cam", precision="float64")  # batches of other sizes: float32 rounds otherwise
    method, rules = build_method(config, 3), protocol("wsol-v1", 32, 36)
    read = ReadConfig(36, 32, cache_dir=reading.cache_dir)

    def counts(world: int, **options: bool):
        ranks = [eval_rows(dataset.val, read, rules.geometry, 4, rank=rank, world=world) for rank in range(world)]
        parts = [evaluate.count(method, build_readout(config), rows, rules, **options) for rows in ranks]
        return sum(parts[1:], start=parts[0])

    whole = counts(1)
    assert whole.images.tolist() == [25]
    assert counts(30).to_dict() == whole.to_dict()
    alone = counts(1, keep_images=True)
    for world in (3, 30):
        of_ranks = counts(world, keep_images=True)
        assert of_ranks.to_dict() == whole.to_dict()
        assert of_ranks.image_hits.ids == tuple(dataset.val.ids)
        assert np.array_equal(of_ranks.image_hits.bits, alone.image_hits.bits)


def test_a_finished_run_leaves_the_hits_of_single_images_at_its_choice(make_config, fit, dataset):
    run = fit(make_config("bas"))
    counts = Counts.from_dict(json.loads(run.final.read("val_counts.json")))
    hits = ImageHits.from_dict(json.loads(run.final.read("val_images.json")))
    assert len(set(hits.ids)) == dataset.val.num_rows
    chosen = load_model(run.final).choice.setting
    hits_NIT = np.unpackbits(hits.bits, axis=-1, count=counts.hits.shape[-1])
    assert (hits_NIT.sum(0) == counts.hits[chosen]).all()
    assert (hits.ranks < 1).sum() == counts.top1[chosen]


def with_test_as_validation(dataset: Dataset) -> Dataset:
    swapped = replace(dataset)
    vars(swapped)["val"] = dataset.test()
    return swapped


def test_whatever_chooses_refuses_the_test_split(dataset, reading, make_config, tmp_path):
    config = make_config("bas")
    with pytest.raises(ProtocolError, match="needs the 'val' split but was handed 'test'"):
        next(train(config, with_test_as_validation(dataset), CheckpointStore(Store.at(tmp_path), 1), reading=reading))
    assert not [name for name in Store.at(tmp_path).list() if name.endswith("seal.json")]  # the epoch's state is void
    rows = eval_rows(dataset.test(), ReadConfig(36, 32, cache_dir=reading.cache_dir), "resize", 14)
    with pytest.raises(ProtocolError, match="'test'"):
        evaluate.solve(build_method(config, 3), None, rows, protocol("wsol-v1", 32, 36))


def test_training_never_touches_the_test_split(dataset, reading, make_config, monkeypatch, tmp_path):
    """Its shards are gone, and nobody asks for it."""
    shutil.copytree(dataset.uri, tmp_path / "data")
    shards = [shard.name for shard in dataset.test().shards]
    for name in shards:
        (tmp_path / "data" / name).unlink()
    assert shards
    opened = []
    monkeypatch.setattr(Dataset, "test", lambda self: opened.append(self))
    bare = open_dataset(str(tmp_path / "data"))
    checkpoints = CheckpointStore(Store.at(tmp_path / "trial"), 1)
    records = list(train(make_config("bas"), bare, checkpoints, reading=reading))
    assert records[-1]["final"]
    assert opened == []
