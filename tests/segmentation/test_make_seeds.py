"""Seeds of a finished study: what is kept, what validation chooses, what a kill leaves, what is refused."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wsol_models.readouts import readout
from wsol_pipeline.data.images import decode
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.images import normalize
from wsol_pipeline.segmentation import make_seeds, masks, station
from wsol_pipeline.segmentation.make_seeds import THRESHOLDS, unpack_strided
from wsol_pipeline.segmentation.options import SeedOptions
from wsol_pipeline.segmentation.seeds import full_size, normalised
from wsol_pipeline.segmentation.views import class_maps
from wsol_pipeline.storage import Store
from wsol_pipeline.training.model import load_model
from wsol_pipeline.verdict.rows import finished_study


@pytest.fixture
def seeds_of(storage):
    """`seeds_of(name, **options)`: a station of seeds, with a cheap field."""

    def make(name="seeds", **options):
        given = {"study": "bas", "storage": storage.uri, "name": name, "scales": (1.0, 0.5), "field": "none", **options}
        return make_seeds.make_seeds(SeedOptions(**given), "cpu")

    return make


def contents(found):
    """The bytes of all shards and of the seal."""
    names = [name for name in found.place.list() if name.endswith((".parquet", "seal.json", "manifest.json"))]
    return {name: found.place.read(name) for name in names}


def test_a_row_has_the_maps_of_its_classes_and_two_label_images(seeds_of, several):
    found = seeds_of()
    table = found.read("train", np.arange(36), ["id", "height", "width", "classes", "maps", "seed", "confident"])
    assert table["id"].to_pylist() == several.train.ids
    for row in table.to_pylist():
        maps = unpack_strided(row["maps"], (row["height"], row["width"]))
        assert maps.shape == (len(row["classes"]), 10, 10)
        assert ((maps >= 0) & (maps <= 1)).all()
        seed, sure = masks.decode(row["seed"]), masks.decode(row["confident"])
        assert seed.shape == sure.shape == (40, 40)
        known = {0, *(label + 1 for label in row["classes"])}
        assert set(np.unique(seed)) <= known
        assert set(np.unique(sure)) <= known | {255}
    assert found.read("val", np.arange(12), ["seed"])["seed"].null_count == 12  # chosen by them, not made


def test_the_sum_over_views_is_the_readouts_own(studies, several):
    """One scale and no mirror are BAS's map of the class; a pyramid over it says the same of several."""
    model = load_model(Store(finished_study(studies, "bas")["model"]))
    row = several.train.shard_set().read(np.arange(1), ["image", "labels"]).to_pylist()[0]
    pixels, label = decode(row["image"]), row["labels"][0]
    one = class_maps(model.method, pixels.permute(1, 2, 0).numpy(), torch.tensor([label]), (1.0,), mirror=False)
    maps = model.method(normalize(pixels[None])).maps_BKHW[0, label]
    assert torch.allclose(one.full_CHW, full_size([maps[None].detach()], (40, 40)), atol=1e-6)
    both = class_maps(model.method, pixels.permute(1, 2, 0).numpy(), torch.tensor([label]), (1.0,))
    mirrored = model.method(normalize(pixels.flip(-1)[None])).maps_BKHW[0, label].flip(-1)
    assert torch.allclose(both.full_CHW, full_size([(maps + mirrored)[None].detach()], (40, 40)), atol=1e-6)
    pyramid = readout("pyramid", scales=(0.5, 1.0, 1.5, 2.0), base="stored", mirror=True, resampling="bicubic",
                      canvas=16, over="own")  # fmt: skip
    theirs = pyramid.maps(model.method, normalize(pixels[None]), torch.tensor([label]), "0.5+1+1.5+2/own",
                          stored_BCHW=pixels[None], prepare=normalize)  # fmt: skip
    ours = class_maps(model.method, pixels.permute(1, 2, 0).numpy(), torch.tensor([label]))
    assert torch.allclose(normalised(ours.full_CHW), normalised(theirs), atol=0.02)  # PIL and torch resize alike


