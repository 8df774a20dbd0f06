"""The VOC importer on a small faithful copy of its layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsol_pipeline.data.importers import voc
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role

XML = """<annotation><filename>{}.jpg</filename>
<size><width>40</width><height>30</height><depth>3</depth></size><segmented>1</segmented>{}</annotation>"""
OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""
CAT, DOG, HARD_CAT = ("cat", 0, 1, 1, 20, 30), ("dog", 0, 5.5, 6, 40, 8), ("cat", 1, 3, 3, 9, 9)
OBJECTS = {
    "2007_000001": [CAT],
    "2007_000002": [DOG],
    "2007_000003": [CAT, DOG],
    "2007_000004": [DOG, HARD_CAT],
    "2007_000005": [DOG, HARD_CAT],
    "2007_000006": [CAT, CAT],
}
LISTS = {
    "Main/train": ["2007_000001", "2007_000002", "2007_000004"],
    "Main/val": ["2007_000003", "2007_000005"],
    "Main/test": ["2007_000006"],
    "Segmentation/val": ["2007_000003"],
}


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def annotate(root: Path, name: str, objects: list) -> None:
    put(root / f"Annotations/{name}.xml", XML.format(name, "".join(OBJECT.format(*thing) for thing in objects)))


def draw(root: Path, name: str, labels_HW: np.ndarray) -> None:
    """A mask with VOC's kind of palette: the colours are not the labels."""
    image = Image.fromarray(labels_HW)
    image.putpalette([(37 * value) % 256 for value in range(768)])
    path = put(root / f"SegmentationClass/{name}.png", b"")
    image.save(path)


@pytest.fixture
def devkit(tmp_path, jpeg):
    """Cats and dogs in VOC2007's folders; image 3 has a mask of both, with a void rim."""
    root = tmp_path / "VOCdevkit/VOC2007"
    for number, (name, objects) in enumerate(OBJECTS.items()):
        put(root / f"JPEGImages/{name}.jpg", jpeg(number))
        annotate(root, name, objects)
    for name, members in LISTS.items():
        put(root / f"ImageSets/{name}.txt", "\n".join(members) + "\n")
    for label in ("cat", "dog"):
        lines = (f"{name} {1 if label in str(OBJECTS[name]) else -1:2}" for name in LISTS["Main/train"])
        put(root / f"ImageSets/Main/{label}_train.txt", "\n".join(lines) + "\n")
    labels_HW = np.zeros((30, 40), np.uint8)
    labels_HW[:10], labels_HW[10:15], labels_HW[15] = 1, 2, 255
    draw(root, "2007_000003", labels_HW)
    return root


def by_id(source):
    return {row.id: row for row in source.rows}


def one_class_each(root):
    """No image of the copy has two classes any more."""
    for name in ("2007_000003", "2007_000004", "2007_000005"):
        annotate(root, name, [CAT])


def masks(dataset):
    """The masks of the validation rows as evaluation reads them, by id."""
    rows = eval_rows(dataset.val, ReadConfig(image_size=30, resize_size=30, mode="streaming"), "short_side", 8)
    return {name: mask for batch in rows.batches() for name, mask in zip(batch.ids, batch.masks, strict=True)}


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_rows(devkit, above):
    """From the dataset's own folder, the devkit, or what holds the devkit."""
    source = voc.read((devkit / above).resolve(), voc.Options())
    rows = by_id(source)
    assert source.classes == ("cat", "dog")
    assert source.box_convention == "inclusive1"
    assert source.multilabel
    assert {name: row.role for name, row in rows.items()} == {
        name: role for role in Role for name in LISTS[f"Main/{role.value}"]
    }
    both = rows["2007_000003"]
    assert both.labels == (0, 1)
    assert both.boxes == ((1, 1, 20, 30), (5.5, 6, 40, 8))  # unchanged, parts left alone
    assert both.box_labels == (0, 1)
    assert both.size == (40, 30)


def test_difficult_objects_are_labels_to_learn_but_not_scored(devkit):
    rows = by_id(voc.read(devkit, voc.Options()))
    assert rows["2007_000004"].labels == (0, 1)  # training
    assert rows["2007_000005"].labels == (1,)  # validation
    assert rows["2007_000005"].box_labels == (1,)


