"""Images to annotate: which, laid out how, and read back as they were drawn."""

import csv
import io
import json

import numpy as np
import pytest

from wsol_pipeline.data.targets import read_targets
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.storage import Store
from wsol_pipeline.study.certainty import certainty_of
from wsol_pipeline.study.choosers import Choosers
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.training.guesses import agreement, box_of, guesses, readings
from wsol_pipeline.training.model import load_model
from wsol_pipeline.verdict.annotate import Picked, annotate, coco, disputed, lines, order
from wsol_pipeline.verdict.options import AnnotateOptions


@pytest.fixture
def laid_out(dataset, tmp_path):
    def run(images, name="todo"):
        annotate(AnnotateOptions(data=dataset.uri, images=images, out=str(tmp_path / name)))
        return tmp_path / name

    return run


def paths(folder):
    return [row["path"] for row in csv.DictReader(io.StringIO((folder / "boxes.csv").read_text()))]


def test_a_longer_list_begins_with_a_shorter_one_and_takes_turns_between_classes(dataset, laid_out):
    few, more = paths(laid_out(9)), paths(laid_out(18, "more"))
    assert more[:9] == few
    assert sorted(order(dataset.val_labels)) == list(range(25))
    labels = dict(zip(dataset.val_labels.ids, dataset.val_labels.labels.tolist(), strict=True))
    assert sorted(labels[path] for path in few) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_images_lie_beside_what_tools_load(laid_out):
    folder = laid_out(6)
    loaded = json.loads((folder / "coco.json").read_text())
    names = {image["file_name"] for image in loaded["images"]}
    assert names == {path.name for path in (folder / "images").iterdir()}
    assert len(names) == 6
    assert loaded["annotations"] == []
    assert {image["width"] for image in loaded["images"]} == {40}


def test_a_folder_that_somebody_may_have_filled_is_left_alone(laid_out):
    folder = laid_out(6)
    (folder / "boxes.csv").write_text("path,x0,y0,x1,y1\nmine,1,2,3,4\n")
    with pytest.raises(UsageError, match="is there already, maybe filled"):
        laid_out(6)
    assert "mine,1,2,3,4" in (folder / "boxes.csv").read_text()


def test_a_half_filled_folder_chooses_by_what_is_filled(dataset, laid_out):
    folder = laid_out(6)
    head, *rest = (folder / "boxes.csv").read_text().splitlines()
    filled = [line.replace(",,,,,", ",3,4,30,31,") for line in rest[:4]]
    (folder / "boxes.csv").write_text("\n".join([head, *filled, *rest[4:]]) + "\n")
    targets = read_targets(str(folder / "boxes.csv"), dataset, "annotated")
    assert list(targets.boxes.values()) == [[(3, 4, 30, 31)]] * 4


def test_boxes_to_correct_are_the_same_in_both_files(dataset, tmp_path):
    ids, label = dataset.val_labels.ids, int(dataset.val_labels.labels[0])
    picked, boxes = [Picked(ids[0], "a.jpg", b"", (40, 40), (label,))], {(ids[0], label): (1.5, 2.0, 30.0, 31.25)}
    file = tmp_path / "boxes.csv"
    file.write_text(lines(picked, dataset.classes, boxes))
    assert read_targets(str(file), dataset, "annotated").boxes == {ids[0]: [(1.5, 2.0, 30.0, 31.2)]}
    (annotation,) = coco(picked, dataset.classes, boxes)["annotations"]
    assert annotation["bbox"] == [1.5, 2.0, 28.5, 29.25]
    assert annotation["category_id"] == label + 1


@pytest.mark.parametrize(
    ("name", "size_wh", "columns", "rows", "box"),
    [
        ("wsol-v1", (4000, 3000), (0, 224), (0, 224), (0, 0, 4000, 3000)),
        ("bas-ext", (640, 480), (28, 112), (56, 168), (110, 135, 320, 345)),
        ("mldfr", (640, 480), (100, 300), (50, 250), (100, 50, 300, 250)),
    ],
)
def test_boxes_of_masks_are_half_open_pixels_of_the_image(name, size_wh, columns, rows, box):
    rules = protocol(name)
    mask_HW = np.zeros(rules.map_size(size_wh)[::-1], bool)
    mask_HW[slice(*rows), slice(*columns)] = True
    assert box_of(mask_HW, rules, size_wh) == pytest.approx(box)
    assert box_of(np.zeros((8, 8), bool), rules, size_wh) is None


def test_images_on_which_readings_differ_say_that_they_are_no_sample(dataset, fit, make_config, reading, tmp_path):
    final = fit(make_config("bas", epochs=1)).final
    record = {"schema": SCHEMA, "published": None, "data": dataset.uri, **model_named(final, Store.at(tmp_path))}
    Store.at(tmp_path).write("bas/winner.json", json.dumps(record).encode())
    out, where = tmp_path / "hard", {"study": "bas", "storage": str(tmp_path), "cache_dir": reading.cache_dir}
    annotate(AnnotateOptions(**where, images=6, by="disagreement", prefill=True, out=str(out)))
    model = load_model(final)
    least = disputed(model, dataset, reading.cache_dir)
    assert sorted(least) == list(range(25))
    assert paths(out) == [dataset.val_labels.ids[row] for row in least[:6]]
    found = [guesses(model, dataset, range(25), reading.cache_dir, one) for one in readings(model)]
    assert len(found) == 4  # three k, and Grad-CAM++
    labels = zip(dataset.val_labels.ids, dataset.val_labels.labels.tolist(), strict=True)
    agreed = [agreement([boxes.get(key) for boxes in found]) for key in labels]
    assert [agreed[row] for row in least] == sorted(agreed)
    assert len(set(agreed)) > 1
    targets = read_targets(str(out / "boxes.csv"), dataset, "annotated")
    assert targets.biased
    assert "a biased sample" in (out / "README.md").read_text()
    told = certainty_of(final, make_config(select_by="annotated"), Choosers(None, None, {"annotated": vars(targets)}))
    assert "drawn by disagreement: they choose." in told
    assert "±" not in told
    assert "redraws" not in told


def test_boxes_of_readings_agree_by_their_mean_iou():
    """IoU 1 of the same, 1/3 of halves that overlap by half, 0 with one that is missing."""
    one, half = (0.0, 0.0, 10.0, 10.0), (5.0, 0.0, 15.0, 10.0)
    assert agreement([one, one]) == 1
    assert agreement([one, half]) == pytest.approx(1 / 3)
    assert agreement([one, one, half]) == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert agreement([one, None, one]) == pytest.approx(1 / 3)
    assert agreement([None, None]) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data": "d", "by": "disagreement"}, "--by disagreement needs a --study"),
        ({}, "--study or --data is needed"),
        ({"data": "d", "images": 0}, "images must be at least 1"),
        ({"data": "d", "prefill": True}, "--prefill needs a --study"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(options, told):
    with pytest.raises(UsageError, match=told):
        AnnotateOptions(**options)
