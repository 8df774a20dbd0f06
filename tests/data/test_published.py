"""An import is the papers' dataset or it is not, by classes, kind of labels and number of images."""

import pytest

from search_spaces import presets
from wsol_pipeline.data.importers import cub, ilsvrc
from wsol_pipeline.data.published import PAPER_DATA, Deviation, data_deviations, is_paper_data
from wsol_pipeline.data.shards import Manifest, SplitInfo
from wsol_pipeline.protocol import Role


def manifest(train, val, test, classes=200, importer="cub", quarantine=0, multilabel=False):
    splits = {
        role: SplitInfo(rows, (), "", (), 0, rows) for role, rows in zip(Role, (train, val, test), strict=True)
    }  # train, val, test
    names = tuple(map(str, range(classes)))
    bad = {"file is missing": quarantine} if quarantine else {}
    return Manifest("mine", names, multilabel, "inclusive0", {"importer": importer}, bad, splits)


def test_every_row_is_of_a_dataset_that_is_known():
    assert {row.dataset for row in presets().values()} <= PAPER_DATA.keys()


def test_numbers_are_those_of_the_doctor(tmp_path):
    assert {role: count.rows for role, count in cub.CUBV2_COUNTS.items()} == {
        Role.TRAIN: PAPER_DATA["cub"].train, Role.VAL: PAPER_DATA["cub"].val, Role.TEST: PAPER_DATA["cub"].test,
    }  # fmt: skip
    options = ilsvrc.Options(imagenetv2="a", imagenetv2_metadata="b")
    counts = ilsvrc.published(tmp_path, 1000, options)
    paper = PAPER_DATA["ilsvrc"]
    assert [counts[role].rows for role in Role] == [paper.train, paper.val, paper.test]


@pytest.mark.parametrize(
    "found",
    [
        manifest(5994, 1000, 5794),  # CUBV2 as validation
        manifest(5395, 599, 5794),  # a tenth of the training images
        manifest(5992, 1000, 5794, quarantine=2),
        manifest(5994, 1000, 5794, importer="wsolevaluation"),
    ],
)
def test_cub_is_cub_however_validation_was_taken(found):
    assert is_paper_data(found, "cub")


@pytest.mark.parametrize(
    "found",
    [
        manifest(5994, 1000, 5793),
        manifest(5994, 1000, 5794, classes=199),
        manifest(5994, 1000, 5794, importer="synthetic"),
        manifest(5994, 1000, 5794, multilabel=True),
        manifest(1500, 150, 200, classes=10, importer="ilsvrc"),
    ],
)
def test_other_data_are_not_cub(found):
    assert not is_paper_data(found, "cub")
    what, published, here = data_deviations(found, "cub")[0]
    assert (what, published) == ("data", "cub")
    assert here.startswith("mine (generated, 12,788" if found.source["importer"] == "synthetic" else "mine (1")


def test_what_differs_is_told_in_numbers():
    assert data_deviations(manifest(5994, 1000, 5794), "cub") == []
    assert data_deviations(manifest(5395, 599, 5794), "cub") == [Deviation("training images", "5,994", "5,395")]
    small = manifest(1500, 150, 200, classes=10, importer="ilsvrc")
    assert data_deviations(small, "ilsvrc") == [
        Deviation("data", "ilsvrc", "mine (1,850 images in all)"),
        Deviation("classes", "1000", "10"),
        Deviation("training images", "1,281,167", "1,500"),
        Deviation("test images", "50,000", "200"),
    ]
    assert Deviation("labels", "several classes an image", "one class an image") in data_deviations(small, "voc12")