def test_images_without_an_object_to_score_are_counted(devkit, write):
    annotate(devkit, "2007_000005", [HARD_CAT])
    source = voc.read(devkit, voc.Options())
    assert "2007_000005" not in by_id(source)
    assert write(devkit / "out", source).manifest.left_out == {"images without an object to score": 1}


def test_multilabel_masks_keep_classes_and_void(devkit, write):
    dataset = write(devkit / "out", voc.read(devkit, voc.Options()))
    assert dataset.multilabel
    found = masks(dataset)
    assert (found["2007_000005"] == 255).all()  # it has none
    assert [found["2007_000003"][row, 0] for row in (0, 9, 10, 14, 15, 16)] == [1, 1, 2, 2, 255, 0]


def test_single_label_masks_are_of_the_class_of_the_image(devkit, write):
    one_class_each(devkit)
    annotate(devkit, "2007_000003", [DOG])
    dataset = write(devkit / "out", voc.read(devkit, voc.Options()))
    assert not dataset.multilabel
    found = masks(dataset)
    assert (found["2007_000005"] == 255).all()
    assert [found["2007_000003"][row, 0] for row in (0, 9, 10, 14, 15, 16)] == [0, 0, 1, 1, 255, 0]


def test_without_a_public_test_set_validation_is_held_out(devkit):
    """VOC2012: Main/val is the test split; half of one cat and two dogs, rounded, is one dog."""
    (devkit / "ImageSets/Main/test.txt").unlink()
    rows = by_id(voc.read(devkit, voc.Options(val_share=0.5)))
    roles = {role: {name for name, row in rows.items() if row.role is role} for role in Role}
    assert roles[Role.TEST] == set(LISTS["Main/val"])
    assert roles[Role.TRAIN] | roles[Role.VAL] == set(LISTS["Main/train"])
    assert len(roles[Role.VAL]) == 1
    assert roles[Role.VAL] <= {"2007_000002", "2007_000004"}
    assert all(rows[name].boxes for name in roles[Role.VAL])


def test_lists_by_name_in_the_form_of_sbd_and_of_one_class(devkit):
    lines = "/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png\n/JPEGImages/2007_000002.jpg x.png\n"
    put(devkit / "ImageSets/Segmentation/train_aug.txt", lines)
    put(devkit / "ImageSets/Main/cat_val.txt", "2007_000003  1\n2007_000004 -1\n2007_000005  0\n")
    options = voc.Options(train="Segmentation/train_aug", val="Main/cat_val")
    assert list(by_id(voc.read(devkit, options))) == ["2007_000001", "2007_000002", "2007_000003", "2007_000006"]


def test_class_names_come_from_a_file_the_lists_or_voc(devkit):
    put(devkit / "names.txt", "dog\ncat\n")
    source = voc.read(devkit, voc.Options(class_names="names.txt"))
    assert source.classes == ("dog", "cat")
    assert by_id(source)["2007_000001"].labels == (1,)
    for path in (devkit / "ImageSets/Main").glob("*_train.txt"):
        path.unlink()
    source = voc.read(devkit, voc.Options())
    assert len(source.classes) == 20
    assert list(source.classes) == sorted(source.classes)  # the order of the masks' values
    assert by_id(source)["2007_000001"].labels == (7,)


def test_a_missing_list_names_those_that_there_are(devkit):
    with pytest.raises(UsageError, match="Unknown image list 'Segmentation/vla'. Did you mean 'Segmentation/val'"):
        voc.read(devkit, voc.Options(val="Segmentation/vla"))


def test_lists_that_overlap_are_refused(devkit, write):
    with pytest.raises(DataError, match="1 ids come more than once: 2007_000003"):
        write(devkit / "out", voc.read(devkit, voc.Options(test="Segmentation/val", val="Main/val")))


def test_several_years_are_refused(devkit):
    for folder in ("ImageSets", "JPEGImages"):
        (devkit.parent / "VOC2012" / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"VOC2007, .*VOC2012 as --source"):
        voc.read(devkit.parent, voc.Options())


