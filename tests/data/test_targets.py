"""Files of boxes that stand in for true ones: read, cut, and refused in words that name the line."""

import json

import numpy as np
import pytest

from wsol_pipeline.data.reader import ReadConfig
from wsol_pipeline.data.targets import Targets, by_copy, copy_stem, described, edges, read_targets, target_rows
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role

HEADER = "path,x0,y0,x1,y1\n"


@pytest.fixture
def written(tmp_path, dataset):
    """`written(lines, name, **options)`: what is read of a file with these lines."""

    def write(lines, name="boxes.csv", kind="pseudo", **options):
        file = tmp_path / name
        file.write_text(lines if isinstance(lines, str) else HEADER + "".join(f"{line}\n" for line in lines))
        return read_targets(str(file), dataset, kind, **{"allow_partial": True, **options})

    return write


def test_boxes_are_read_and_only_their_images_come(written, dataset, reading):
    ids = dataset.val_labels.ids
    targets = written([f"{ids[3]},1,2,30,40", f"{ids[1]},0,0,40,40"])
    assert targets.boxes == {ids[3]: [(1, 2, 30, 40)], ids[1]: [(0, 0, 40, 40)]}
    assert Targets.from_dict(json.loads(json.dumps(targets.to_dict()))) == targets
    rows = target_rows(dataset, targets, ReadConfig(36, 32, cache_dir=reading.cache_dir), "resize", 8)
    (batch,) = rows.batches()
    assert batch.ids == [ids[1], ids[3]]
    assert [boxes.tolist() for boxes in batch.boxes] == [[[0, 0, 40, 40]], [[1, 2, 30, 40]]]
    assert batch.labels_B.tolist() == dataset.val_labels.labels[[1, 3]].tolist()
    told = described(targets, dataset)
    assert "boxes of 2 of 25 validation images (8%)" in told
    assert "the whole image 50%; three borders or more 50%" in told


def test_coco_results_are_the_same_boxes(written, dataset):
    first = dataset.val_labels.ids[0]
    results = [{"image_id": first, "bbox": [1, 2, 10, 20], "score": 0.9}]
    assert written(json.dumps(results), "boxes.json").boxes == {first: [(1, 2, 11, 22)]}


@pytest.mark.parametrize("name", ["{id}", "{copy}", "images/{copy}", "images/train/{copy}"])
def test_coco_instances_of_an_annotation_tool_are_the_same_boxes(written, dataset, name):
    first = dataset.val_labels.ids[0]
    copy = f"{copy_stem(first)}.png"
    label = dataset.classes[dataset.val_labels.labels[0]]
    instances = {
        "images": [{"id": 7, "file_name": name.format(id=first, copy=copy)}, {"id": 8, "file_name": "empty.png"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "iscrowd": 0}],
        "categories": [{"id": 3, "name": label}],
    }
    assert written(json.dumps(instances), "i.json", "annotated").boxes == {first: [(1, 2, 11, 22)]}
    instances["categories"][0]["name"] = "car"
    with pytest.raises(DataError, match="label 'car'"):
        written(json.dumps(instances), "i.json", "annotated")


def test_copies_of_one_name_are_nobodys_and_other_json_is_refused(written):
    assert by_copy(["a/b.jpg", "a/b.png", "a/c.jpg"]) == {"a__c": "a/c.jpg"}
    with pytest.raises(DataError, match=r"neither COCO results \(a list .*\) nor instances"):
        written(json.dumps({"annotations": []}), "i.json")


def test_conventions_are_the_half_open_pixels_they_mean():
    assert edges((1, 1, 10, 10), "exclusive0") == (1, 1, 10, 10)
    assert edges((1, 1, 10, 10), "inclusive0") == (1, 1, 11, 11)
    assert edges((1, 1, 10, 10), "inclusive1") == (0, 0, 10, 10)


def test_what_is_off_by_a_pixel_is_cut_and_what_is_annotated_may_have_several(written, dataset):
    first = dataset.val_labels.ids[0]
    assert written([f"{first},-1,0,41,40"]).boxes == {first: [(0, 0, 40, 40)]}
    assert written([f"{first},1,1,41,41"], convention="inclusive1").boxes == {first: [(1, 1, 40, 40)]}
    both = written([f"{first},0,0,9,9", f"{first},20,20,30,30"], kind="annotated")
    assert len(both.boxes[first]) == 2


def test_lines_that_nobody_has_filled_are_no_boxes(written, dataset):
    first, second, *_ = dataset.val_labels.ids
    assert set(written([f"{first},,,,", f"{second},0,0,9,9"], kind="annotated").boxes) == {second}


def test_lines_of_training_images_stay_behind(written, dataset):
    first = dataset.val_labels.ids[0]
    assert set(written([f"{dataset.train.ids[0]},0,0,9,9", f"{first},0,0,9,9"]).boxes) == {first}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{val},9,0,9,9"], r"1 boxes that are none of their image \(exclusive0; line 2: \(9.0, 0.0, 9.0, 9.0\)"),
        (["{val},0,0,43,9"], "line 2: .*43.0.*40, 40"),
        (["{val},0,0,nan,9"], "boxes that are none of their image"),
        (["{val},0,0,nine,9"], r"line 2: \['0', '0', 'nine', '9'\] are not four numbers"),
        (["{val},0,0,9,9", "{val},0,0,8,8"], r"two boxes of .* \(lines 2 and 3\)"),
        (["other.jpg,0,0,9,9"], r"names images that the dataset does not have \(line 2: other.jpg\)"),
        (["{val},0,0,9,9", "{test},0,0,9,9"], "names test images .*line 3: .*test would leak into a choice"),
        (["{train},0,0,9,9"], "has no box of any of the 25 validation images"),
        ("path,x0,y0\n", "lacks x1, y1"),
        (["{val},0.1,0.2,0.5,1.0"], "has no corner over 1: shares of an image's sides"),
    ],
)
def test_a_file_that_is_not_to_be_trusted_is_refused_by_its_lines(written, dataset, lines, told):
    places = {"val": dataset.val_labels.ids[0], "test": dataset.ids_of(Role.TEST)[0], "train": dataset.train.ids[0]}
    lines = lines if isinstance(lines, str) else [line.format(**places) for line in lines]
    with pytest.raises(DataError, match=told):
        written(lines)


def test_a_file_that_lacks_boxes_of_many_images_is_taken_only_if_asked(written, dataset):
    lines = [f"{id},0,0,9,9" for id in dataset.val_labels.ids[:22]]
    with pytest.raises(DataError, match=r"22 of 25 validation images \(88%\), less than 90%: .*--allow-partial"):
        written(lines, allow_partial=False)
    assert len(written(lines, allow_partial=False, kind="annotated").boxes) == 22


def test_a_file_that_is_not_there_or_a_convention_that_is_none(written, dataset, tmp_path):
    with pytest.raises(UsageError, match="There is no file of boxes at"):
        read_targets(str(tmp_path / "none.csv"), dataset, "pseudo")
    with pytest.raises(UsageError, match="Unknown box convention 'inclusive2'"):
        written([], convention="inclusive2")


def test_sizes_are_those_of_stored_images(dataset):
    assert np.array_equal(dataset.val_labels.sizes_N2, np.full((25, 2), 40))