def test_validation_chooses_the_best_of_all_thresholds(seeds_of):
    found = seeds_of()
    val = found.manifest["val"]
    assert val["threshold"] == val["oracle_threshold"] == found.manifest["chosen"]["constant"]
    assert val["miou"] == pytest.approx(val["oracle"])
    assert np.float32(val["threshold"]) in THRESHOLDS
    assert set(val["classes"]) <= {"background", "cross", "ring", "triangle"}
    given = seeds_of("given", threshold="0.25").manifest
    assert given["chosen"]["constant"] == pytest.approx(0.25)
    assert given["val"]["miou"] <= val["miou"]


def test_thresholds_without_a_mask(seeds_of):
    image = seeds_of("image", threshold="image").manifest
    assert image["chosen"]["per"] == "image"
    labels = seeds_of("labels", threshold="labels").manifest
    assert labels["val"]["miou"] == pytest.approx(labels["val"]["labels"])
    assert labels["chosen"]["constant"] * 20 == pytest.approx(round(labels["chosen"]["constant"] * 20), abs=1e-4)
    with pytest.raises(UsageError, match="--threshold image needs a study of bas"):
        seeds_of("cams", study="cam", threshold="image")


def test_labels_alone_choose_where_there_is_no_mask(seeds_of, storage, several, tmp_path):
    """The same cut as beside masks, of a set without any; each image's own falls back on it."""
    source = synthetic.read(Path(), synthetic.Options(train=36, val=12, test=12, classes=3, objects=3, size=40))
    rows = [replace(row, masks=()) for row in source.rows]
    place = str(tmp_path / "bare")
    import_dataset(replace(source, rows=rows), Store.at(place), name="bare", origin={})
    winner = json.loads(storage.store.read("bas/winner.json")) | {"data": place}
    (storage.store / "bare").write("winner.json", json.dumps(winner).encode())
    beside = seeds_of("beside").manifest["val"]
    found = seeds_of("bare-seeds", study="bare", threshold="labels").manifest
    assert found["chosen"]["constant"] == beside["labels_threshold"] > 0
    assert found["val"] == {}
    own = seeds_of("bare-own", study="bare", threshold="image").manifest
    assert own["chosen"] == {"constant": beside["labels_threshold"], "per": "image"}
    with pytest.raises(DataError, match="has no masks on validation: choose by --threshold labels"):
        seeds_of("bare-val", study="bare")


def test_what_was_killed_goes_on_bit_for_bit(seeds_of, storage, monkeypatch):
    monkeypatch.setattr(station, "ROWS", 8)
    monkeypatch.setattr(station.parts_of, "__defaults__", (8,))
    whole = seeds_of("whole")

    class Death(BaseException):
        pass

    def mortal(place, part, worker, write=station.write):
        if part.name == "train/00002":
            raise Death
        return write(place, part, worker)

    with monkeypatch.context() as patch:
        patch.setattr(station, "write", mortal)
        with pytest.raises(Death):
            seeds_of("killed")
    place = storage.store / "killed"
    assert place.exists("train/00001.parquet")
    assert not place.exists("manifest.json")
    place.write("train/00001.parquet", b"half")  # a disk that was full: made again
    made = []
    monkeypatch.setattr(station, "write", lambda *args, write=station.write: made.append(args[1].name) or write(*args))
    assert contents(seeds_of("killed")) == contents(whole)
    assert made == ["train/00001", "train/00002", "train/00003", "train/00004"]
    made.clear()
    assert contents(seeds_of("killed")) == contents(whole)
    assert made == []


@pytest.mark.slow
def test_two_workers_make_the_same(seeds_of, local_ray, monkeypatch):
    monkeypatch.setattr(station.parts_of, "__defaults__", (12,))
    two = contents(seeds_of("two", workers=2))
    import ray

    ray.shutdown()
    assert contents(seeds_of("one")) == two


