"""Masks of training images: apart from the dataset, opened for sealed stations alone."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rayjobs import evaluate
from wsol_pipeline.data.audit import AUDIT, open_audit, write_audit
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.errors import DataError, ProtocolError, ResourceError
from wsol_pipeline.evaluation.baseline import centred_map
from wsol_pipeline.protocol import Role, require_searchable
from wsol_pipeline.segmentation import audit, make_seeds, masks, pictures, refine, scores, segment
from wsol_pipeline.segmentation.make_seeds import read_images
from wsol_pipeline.segmentation.options import RefineOptions, SeedOptions, SegmentOptions
from wsol_pipeline.segmentation.station import Part
from wsol_pipeline.storage import Store
from wsol_pipeline.verdict import placing
from wsol_pipeline.verdict.options import EvaluateOptions

OPTIONS = synthetic.Options(train=36, val=12, test=12, classes=3, objects=3, size=40)


def asked(storage, *names):
    return EvaluateOptions(storage=storage.uri, segmentation=names)


def placed_here(monkeypatch, module) -> list[str]:
    """The stations that `module` asks to look at wherever there is a GPU; it is here."""
    found: list[str] = []

    def here(work, options, station, progress):
        found.append(station.place.uri.rpartition("/")[2])
        return work(options, station, progress)

    monkeypatch.setattr(module, "somewhere", here)
    return found


@pytest.fixture
def audited(several):
    """The dataset of the studies, with its audit for the length of a test."""
    source = synthetic.read(Path(), OPTIONS)
    store = Store.at(several.uri)
    assert write_audit(source.rows, source.rules, store, several.fingerprint) == (36, 0)
    yield several
    for name in store.list(AUDIT):
        store.remove(name)


def test_a_dataset_is_the_same_with_and_without(audited, tmp_path):
    import_dataset(synthetic.read(Path(), OPTIONS), Store.at(tmp_path), name="several", origin={})
    assert open_dataset(str(tmp_path)).fingerprint == audited.fingerprint
    assert open_dataset(audited.uri).fingerprint == audited.fingerprint
    assert "mask" not in audited.train.shard_set().read(np.arange(1), ["id", "image", "labels"]).schema.names


def test_masks_are_those_of_the_drawn_bodies(audited):
    rows = {row.id: row for row in synthetic.read(Path(), OPTIONS).rows if row.role is Role.TRAIN}
    found = {name: masks.decode(mask) for name, mask, _ in open_audit(audited).masks()}
    assert set(found) == set(rows) == set(audited.train.ids)
    assert all(set(np.unique(found[name])) <= {0, *(label + 1 for label in rows[name].labels)} for name in found)


def test_a_bad_box_of_a_training_image_costs_no_mask(several, tmp_path):
    source = synthetic.read(Path(), OPTIONS)
    first, *others = (row for row in source.rows if row.role is Role.TRAIN)
    place = Store.at(tmp_path)
    bad = replace(first, boxes=tuple((0.0, 0.0, 400.0, 400.0) for _ in first.boxes))
    assert write_audit([bad, *others], source.rules, place, several.fingerprint) == (36, 0)
    kept = open_audit(replace(several, uri=str(tmp_path)))
    assert {name for name, *_ in kept.masks()} - {name for name, *_ in kept.boxes()} == {first.id}


def test_no_search_is_handed_them(audited):
    with pytest.raises(ProtocolError, match="needs the 'val' split but was handed 'audit'"):
        require_searchable(open_audit(audited), "A search")


def test_without_them_or_of_other_data_it_is_said(several, audited):
    told = json.loads(Store.at(several.uri).read("audit/manifest.json"))
    Store.at(several.uri).write("audit/manifest.json", json.dumps(told | {"dataset": "another"}).encode())
    with pytest.raises(DataError, match="training images is of other data: import it again"):
        open_audit(several)
    Store.at(several.uri).remove("audit/manifest.json")
    with pytest.raises(DataError, match="has no masks or boxes of training images: import it"):
        open_audit(several)


def test_seeds_and_masks_are_judged_once_they_are_sealed(audited, storage, monkeypatch):
    with pytest.raises(ProtocolError, match="'bas-seeds' is not finished"):
        audit.judge_masks(asked(storage), "bas-seeds")
    make_seeds.make_seeds(SeedOptions(storage=storage.uri, scales=(1.0,), threshold="0.3", field="none"), "cpu")
    refine.refine(RefineOptions(storage=storage.uri, seeds="bas-seeds", by=("pamr",)), "cpu")
    truths = {name: masks.decode(mask) for name, mask, _ in open_audit(audited).masks()}
    with pytest.raises(ResourceError, match="^--device cuda needs a GPU but this machine has none"):
        audit.judge(replace(asked(storage), device="cuda"), "bas-seeds")
    looked_at = placed_here(monkeypatch, audit)
    for name, column in (("bas-seeds", "seed"), ("bas-pamr", "pseudo_mask")):
        found = audit.judge(asked(storage), name)
        assert (found.images, found.rows) == (36, "training images")
        assert found.figures["miou"] <= found.figures["oracle"] + 1e-9
        table = audit.station.finished(storage.store, name).read("train", np.arange(36), ["id", column]).to_pylist()
        matrix = sum(scores.confusion(truths[row["id"]], masks.decode(row[column]), 3) for row in table)
        assert found.figures["miou"] == pytest.approx(100 * scores.mean_iou(scores.class_iou(matrix)))
        assert audit.judge(replace(asked(storage), device="cuda"), name) == found  # kept: nothing has to be placed
    assert looked_at == ["bas-seeds", "bas-pamr"]


def test_images_of_one_class_have_the_mask_of_its_object(tmp_path, storage):
    """As in VOC's layout with a class an image, or CUB: what the mask marks is of the image's class."""
    source = synthetic.read(Path(), OPTIONS)
    rows = [row for row in source.rows if len(row.labels) == 1]
    single = replace(source, rows=rows, multilabel=False)
    place = Store.at(tmp_path / "single")
    import_dataset(single, place, name="single", origin={})
    dataset = open_dataset(place.uri)
    write_audit(single.rows, single.rules, place, dataset.fingerprint)
    drawn = {row.id: np.array(Image.open(io.BytesIO(row.masks[0]))) for row in rows}
    part = make_seeds.Part("val", 0, 0, dataset.val.num_rows)
    for image in make_seeds.read_images(dataset.val, part):
        assert np.array_equal(image.mask_HW, drawn[image.id])
        assert set(np.unique(image.mask_HW)) == {0, image.labels[0] + 1}

    winner = json.loads(storage.store.read("bas/winner.json")) | {"data": dataset.uri}
    (storage.store / "single").write("winner.json", json.dumps(winner).encode())
    told = SeedOptions(storage=storage.uri, study="single", scales=(1.0,), field="none")
    found = make_seeds.make_seeds(told, "cpu")
    train = found.read("train", np.arange(dataset.train.num_rows), ["id", "seed"]).to_pylist()
    matrix = sum(scores.confusion(drawn[row["id"]], masks.decode(row["seed"]), 3) for row in train)
    judged = audit.judge(asked(storage), "single-seeds").figures
    assert judged["miou"] == pytest.approx(100 * scores.mean_iou(scores.class_iou(matrix)))


def test_the_centred_box_is_cut_where_validation_says(audited, storage):
    """Beside each station's figures: what known labels and no look at the image would give."""
    found = make_seeds.make_seeds(SeedOptions(storage=storage.uri, scales=(1.0,), field="none"), "cpu")
    val, truths = found.manifest["val"], {name: masks.decode(mask) for name, mask, _ in open_audit(audited).masks()}
    inside_HW = centred_map((40, 40)).astype(np.float32) > np.float32(val["centred_threshold"])
    rows = audited.train.shard_set().read(np.arange(36), ["id", "labels"]).to_pylist()
    boxes = {row["id"]: np.where(inside_HW, min(row["labels"]) + 1, 0).astype(np.uint8) for row in rows}
    matrix = sum(scores.confusion(truths[name], boxes[name], 3) for name in truths)
    judged = audit.judge(asked(storage), "bas-seeds").figures
    assert judged["centred"] == pytest.approx(100 * scores.mean_iou(scores.class_iou(matrix)))
    assert judged["centred"] <= judged["centred_oracle"] + 1e-9
    assert 0 < val["centred"] < 100