def test_ids_cannot_lead_out_of_the_source(devkit):
    put(devkit / "ImageSets/Main/val.txt", "../../../../secret\n..\n" + "long" * 99)
    assert all(row.fault for row in voc.read(devkit, voc.Options()).rows if row.role is Role.VAL)


def test_own_images_of_other_endings_are_found_by_their_stem(devkit, told):
    root = devkit / "JPEGImages"
    (root / "2007_000001.jpg").rename(root / "2007_000001.JPG")
    Image.open(root / "2007_000003.jpg").save(root / "2007_000003.png")
    (root / "2007_000003.jpg").unlink()
    (root / "2007_000006.jpg").rename(root / "2007_000006.jpeg")
    rows = by_id(voc.read(devkit, voc.Options()))
    assert told(voc.read(devkit, voc.Options())) == ""
    assert [rows[f"2007_00000{n}"].image.suffix for n in (1, 3, 6)] == [".JPG", ".png", ".jpeg"]
    shutil.copy(root / "2007_000003.png", root / "2007_000003.webp")
    assert "which one is image '2007_000003'?" in told(voc.read(devkit, voc.Options()))


def test_ids_may_have_blanks_and_look_like_flags(devkit, told):
    """Image "a cat 1" is not image "a cat" with a flag, which there is not."""
    names = {"2007_000001": "a cat 1", "2007_000003": "IMG 0 (1)", "2007_000005": "b  2"}
    for path in [*devkit.rglob("2007_00000[135].*")]:
        path.rename(path.with_stem(names[path.stem]))
    put(devkit / "ImageSets/Main/train.txt", "a cat 1\n2007_000002\n2007_000004.jpg\n")
    put(devkit / "ImageSets/Main/val.txt", "IMG 0 (1)\nb  2 1\n")
    source = voc.read(devkit, voc.Options())
    assert set(by_id(source)) == {*names.values(), "2007_000002", "2007_000004", "2007_000006"}
    assert told(source) == ""


def test_an_id_of_a_list_that_is_no_image_is_told_whole(devkit, told):
    put(devkit / "ImageSets/Main/val.txt", "2007_000003\nno such image\n")
    assert "no such image: annotation" in told(voc.read(devkit, voc.Options()))


@pytest.mark.parametrize(
    "size",
    [
        "<size><width>0</width><height>0</height></size>",
        "<size><width>40.0</width><height>30.00</height></size>",
        "",
    ],
    ids=["zeros", "floats", "none"],
)
def test_sizes_as_other_tools_write_them(devkit, told, size):
    path = devkit / "Annotations/2007_000003.xml"
    text = path.read_text()
    start, end = text.index("<size>"), text.index("</size>") + len("</size>")
    path.write_text(text[:start] + size + text[end:])
    source = voc.read(devkit, voc.Options())
    assert told(source) == ""
    assert by_id(source)["2007_000003"].size == ((40, 30) if "40" in size else None)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<width>40</width>", "<width>40.5</width>", "size 40.5x30.0 is not of whole pixels"),
        ("<width>40</width>", "<width>wide</width>", "size has 'wide' as width, which must be a number"),
        ("<width>40</width>", "", "size has no width, which must be a number"),
        ("<xmax>20</xmax>", "<xmax>20,5</xmax>", "the bndbox of object 1 has '20,5' as xmax, which must be a number"),
        ("<xmax>20</xmax>", "", "the bndbox of object 1 has no xmax, which must be a number"),
        ("bndbox>", "box>", "object 1, a 'cat', has no bndbox"),
        ("<name>cat</name>", "<name> </name>", "object 1 has no name"),
    ],
)
def test_an_annotation_that_is_wrong_names_file_place_and_rule(devkit, told, old, new, reason):
    path = devkit / "Annotations/2007_000001.xml"
    path.write_text(path.read_text().replace(old, new))
    assert f"2007_000001: annotation {path}: {reason}" in told(voc.read(devkit, voc.Options()))


