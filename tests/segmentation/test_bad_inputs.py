"""What the walk makes of images and stations that are not as they should be. Rows that are of one function alone are
beside its tests: masks of 255 and absent classes in test_scores.py, palettes in test_masks.py, fused label sets in
test_make_seeds.py, weights and batches in test_walk.py, networks, walk and fields in tests/models/segmentation."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsol_models.segmentation import crf
from wsol_pipeline.errors import DataError, MismatchError
from wsol_pipeline.segmentation import audit, fields, lineage, make_seeds, masks, refine, segment, station
from wsol_pipeline.segmentation.crops import CropReader
from wsol_pipeline.segmentation.make_seeds import Image, SeedMaker
from wsol_pipeline.segmentation.options import RefineOptions, SeedOptions, SegmentOptions
from wsol_pipeline.storage import Store
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import finished_study
from wsol_pipeline.verdict.score import silent


@pytest.fixture
def walked(storage):
    """Seeds, and masks that are these seeds."""
    make_seeds.make_seeds(SeedOptions(storage=storage.uri, scales=(1.0,), threshold="0.3", field="none"), "cpu")
    return refine.refine(RefineOptions(storage=storage.uri, seeds="bas-seeds", by=("none",)), "cpu")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (15, 400), (33, 530)])
def test_images_of_odd_sizes_walk_through_all_stations(studies, several, size):
    """The smallest has a cell; beyond IRN's 512 px nothing is cut."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image("odd", pixels, [0, 2])
    options = SeedOptions(scales=(1.0, 0.5), field="none")
    chosen = make_seeds.Chosen(0.3)
    maker = SeedMaker(several.uri, (finished_study(studies, "bas")["model"],), (), options, "cpu", chosen)
    worker = maker()
    maps = worker.maps(image)
    assert maps.full_CHW.shape == (2, *size)
    assert maps.strided_CHW.shape == (2, *((side - 1) // 4 + 1 for side in size))
    labels = worker._labels(image, maps, None)
    assert masks.decode(labels["seed"]).shape == masks.decode(labels["confident"]).shape == size
    assert set(np.unique(masks.decode(labels["seed"]))) <= {0, 1, 3}


def test_one_colour_leaves_the_majority_and_is_finite():
    """A dense field has no edge to hold a minority by."""
    image = np.full((20, 30, 3), 90, np.uint8)
    labels = torch.zeros(20, 30, dtype=torch.uint8)
    labels[8:12, 12:18] = 1
    found = fields.field_of("exact", image, crf.CONFIDENT)(labels, 2)
    assert int(found.sum()) == 0


def test_a_pseudo_mask_of_another_size_than_its_image_is_refused(walked, several):
    plan = several.train.plan(12, 0, drop_last=True)
    task = segment.task_of(SegmentOptions(storage=walked.storage.uri, masks="bas-masks", crop=48, batch_size=12,
                                          network="lraspp_mobilenet_v3_large"), walked)  # fmt: skip
    reader = CropReader(several.train, walked, "pseudo_mask", task.cropping, plan)
    image = several.train.shard_set().read(np.arange(1), ["image"])["image"][0].as_py()
    small = masks.encode(np.zeros((20, 40), np.uint8))
    with pytest.raises(DataError, match=r"Image 'x' is \(40, 40\) but its pseudo mask \(20, 40\)"):
        reader._crop(0, "x", image, small)


def test_seeds_that_were_exchanged_behind_their_masks_are_found(walked, storage):
    """The same name, another seal: whoever reads them has noted which they were."""
    given = SegmentOptions(storage=storage.uri, masks="bas-masks", crop=48, batch_size=12, epochs=1,
                           network="lraspp_mobilenet_v3_large", freeze_batch_norm=True)  # fmt: skip
    task = segment.task_of(given, walked)
    told = SeedOptions(storage=storage.uri, name="others", scales=(1.0,), threshold="0.6", field="none")
    make_seeds.make_seeds(told, "cpu")
    place = storage.store
    shutil.rmtree(place.path("bas-seeds"))
    shutil.move(place.path("others"), place.path("bas-seeds"))
    with pytest.raises(MismatchError, match="bas-seeds holds other seeds than it held"):
        audit._seeds(station.finished(place, "bas-masks"))
    again = RefineOptions(storage=storage.uri, seeds="bas-seeds", by=("none",), name="again")
    refine.refine(again, "cpu")
    shutil.rmtree(place.path("bas-masks"))
    shutil.move(place.path("again"), place.path("bas-masks"))
    with pytest.raises(MismatchError, match="bas-masks holds other pseudo masks than it held"):
        task.learner(torch.device("cpu"))


def test_a_lineage_follows_seals(walked, storage):
    network = station.Station(storage.store / "net", {
        "places": {"masks": "bas-masks"}, "identity": {"sources": [walked.seal]},
    })  # fmt: skip
    assert [found.place.uri for found in lineage.walk_to(network)[:2]] == [
        storage.store.path("bas-seeds"), storage.store.path("bas-masks"),
    ]  # fmt: skip
    network.manifest["identity"]["sources"] = ["another"]
    with pytest.raises(MismatchError, match="bas-masks holds other pseudo masks"):
        lineage.walk_to(network)


def test_a_label_that_no_class_has_is_refused_where_it_is_counted():
    with pytest.raises(DataError, match=r"Labels of a class mask must be in 0..3 or 255 but one is 7"):
        make_seeds.count_centred([0], np.full((4, 4), 7, np.uint8), 3)


def test_masks_of_test_that_count_nowhere_judge_nothing(several, monkeypatch):
    """Each is 255 everywhere: that is no score of 0 %."""
    monkeypatch.setattr(segment, "seal_of", lambda place: "seal")
    monkeypatch.setattr(segment, "load_segmenter", lambda final, device: SimpleNamespace(network=None))
    monkeypatch.setattr(segment, "judged", lambda *args: iter([("x", np.zeros((4, 4), np.int64))]))
    network = SimpleNamespace(uri=lambda name: several.uri, manifest={"model": "seal"}, place=Store.at(several.uri))
    with pytest.raises(DataError, match="No mask in .* test split has a pixel that counts"):
        segment._on_test(EvaluateOptions(), network, silent)
