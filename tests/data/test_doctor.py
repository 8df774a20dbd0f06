"""The doctor on a sound source, and on one with each defect."""

from dataclasses import replace

import pytest

from wsol_pipeline.data import doctor
from wsol_pipeline.data.importers import Count
from wsol_pipeline.protocol import Role


@pytest.fixture
def source(make_source):
    return make_source(train=9, val=4, test=3)


def changed(source, number, **fields):
    rows = list(source.rows)
    rows[number] = replace(rows[number], **fields)
    return replace(source, rows=rows)


def examine(*arguments):
    """What is found, without the tally."""
    return doctor.examine(*arguments)[0]


def only(findings):
    (finding,) = findings
    return finding


@pytest.mark.parametrize("threads", [1, 3])
def test_a_sound_source(source, threads):
    seen = []
    assert examine(source, threads, lambda done, total: seen.append((done, total))) == []
    assert seen == [(done, 16) for done in range(1, 17)]


def test_a_missing_file(source, tmp_path):
    finding = only(examine(changed(source, 3, image=tmp_path / "gone.jpg")))
    assert finding.what == "files are missing"
    assert finding.items == ("train-0003: file cannot be read: No such file or directory",)


def test_a_cut_image(source):
    image = list(source.rows)[3].image
    finding = only(examine(changed(source, 3, image=image[:-100])))
    assert finding.what == "images cannot be decoded"
    assert finding.items[0].startswith("train-0003: image cannot be decoded")


def test_a_box_off_the_image(source):
    finding = only(examine(changed(source, 9, boxes=((1.0, 1.0, 99.0, 9.0),), box_labels=(0,))))
    assert finding.what == "images have a wrong box"
    assert finding.items == ("val-0000: box (1.0, 1.0, 99.0, 9.0) is not on the image of 40x30",)


def test_the_same_image_in_two_splits(source):
    rows = list(source.rows)
    findings = examine(changed(source, 9, image=rows[0].image, size=rows[0].size))
    assert only(findings).what == "images are in two splits, byte for byte"
    assert only(findings).items == ("train train-0000 = val val-0000",)
    assert not only(findings).is_note


def test_the_same_image_twice_in_a_split_is_no_leak(source):
    rows = list(source.rows)
    assert examine(changed(source, 1, image=rows[0].image, size=rows[0].size)) == []


def test_an_id_that_comes_twice(source):
    assert only(examine(changed(source, 1, id="val-0000"))).items == ("val-0000",)


def test_what_an_import_would_refuse(source):
    """Without test rows, and with a fourth class."""
    rows = [row for row in source.rows if row.role is not Role.TEST]
    splits, classes = examine(replace(source, rows=rows, classes=(*source.classes, "dog")))
    assert (splits.what, splits.items) == ("splits have no image", ("test",))
    assert (classes.what, classes.items) == ("classes have no training image", ("dog",))


def test_counts_that_were_not_published(source):
    """Nine training images of three classes are whole; val lacks two images, and has 2, 1 and 1 of a class."""
    counts = {Role.TRAIN: Count(9, (3, 3)), Role.VAL: Count(6, (2, 2))}
    whole, classes = examine(replace(source, counts=counts))
    assert whole.items == ("val has 4 images, published are 6",)
    assert classes.what == "classes do not have the published 2 to 2 images"
    assert classes.items == ("bee: 1 in val", "cat: 1 in val")


def test_images_that_no_split_has(source, tmp_path, jpeg, png):
    rows = list(source.rows)
    for name in ("used.jpg", "extra.jpg"):
        (tmp_path / name).write_bytes(jpeg(77))
    (tmp_path / "mask.png").write_bytes(png())
    used = replace(rows[0], image=tmp_path / "used.jpg", size=None)
    masked = replace(rows[9], ignore=tmp_path / "mask.png")
    finding = only(examine(replace(source, rows=[used, *rows[1:9], masked, *rows[10:]])))
    assert finding.items == (str(tmp_path / "extra.jpg"),)
    assert finding.is_note


def test_a_long_finding_is_cut(source, tmp_path):
    for number in range(5):
        source = changed(source, number, image=tmp_path / "gone.jpg")
    lines = only(examine(source)).lines(at_most=3)
    assert lines[0] == "problem: 5 files are missing"
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["train-0000", "train-0001", "train-0002"]
    assert lines[4].strip() == "... and 2 more (--list-all names them)"
    assert lines[5].strip().startswith("-> ")