def test_a_rows_own_fault_is_told_before_what_comes_of_it(devkit, write):
    """Of both classes no annotation can be read, so neither has an image: the first line is of an annotation."""
    for path in (devkit / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<width>40<", "<width>forty<"))
    with pytest.raises(
        DataError, match=r"6 images have no sound annotation: .*has 'forty' as width.* And 7 more faults"
    ):
        write(devkit / "out", voc.read(devkit, voc.Options()))


def test_corners_of_other_tools_count_from_0(devkit, told):
    annotate(devkit, "2007_000003", [("cat", 0, 0, 0, 39, 29)])
    assert "whose first pixel is 1 (inclusive1): see --convention" in told(voc.read(devkit, voc.Options()))
    source = voc.read(devkit, voc.Options(convention="inclusive0"))
    assert source.box_convention == "inclusive0"
    assert told(source) == ""


def test_a_few_bad_images_of_your_own_are_let_pass_but_none_of_voc(devkit):
    assert not voc.read(devkit, voc.Options()).benchmark
    for path in (devkit / "ImageSets/Main").glob("*_train.txt"):
        path.unlink()
    assert voc.read(devkit, voc.Options()).benchmark


def break_annotation(text):
    return lambda root: put(root / "Annotations/2007_000003.xml", text)


def break_mask(labels_HW):
    return lambda root: draw(root, "2007_000003", labels_HW)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (
            lambda root: (root / "Annotations/2007_000003.xml").unlink(),
            "2007_000003.xml: file cannot be read: No such file",
        ),
        (lambda root: (root / "JPEGImages/2007_000003.jpg").unlink(), "file cannot be read"),
        (break_annotation("<annotation>"), "2007_000003.xml cannot be read"),
        (break_annotation('<!DOCTYPE x [<!ENTITY a "a">]><annotation>&a;</annotation>'), "EntitiesForbidden"),
        (lambda root: annotate(root, "2007_000003", [("cta", 0, 1, 1, 2, 2)]), "'cta'; known classes: cat, dog"),
        (lambda root: annotate(root, "2007_000003", [("cat", 0, 1, 1, 41, 30)]), "not on the image of 40x30"),
        (lambda root: annotate(root, "2007_000003", [("cat", 0, 9, 1, 2, 2)]), "reversed"),
        (lambda root: annotate(root, "2007_000003", [("cat", 0, 1, 1, "nan", 2)]), "not finite"),
        (break_mask(np.full((30, 40), 3, np.uint8)), "mask has the value 3; known: 0 background, 1..2 classes"),
        (break_mask(np.ones((40, 30), np.uint8)), "image is 40x30 but its mask is 30x40"),
        (lambda root: put(root / "SegmentationClass/2007_000003.png", "no image"), "not a readable JPEG or PNG"),
        (
            lambda root: Image.new("RGB", (40, 30)).save(root / "SegmentationClass/2007_000003.png"),
            "mask has mode 'RGB'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_broken_is_quarantined_with_its_reason(devkit, write, harm, reason):
    harm(devkit)
    with pytest.raises(DataError, match=reason) as error:
        write(devkit / "out", voc.read(devkit, voc.Options()))
    assert "1 of 6 rows are bad" in str(error.value)
    assert "The first is '2007_000003'" in str(error.value)


@pytest.mark.parametrize("share", [0.0, 1.0, -1])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(UsageError, match="--val-share must lie between 0 and 1"):
        voc.Options(val_share=share)


def matlab(path: Path, labels_HW: np.ndarray) -> Path:
    """A class mask as SBD has it."""
    put(path, b"")
    savemat(
        path, {"GTcls": {"Segmentation": labels_HW, "CategoriesPresent": np.unique(labels_HW)}}, do_compression=True
    )
    return path


@pytest.fixture
def sbd(devkit, jpeg):
    """SBD beside VOC's 20 classes: image 3 of VOC's val, image 1 of its train, and two more, 8 without VOC's JPEG."""
    for path in (devkit / "ImageSets/Main").glob("*_train.txt"):
        path.unlink()
    folder = devkit / "benchmark_RELEASE/dataset"
    put(folder / "train.txt", "2007_000001\n2007_000007\n")
    put(folder / "val.txt", "2007_000003\n2007_000008\n")
    labels_HW = np.zeros((30, 40), np.uint8)
    labels_HW[:9], labels_HW[9:12], labels_HW[12] = 8, 12, 255  # cat, dog, neither
    for number in (1, 3, 7, 8):
        matlab(folder / f"cls/2007_00000{number}.mat", labels_HW if number != 8 else np.uint8(15) * (labels_HW > 0))
    put(devkit / "JPEGImages/2007_000007.jpg", jpeg(77))
    annotate(devkit, "2007_000007", [CAT, HARD_CAT])
    put(folder / "img/2007_000008.jpg", jpeg(88))
    return folder


@pytest.mark.parametrize("given", ["benchmark_RELEASE", "benchmark_RELEASE/dataset", "benchmark.tar"])
def test_sbd_adds_training_images_that_no_split_has(devkit, sbd, given, write):
    if given.endswith("tar"):
        shutil.make_archive(str(devkit / "benchmark"), "tar", devkit, "benchmark_RELEASE")
    source = voc.read(devkit, voc.Options(sbd=given))
    rows = by_id(source)
    assert len(list(source.rows)) == 8
    assert rows["2007_000001"].labels == (7,)  # VOC's own
    assert rows["2007_000003"].role is Role.VAL
    assert (rows["2007_000007"].role, rows["2007_000007"].labels) == (Role.TRAIN, (7, 11))
    assert rows["2007_000008"].labels == (14,)
    assert rows["2007_000008"].image.name == "2007_000008.jpg"
    assert rows["2007_000008"].image.parent.name == "img"


def test_sbd_images_that_are_held_out_have_the_boxes_of_voc_and_the_mask_of_sbd(devkit, sbd):
    """Images 7 and 9 are alike, and one of these two cats is drawn; image 8 has no boxes."""
    (devkit / "ImageSets/Main/test.txt").unlink()
    put(devkit / "ImageSets/Main/train.txt", "2007_000004\n")
    put(sbd / "val.txt", "")
    put(sbd / "train.txt", "2007_000007\n2007_000008\n2007_000009\n")
    for path in [*devkit.rglob("2007_000007.*")]:
        shutil.copy(path, path.with_stem("2007_000009"))
    rows = by_id(voc.read(devkit, voc.Options(sbd="benchmark_RELEASE", val_share=0.5)))
    (row,) = (row for row in rows.values() if row.role is Role.VAL)
    assert row.id in ("2007_000007", "2007_000009")
    assert (row.labels, row.boxes) == ((7,), ((1, 1, 20, 30),))  # the difficult cat is not scored, the dog has no box
    assert np.unique(row.class_mask.draw()).tolist() == [0, 8, 12, 255]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file" * 9), "is not of SBD"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "is not of SBD"),
        (lambda path: savemat(path, {"GTinst": 1}), "is not of SBD: KeyError"),
        (lambda path: savemat(path, {"GTcls": {"Segmentation": 1.5}}), "uint8 of two dimensions"),
        (lambda path: matlab(path, np.full((30, 40), 21, np.uint8)), "value 21; known: 1..20"),
        (lambda path: matlab(path, np.ones((40, 30), np.uint8)), "image is 40x30 but its annotation is for 30x40"),
    ],
)
def test_sbd_masks_that_are_broken_are_quarantined(devkit, sbd, told, harm, reason):
    harm(sbd / "cls/2007_000007.mat")
    (line,) = (line for line in told(voc.read(devkit, voc.Options(sbd=str(sbd)))).splitlines() if "2007" in line)
    assert line.startswith("2007_000007: ")
    assert reason in line


def test_sbd_is_of_the_classes_of_voc(devkit):
    with pytest.raises(UsageError, match="SBD has the 20 classes of VOC, but this dataset has cat, dog"):
        voc.read(devkit, voc.Options(sbd="benchmark_RELEASE"))


def test_what_is_not_sbd(devkit, sbd):
    with pytest.raises(DataError, match=r"JPEGImages is not SBD as it comes: there is no dataset/cls"):
        voc.read(devkit, voc.Options(sbd="JPEGImages"))
