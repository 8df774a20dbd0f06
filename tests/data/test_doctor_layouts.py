"""The doctor on a small copy of every layout, sound and broken: each defect is told, and none hides another."""

import pytest

LAYOUTS = ["folder", "wsolevaluation", "cub", "tinyimagenet", "ilsvrc", "voc", "coco"]
TRAINED = {  # a training image and a test image of each layout, with their ids
    "folder": ("train/a/0.jpg", "train/a/0.jpg", "test/b/1.jpg", "test/b/1.jpg"),
    "wsolevaluation": ("images/train/0/0.jpg", "train/0/0.jpg", "images/test/1/1.jpg", "test/1/1.jpg"),
    "cub": ("images/001.a/0.jpg", "001.a/0.jpg", "images/002.b/5.jpg", "002.b/5.jpg"),
    "tinyimagenet": (*["train/n01/images/n01_0.JPEG"] * 2, *["val/images/val_1.JPEG"] * 2),
    "ilsvrc": ("Data/CLS-LOC/train/n01/0.JPEG", "train/n01/0.JPEG", "Data/CLS-LOC/val/val_3.JPEG", "val/val_3.JPEG"),
    "voc": ("JPEGImages/2007_000000.jpg", "2007_000000", "JPEGImages/2007_000007.jpg", "2007_000007"),
    "coco": ("train/train0.jpg", "train/train0.jpg", "test/test1.jpg", "test/test1.jpg"),
}
BOXES = {  # file of a test image's box, its text, one off the image, one that is none
    "folder": ("boxes.csv", "test/b/1.jpg,1,2,20,25", "test/b/1.jpg,1,2,99,25", "test/b/1.jpg,1,2,x,25"),
    "wsolevaluation": ("metadata/test/localization.txt", "1.jpg,1,2,20,25", "1.jpg,1,2,99,25", "1.jpg,1,2,x,25"),
    "cub": ("bounding_boxes.txt", "6 1 2 19 23", "6 1 2 99 23", "6 1 2 x 23"),
    "tinyimagenet": ("val/val_annotations.txt", "n02\t1\t2\t20", "n02\t1\t2\t99", "n02\t1\t2\tx"),
    "ilsvrc": ("Annotations/CLS-LOC/val/val_3.xml", "<xmax>20", "<xmax>99", "<xmax>x"),
    "voc": ("Annotations/2007_000007.xml", "<xmax>20", "<xmax>99", "<xmax>x"),
}
BOXES["coco"] = ("annotations/instances_test.json", *(f'4, "bbox": [1, 2, {x}' for x in ("19", "99", '"x"')))
CLASSES = {  # file, its text and a text by which an image is of another class than its folder
    "wsolevaluation": ("metadata/train/class_labels.txt", "0/0.jpg,0", "0/0.jpg,1"),
    "cub": ("classes.txt", "1 001.a\n2 002.b", "1 002.b\n2 001.a"),
}
FAULTS = {  # file and a line that no row has
    "folder": ("boxes.csv", "nothing,1,2,3,4\n", "boxes of 'nothing'"),
    "cub": ("classes.txt", "no number\n", "not a number and 1 more words"),
    "tinyimagenet": ("train/n01/n01_boxes.txt", "n01_9.JPEG 1 2\n", "a line of 3 words where 5 belong"),
    "ilsvrc": ("splits/val.txt", "val_3\n", "list 'val_3' twice"),
}


def exchange(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.fixture(params=LAYOUTS)
def copy(request, layouts, tmp_path):
    """Name, folder and reader of a layout's copy."""
    return request.param, tmp_path, layouts(request.param, tmp_path)


def unlike(told, read, sound):
    """The lines that a sound copy does not have: those of small copies have other counts than the published ones."""
    return [line for line in told(read()).splitlines() if line not in sound]


@pytest.fixture
def sound(copy, told):
    _, _, read = copy
    return told(read()).splitlines()


def test_a_sound_copy_has_the_counts_of_a_small_one_at_most(copy, sound):
    published = {"cub", "tinyimagenet"}
    assert bool(sound) == (copy[0] in published)
    assert all(" images, published are " in line or " in t" in line or " in val" in line for line in sound)


def test_missing_and_broken_and_shared_images_at_once(copy, sound, told, jpeg):
    name, root, read = copy
    train, train_id, test, test_id = TRAINED[name]
    (root / train).write_bytes(jpeg(999)[:-100])
    (root / test).unlink()
    lines = unlike(told, read, sound)
    assert any(line.startswith(f"{train_id}: image cannot be decoded") for line in lines)
    if name == "folder":  # its files are its lists
        assert any(f"boxes of {test_id!r}, which is not an image" in line for line in lines)
    else:
        assert f"{test_id}: file cannot be read: No such file or directory" in lines


def test_the_same_image_in_two_splits(copy, sound, told):
    name, root, read = copy
    train, train_id, test, test_id = TRAINED[name]
    (root / test).write_bytes((root / train).read_bytes())
    assert f"train {train_id} = test {test_id}" in unlike(told, read, sound)


def test_a_box_off_the_image(copy, sound, told):
    name, root, read = copy
    file, old, new, _ = BOXES[name]
    exchange(root / file, old, new)
    (line,) = unlike(told, read, sound)
    assert line.startswith(f"{TRAINED[name][3]}: box (1.0, 2.0, ")
    assert line.endswith("is not on the image of 40x30")


def test_a_box_that_is_none_hides_no_missing_image(copy, sound, told):
    name, root, read = copy
    file, old, _, new = BOXES[name]
    exchange(root / file, old, new)
    train, train_id, _, test_id = TRAINED[name]
    (root / train).write_bytes(b"")
    lines = unlike(told, read, sound)
    assert any(test_id in line or "a box is four numbers" in line for line in lines)
    assert f"{train_id}: image is not a readable JPEG, PNG, WEBP or BMP" in lines


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_line_hides_no_missing_image(layouts, told, tmp_path, name):
    read = layouts(name, tmp_path)
    file, line, reason = FAULTS[name]
    with (tmp_path / file).open("a") as text:
        text.write(line)
    train, train_id, _, _ = TRAINED[name]
    (tmp_path / train).write_bytes(b"")
    lines = told(read())
    assert reason in lines
    assert f"{train_id}: image is not a readable JPEG, PNG, WEBP or BMP" in lines


@pytest.mark.parametrize("name", ["wsolevaluation", "cub"])
def test_labels_that_are_not_those_of_the_folders(layouts, told, tmp_path, name):
    read = layouts(name, tmp_path)
    file, old, new = CLASSES[name]
    exchange(tmp_path / file, old, new)
    assert f"{TRAINED[name][1]}: of class " in told(read())