def test_the_same_images_are_drawn_through_every_station(audited, storage):
    make_seeds.make_seeds(SeedOptions(storage=storage.uri, scales=(1.0,), threshold="0.3", field="none"), "cpu")
    last = refine.refine(RefineOptions(storage=storage.uri, seeds="bas-seeds", by=("pamr",)), "cpu")
    assert audit.has_truth(storage.store, ["bas-seeds", "bas-pamr"])
    place = pictures.draw_stations(asked(storage, "bas-seeds", "bas-pamr"))
    assert place == last.place.path(pictures.STATIONS)
    sheet = np.asarray(Image.open(place))
    step = pictures.HEIGHT + pictures.GAP
    assert sheet.shape == (4 * step, pictures.NAMES + pictures.IMAGES * step, 3)  # image, true mask, both stations
    (first,) = read_images(audited.train, Part("train", 0, 0, 1))
    true_HW = masks.decode(next(mask for name, mask, _ in open_audit(audited).masks() if name == first.id))
    red_HW = true_HW == 1  # of the first class: the palette's (128, 0, 0), of which six tenths lie over the image
    expected = (0.4 * first.pixels_HW3[red_HW] + 0.6 * np.array([128, 0, 0])).mean(0)
    tile = sheet[step : step + pictures.HEIGHT, pictures.NAMES : pictures.NAMES + pictures.HEIGHT]
    shown_HW = np.asarray(Image.fromarray(red_HW).resize((pictures.HEIGHT, pictures.HEIGHT), Image.Resampling.NEAREST))
    assert np.abs(tile[shown_HW].mean(0) - expected).max() < 8  # the tile is enlarged smoothly
    Store.at(audited.uri).remove("audit/manifest.json")
    assert not audit.has_truth(storage.store, ["bas-seeds", "bas-pamr"])