@pytest.mark.slow
def test_an_actor_that_dies_costs_its_shard(seeds_of, storage, local_ray, monkeypatch, tmp_path):
    """Killed by the system before its second shard is written: it starts anew and makes that one, none twice."""
    monkeypatch.setattr(station.parts_of, "__defaults__", (12,))
    once, log = tmp_path / "died", tmp_path / "log"

    class Mortal:
        def __init__(self, maker):
            self.maker = maker

        def __call__(self):
            work = self.maker()

            def worker(part):
                with log.open("a") as file:
                    file.write(f"{part.name}\n")
                if part.name == "train/00001" and not once.exists():
                    once.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return work(part)

            return worker

    def mortal(place, make, parts, *rest, run=station.run_parts):
        return run(place, Mortal(make), parts, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(station, "run_parts", mortal)
        shaken = seeds_of("shaken", workers=2)
    assert once.exists()
    assert sorted(log.read_text().split()) == ["train/00000", "train/00001", "train/00001", "train/00002", "val/00000"]
    import ray

    ray.shutdown()
    assert contents(seeds_of("quiet")) == contents(shaken)


def test_fused_maps_come_from_studies_and_from_files(seeds_of, storage):
    kept = seeds_of("cams", study="cam", keep="full")
    both = seeds_of("both", fuse=("cam",)).read("train", np.arange(3), ["maps"]).to_pylist()
    from_file = seeds_of("filed", fuse=(kept.place.uri,)).read("train", np.arange(3), ["maps"]).to_pylist()
    for one, other in zip(both, from_file, strict=True):
        a, b = (np.frombuffer(row["maps"], np.float16).astype(float) for row in (one, other))
        assert np.abs(a - b).max() < 2e-3  # files hold float16
    with pytest.raises(DataError, match="no finished study 'nobody'"):
        seeds_of("no", fuse=("nobody",))


def test_fused_files_must_be_of_the_same_images_and_kept_whole(seeds_of):
    narrow = seeds_of("narrow", study="cam")
    with pytest.raises(DataError, match="kept no maps of the image's size: make them with --keep full"):
        seeds_of("fused", fuse=(narrow.place.uri,))
    kept = make_seeds.Kept(seeds_of("cams", study="cam", keep="full").place.uri)
    with pytest.raises(DataError, match="has no maps of image 'other/1'"):
        kept.maps("other/1", torch.tensor([0]))
    name = next(iter(kept.places))
    with pytest.raises(DataError, match=r"has classes \[7\] but .* has \["):
        kept.maps(name, torch.tensor([7]))


def test_a_name_belongs_to_one_question(seeds_of):
    seeds_of("mine")
    with pytest.raises(UsageError, match=r"holds an answer to another question \(options differ\)"):
        seeds_of("mine", mirror=False)


def test_a_shard_that_was_altered_is_refused(seeds_of):
    found = seeds_of()
    data = bytearray(found.place.read("train/00000.parquet"))
    data[40] ^= 1
    found.place.write("train/00000.parquet", bytes(data))
    with pytest.raises(DataError, match="SHA-256 differs"):
        found.read("train", np.arange(36), ["maps", "seed", "id", "classes"])


def test_options_say_what_is_wrong():
    with pytest.raises(UsageError, match="Unknown threshold 'vla'. Did you mean 'val'"):
        SeedOptions(threshold="vla")
    with pytest.raises(UsageError, match="threshold must be in 0..1"):
        SeedOptions(threshold="1.5")
    with pytest.raises(UsageError, match="fuse_weights needs one for each method"):
        SeedOptions(fuse=("cam",), fuse_weights=(1.0,))
    with pytest.raises(UsageError, match="background_at and foreground_at"):
        SeedOptions(background_at=0.5)


def test_masks_of_nothing_are_refused(several):
    with pytest.raises(DataError, match="Each seed of 36 images is background everywhere"):
        make_seeds.require_objects({"all_background": 36}, 36, "seed")
    make_seeds.require_objects({"all_background": 35}, 36, "seed")
