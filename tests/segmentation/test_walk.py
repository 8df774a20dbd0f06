"""From seeds to a network: masks, training that continues exactly, one look at test."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.segmentation.ranks import InDouble
from wsol_models.segmentation import crf, pamr
from wsol_pipeline.data.images import decode, resize_to
from wsol_pipeline.errors import DataError, MismatchError, UsageError
from wsol_pipeline.segmentation import fit, make_seeds, masks, network, refine, segment, station
from wsol_pipeline.segmentation.make_seeds import unpack_strided
from wsol_pipeline.segmentation.options import RefineOptions, SeedOptions, SegmentOptions, WalkOptions
from wsol_pipeline.segmentation.seeds import strided
from wsol_pipeline.segmentation.segmenter import load_segmenter
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.loop import Order, World
from wsol_pipeline.verdict.options import EvaluateOptions

RANKS = str(Path(__file__).with_name("ranks.py"))
SMALL_IRN = {"irn_epochs": 2, "irn_batch": 12, "irn_crop": 80, "irn_pad": 0, "exponent": 4}


@pytest.fixture(scope="module")
def walk(studies, tmp_path_factory):
    """A storage with the study and its seeds. Nobody changes its files."""
    store = Store.at(tmp_path_factory.mktemp("walk") / "storage")
    shutil.copytree(studies.uri, store.uri)
    make_seeds.make_seeds(SeedOptions(storage=store.uri, scales=(1.0,), threshold="0.3", field="none"), "cpu")
    return store


@pytest.fixture(scope="module")
def masked(walk):
    """Its pseudo masks by PAMR."""
    return refine.refine(RefineOptions(storage=walk.uri, seeds="bas-seeds", by=("pamr",)), "cpu")


def training(store, name, **options):
    given = {"storage": store.uri, "masks": "bas-pamr", "name": name, "network": "lraspp_mobilenet_v3_large",
             "epochs": 2, "batch_size": 12, "crop": 48, "freeze_batch_norm": True, **options}  # fmt: skip
    return SegmentOptions(**given)


def test_pamr_refines_maps_and_leaves_a_constant_background(masked, walk, several):
    seeds = station.finished(walk, "bas-seeds")
    row = seeds.read("train", np.arange(1), ["id", "classes", "maps"]).to_pylist()[0]
    image = several.train.shard_set().read(np.arange(1), ["image"])["image"][0].as_py()
    maps = unpack_strided(row["maps"], (40, 40))
    small = resize_to(decode(image), strided((40, 40))).float() / 255
    with_background = pamr.refine(torch.cat([torch.full((1, 10, 10), 0.3), maps]), small)
    assert torch.allclose(with_background[0], torch.full((10, 10), 0.3), atol=1e-6)
    options = RefineOptions(seeds="bas-seeds", by=("pamr",))
    worker = refine.RefineWorker(refine.RefineMaker(several.uri, seeds.place.uri, options, "cpu", 0.3))
    first = next(make_seeds.read_images(several.train, station.Part("train", 0, 0, 1)))
    wide = torch.nn.functional.interpolate(with_background[1:][None], (40, 40), mode="bilinear")[0]
    assert torch.allclose(worker.maps(first, row), wide.clamp(0, 1), atol=1e-6)


def test_pseudo_masks_have_their_images_size_and_classes(masked, several):
    table = masked.read("train", np.arange(36), ["id", "classes", "pseudo_mask"]).to_pylist()
    assert [row["id"] for row in table] == several.train.ids
    for row in table:
        labels = masks.decode(row["pseudo_mask"])
        assert labels.shape == (40, 40)
        assert set(np.unique(labels)) <= {0, *(label + 1 for label in row["classes"])}
    assert masked.manifest["identity"]["sources"] == [station.finished(Store.at(masked.uri("seeds")), "").seal]


@pytest.mark.parametrize("by", [("irn",), ("crf",), ("irn", "pamr", "crf"), ("none",)])
def test_every_refinement_gives_masks(walk, by, monkeypatch):
    monkeypatch.setattr(crf, "MOST_PIXELS", 200)
    options = RefineOptions(storage=walk.uri, seeds="bas-seeds", by=by, **SMALL_IRN)
    found = refine.refine(options, "cpu")
    assert found.rows("train") == 36
    assert 0 < found.manifest["val"]["miou"] <= found.manifest["val"]["oracle"] + 1e-9


def test_irn_killed_in_its_training_goes_on_bit_for_bit(walk, monkeypatch):
    def options(name):
        return RefineOptions(storage=walk.uri, seeds="bas-seeds", by=("irn",), name=name, **SMALL_IRN)

    class Death(BaseException):
        pass

    def mortal(self, position, state, records, save=CheckpointStore.save):
        save(self, position, state, records)
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", mortal)
        with pytest.raises(Death):
            refine.refine(options("killed"), "cpu")
    killed, whole = refine.refine(options("killed"), "cpu"), refine.refine(options("whole"), "cpu")
    for name in ("train/00000.parquet", "val/00000.parquet"):
        assert killed.place.read(name) == whole.place.read(name)


def test_masks_killed_between_shards_go_on_bit_for_bit(masked, walk, monkeypatch):
    """Validation's shards and training's are made once: what was there is only read."""
    monkeypatch.setattr(station.parts_of, "__defaults__", (12,))

    class Death(BaseException):
        pass

    def mortal(place, part, worker, write=station.write):
        if part.name == "train/00001":
            raise Death
        return write(place, part, worker)

    def made(name):
        return refine.refine(RefineOptions(storage=walk.uri, seeds="bas-seeds", by=("pamr",), name=name), "cpu")

    with monkeypatch.context() as patch:
        patch.setattr(station, "write", mortal)
        with pytest.raises(Death):
            made("killed-masks")
    again = []
    monkeypatch.setattr(station, "write", lambda *args, write=station.write: again.append(args[1].name) or write(*args))
    killed = made("killed-masks")
    assert again == ["train/00001", "train/00002"]
    assert killed.seal == made("whole-masks").seal
    assert killed.seal != masked.seal  # of one shard


def test_an_evaluation_killed_on_its_way_leaves_nothing(masked, walk, monkeypatch):
    """What it finds is written whole at its end; the same command judges anew."""
    segment.train_network(training(walk, "looked"), "cpu")
    whole = segment.judge_network(EvaluateOptions(storage=walk.uri), "looked")
    (walk / "looked").remove(segment.EVALUATION)

    def mortal(*args):
        yield next(network.judged(*args))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segment, "judged", mortal)
        with pytest.raises(KeyboardInterrupt):
            segment.judge_network(EvaluateOptions(storage=walk.uri), "looked")
    assert not (walk / "looked").exists(segment.EVALUATION)
    assert segment.judge_network(EvaluateOptions(storage=walk.uri), "looked") == whole


def weights(found):
    return Store.at(found.uri("model")).read("model.safetensors")


def test_a_network_stopped_inside_an_epoch_goes_on_exactly(masked, walk):
    whole = segment.train_network(training(walk, "undisturbed"), "cpu")
    task = segment.task_of(training(walk, "stopped"), masked)
    checkpoints = CheckpointStore(walk / "stopped" / "training", 1)
    stop = World(orders=lambda at: Order.STOP if at == Position(1, 12) else Order.GO_ON)
    assert len(list(fit.fit(task, checkpoints, stop))) == 1
    assert checkpoints.position() == Position(1, 12)
    stopped = segment.train_network(training(walk, "stopped"), "cpu")
    assert weights(stopped) == weights(whole)
    assert stopped.manifest["val"] == whole.manifest["val"]


def test_a_checkpoint_of_another_training_is_left_alone(masked, walk):
    task = segment.task_of(training(walk, "other"), masked)
    checkpoints = CheckpointStore(walk / "other" / "training", 1)
    stop = World(orders=lambda at: Order.STOP)
    list(fit.fit(task, checkpoints, stop))
    changed = segment.task_of(training(walk, "other", learning_rate=0.5), masked)
    with pytest.raises(MismatchError, match="is of another training"):
        next(fit.fit(changed, checkpoints, World()))


def test_the_finished_network_segments_and_test_is_opened_once(masked, walk, several, monkeypatch):
    found = segment.train_network(training(walk, "judged"), "cpu")
    first = segment.judge_network(EvaluateOptions(storage=walk.uri), "judged")
    assert first.images == 12
    assert first.supervision == "labels"
    assert first.interval[0] <= first.figures["miou"] <= first.interval[1]
    monkeypatch.setattr(segment, "_on_test", lambda *args: pytest.fail("test was opened again"))
    assert segment.judge_network(EvaluateOptions(storage=walk.uri), "judged") == first
    model = load_segmenter(Store.at(found.uri("model")))
    photograph = np.zeros((33, 47, 3), np.uint8)
    assert model.segment(photograph).shape == (33, 47)
    assert np.array_equal(masks.decode(model.png(photograph)), model.segment(photograph))


def test_masks_of_other_images_and_other_models_are_refused(masked, walk, several):
    with pytest.raises(DataError, match="'bas-none-such'.*is not there: known are .*bas-pamr"):
        segment.train_network(training(walk, "x", masks="bas-none-such"), "cpu")
    with pytest.raises(UsageError, match="holds seeds, not pseudo masks"):
        segment.train_network(training(walk, "x", masks="bas-seeds"), "cpu")
    with pytest.raises(MismatchError, match="The data is not that of which"):
        refine.require_same(masked, "another fingerprint")


def test_batches_and_weights_that_cannot_be_are_refused(masked, walk):
    with pytest.raises(UsageError, match="deeplabv3_resnet50 pools each image to one value.*1 image a worker"):
        segment.task_of(
            training(walk, "x", network="deeplabv3_resnet50", batch_size=1, freeze_batch_norm=False), masked
        )
    with pytest.raises(UsageError, match="trained on masks of pixels.*--supervision full"):
        segment.task_of(training(walk, "x", weights="deeplabv1_resnet101-coco.pth"), masked)
    with pytest.raises(UsageError, match="Unknown network 'deeplab'"):
        SegmentOptions(network="deeplab")
    with pytest.raises(UsageError, match="either --masks or --study must be given"):
        WalkOptions()


def test_refinements_follow_one_order():
    with pytest.raises(UsageError, match="Unknown refinement 'irnn'. Did you mean 'irn'"):
        RefineOptions(seeds="s", by=("irnn",))
    with pytest.raises(UsageError, match="follow each other as irn, pamr, crf"):
        RefineOptions(seeds="s", by=("crf", "irn"))
    with pytest.raises(UsageError, match="--seeds must name finished seeds"):
        RefineOptions()


def test_a_walk_names_its_stations():
    walk = WalkOptions(study="bas", by=("pamr",), network="lraspp_mobilenet_v3_large", storage="there")
    assert (walk.seeds.result, walk.refinement.result, walk.training.result) == (
        "bas-seeds",
        "bas-pamr",
        "bas-pamr-lraspp",
    )
    assert {walk.seeds.storage, walk.refinement.storage, walk.training.storage} == {"there"}


def test_training_shards_have_no_true_mask(masked, several):
    """What a network reads of a training image: its bytes, and `pseudo_mask`."""
    stored = several.train.shard_set().read_all(["id"]).num_rows
    assert stored == 36
    schema = masked.read("train", np.arange(1), ["pseudo_mask"]).schema
    assert schema.names == ["pseudo_mask"]
    with pytest.raises((KeyError, DataError)):
        several.train.shard_set().read(np.arange(1), ["mask"])["mask"]
    assert json.loads(masked.place.read("identity.json"))["kind"] == "pseudo masks"


def test_two_ranks_train_as_one(masked, walk, tmp_path):
    """Losses are means over the pixels of the global batch: masks with few labels do not weigh more on one rank."""
    task = segment.task_of(training(walk, "two"), masked)
    alone = CheckpointStore(Store.at(tmp_path / "alone"), 1)
    list(fit.fit(InDouble(task), alone, World()))
    (tmp_path / "task.json").write_text(json.dumps(vars(task)))
    place = str(tmp_path / "trial")
    subprocess.run([sys.executable, RANKS, str(tmp_path / "task.json"), place], check=True)
    both = [store.final() for store in (CheckpointStore(Store.at(place), 1), alone)]
    theirs, ours = (safetensors.torch.load(of.read("model.safetensors")) for of in both)
    assert all(torch.allclose(theirs[name], ours[name], rtol=1e-9, atol=1e-9) for name in ours)
    losses = [json.loads(of.read("records.json"))[-1]["train"]["loss"] for of in both]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # sums of records are of float32


def test_records_of_workers_are_told_as_they_come(tmp_path, monkeypatch):
    """Ray's workers hand nothing on themselves; what was told before a restart is not told again."""
    monkeypatch.setattr(fit, "LOOK", 0.01)
    checkpoints, told = CheckpointStore(Store.at(tmp_path), 1), []
    checkpoints.save(Position(1), {}, [{"epoch": 1}])
    with fit._telling(checkpoints, told.append):
        checkpoints.save(Position(2), {}, [{"epoch": 1}, {"epoch": 2}])
        while not told:
            time.sleep(0.01)
        checkpoints.finish({}, [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}])
    assert told == [{"epoch": 2}, {"epoch": 3}]


def test_a_storage_that_has_moved_goes_on(masked, walk, tmp_path):
    """No station knows where it lies: all that it is made of is found beside it."""
    shutil.copytree(walk.uri, tmp_path / "moved")
    moved = Store.at(tmp_path / "moved")
    found = station.finished(moved, "bas-pamr")
    assert found.seal == masked.seal
    assert found.uri("seeds") == str(tmp_path / "moved" / "bas-seeds")
    again = refine.refine(RefineOptions(storage=moved.uri, seeds="bas-seeds", by=("pamr",)), "cpu")
    assert again.seal == masked.seal
    text = (moved / "bas-pamr").read("manifest.json") + (moved / "bas-seeds").read("manifest.json")
    assert walk.uri.encode() not in text