@pytest.mark.slow
def test_on_a_cluster_with_a_gpu_stations_are_judged_and_drawn_there_as_here(
    audited, storage, capsys, monkeypatch, request
):
    """Seeds, masks and a network, whose storage is told as a path of the command's own folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    make_seeds.make_seeds(SeedOptions(storage=storage.uri, scales=(1.0,), threshold="0.3", field="none"), "cpu")
    refine.refine(RefineOptions(storage=storage.uri, seeds="bas-seeds", by=("pamr",)), "cpu")
    network = SegmentOptions(storage=storage.uri, masks="bas-pamr", network="lraspp_mobilenet_v3_large", epochs=1,
                             batch_size=12, crop=48, freeze_batch_norm=True)  # fmt: skip
    segment.train_network(network, "cpu")
    request.getfixturevalue("pretended_gpu")
    monkeypatch.chdir(storage.uri)
    names = ["bas-seeds", "bas-pamr", network.result]
    told, placed, remote = [], [], placing.ray.remote
    monkeypatch.setattr(placing.ray, "remote", lambda work: placed.append(work) or remote(work))
    for device in ("auto", "cpu"):
        for name in names:
            storage.store.remove(f"{name}/{segment.EVALUATION}")
        storage.store.remove(f"{names[-1]}/{pictures.STATIONS}")
        assert evaluate.main(["--segmentation", *names, "--storage", ".", "--device", device]) == 0
        kept = [json.loads(storage.store.read(f"{name}/{segment.EVALUATION}")) for name in names]
        told.append([(found["images"], found["figures"]["miou"]) for found in kept])
        out = capsys.readouterr().out
        assert f"{network.result} on test (12 images): {told[-1][-1][1]:.1f} % mIoU" in out
        assert f"through all of them: {storage.store.path(names[-1])}/{pictures.STATIONS}" in out
        assert storage.store.exists(f"{names[-1]}/{pictures.STATIONS}")
    assert placed.count(placing._work) == 4  # three looks and the pictures
    assert [images for images, _ in told[0]] == [36, 36, 12]
    there, here = ([miou for _, miou in found] for found in told)
    assert there == pytest.approx(here, abs=0.1)  # by two threads and by one


def test_images_of_test_without_a_mask_are_not_counted(monkeypatch):
    """As where one class of three has masks: 2 of 5 images say something, and the interval is over these."""
    right, blank = np.diag([6, 2, 0]), np.zeros((3, 3), int)
    test = SimpleNamespace(has_masks=True, num_rows=5, fingerprint="f")
    place = SimpleNamespace(uri="runs/n")
    found = SimpleNamespace(uri=lambda name: f"runs/{name}", place=place, manifest={"model": "m"})
    monkeypatch.setattr(segment, "seal_of", lambda final: "m")
    segmenter = SimpleNamespace(network=None, description={"supervision": "labels"})
    monkeypatch.setattr(segment, "load_segmenter", lambda *_: segmenter)
    monkeypatch.setattr(segment, "open_dataset", lambda uri: SimpleNamespace(test=lambda: test, classes=("a", "b")))
    seen = [("0", right), ("1", blank), ("2", blank), ("3", right), ("4", blank)]
    monkeypatch.setattr(segment, "judged", lambda *_: iter(seen))
    judged = segment._on_test(EvaluateOptions(), found, segment.silent)
    assert (judged["images"], judged["figures"]["miou"], judged["interval"]) == (2, 100.0, (100.0, 100.0))
