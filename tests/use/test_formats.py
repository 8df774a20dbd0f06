"""The forms that others load: worked by hand, and read back by their own libraries and our importers."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rayjobs import localize
from tests.use.conftest import paint
from wsol_pipeline.data.importers import coco as coco_layout
from wsol_pipeline.data.importers import folder as folder_layout
from wsol_pipeline.data.importers import voc as voc_layout
from wsol_pipeline.errors import UsageError
from wsol_pipeline.protocol import Role
from wsol_pipeline.use import formats
from wsol_pipeline.use.options import FORMATS
from wsol_pipeline.use.sources import file_name

BY_HAND = {"x0": 110.0, "y0": 135.0, "x1": 320.0, "y1": 345.0, "width": 640, "height": 480, "class_id": 0,
           "label": "cat & dog", "score": 0.5, "area": 44100, "rle": "", "image_id": "a/b.jpg"}  # fmt: skip


def test_one_box_by_hand_in_every_convention():
    assert formats._annotation(7, BY_HAND)["bbox"] == [110, 135, 210, 210]
    assert formats.voc_box(BY_HAND) == (111, 136, 320, 345)
    assert formats.voc_box(BY_HAND | {"x0": 0.2, "y0": 0.0, "x1": 3.1, "y1": 4.0}) == (1, 1, 4, 4)
    assert formats.yolo_line(BY_HAND, False) == "0 0.335938 0.500000 0.328125 0.437500\n"
    assert formats.yolo_line(BY_HAND, True) == "0 0.335938 0.500000 0.328125 0.437500 0.500000\n"
    assert "<name>cat &amp; dog</name>" in formats._xml([BY_HAND])
    assert "<filename>a__b.jpg</filename>" in formats._xml([BY_HAND])


def test_the_palette_is_vocs():
    assert formats.palette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
    assert formats.palette()[255 * 3 :] == [224, 224, 192]


def test_names_of_files():
    assert [file_name(name) for name in ("a/b.jpg", "c.tar.png", "/d/e", "plain")] == [
        "a__b", "c.tar", "d__e", "plain"]  # fmt: skip


@pytest.fixture(scope="module")
def found(final, tmp_path_factory):
    """A localization in every form, its source, and its rows with a box by image."""
    where = tmp_path_factory.mktemp("formats")
    for number in range(9):
        folder, size = (("cross", (64, 48)), ("ring", (40, 90)), ("triangle", (33, 77)))[number % 3]
        paint(where / f"photos/{folder}/{number}.jpg", number, size, quality=95)
    assert localize.main(
        ["--model", str(final), "--source", str(where / "photos"), "--out", str(where / "out"), "--labels", "folder",
         "--format", *FORMATS, "--save-conf"]
    ) == 0  # fmt: skip
    rows = pq.read_table(where / "out/parts/part-00000.parquet").to_pylist()
    return where, {row["image_id"]: row for row in rows if row["x0"] is not None}


def box_of(row):
    return [row[side] for side in ("x0", "y0", "x1", "y1")]


def test_pycocotools_loads_and_scores_the_coco_file(found):
    where, rows = found
    truth = COCO(str(where / "out/coco.json"))
    assert len(truth.imgs) == 9
    assert {category["name"] for category in truth.loadCats(truth.getCatIds())} == {"cross", "ring", "triangle"}
    names = {image["id"]: image["file_name"] for image in truth.imgs.values()}
    for note in truth.anns.values():
        row = rows[names[note["image_id"]]]
        x, y, width, height = note["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box_of(row), abs=1e-9)
        mask = truth.annToMask(note)
        assert (mask.sum(), mask.shape) == (note["area"], (row["height"], row["width"]))
    answers = truth.loadRes([dict(note) for note in truth.anns.values()])
    scored = COCOeval(truth, answers, "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(1)


def rows_by(source, **boxes):
    return {row.id: row for row in source.rows if row.role is Role.TEST}


def test_coco_comes_back_through_our_importer_as_the_same_boxes(found, tmp_path):
    where, rows = found
    (tmp_path / "annotations").mkdir()
    for name in ("train2017", "val2017"):
        shutil.copy(where / "out/coco.json", tmp_path / f"annotations/instances_{name}.json")
        shutil.copytree(where / "photos", tmp_path / name)
    back = rows_by(coco_layout.read(tmp_path, coco_layout.Options()))
    for name, row in rows.items():
        assert back[f"val2017/{name}"].boxes[0] == pytest.approx(box_of(row), abs=1e-9)


def test_voc_comes_back_through_our_importer_as_whole_pixels(found, tmp_path):
    where, rows = found
    shutil.copytree(where / "out/voc", tmp_path / "voc")
    (tmp_path / "voc/JPEGImages").mkdir()
    for name in rows:
        shutil.copy(where / "photos" / name, tmp_path / f"voc/JPEGImages/{file_name(name)}.jpg")
    options = voc_layout.Options(
        train="Main/localized", val="Main/localized", test="Main/localized", class_names="classes.txt"
    )
    back = rows_by(voc_layout.read(tmp_path / "voc", options))
    for name, row in rows.items():
        x0, y0, x1, y1 = back[file_name(name)].boxes[0]  # inclusive, from 1
        assert (x0 - 1, y0 - 1, x1, y1) == pytest.approx(box_of(row), abs=1)
        assert (x0 - 1 <= row["x0"], y0 - 1 <= row["y0"], x1 >= row["x1"], y1 >= row["y1"]) == (True,) * 4


def test_the_csv_comes_back_through_the_folder_layout_exactly(found, tmp_path):
    where, rows = found
    shutil.copytree(where / "photos", tmp_path / "data")
    shutil.copy(where / "out/boxes.csv", tmp_path / "data/boxes.csv")
    back = {row.id: row for row in folder_layout.read(tmp_path / "data", folder_layout.Options()).rows}
    for name, row in rows.items():
        assert list(back[name].boxes[0]) == box_of(row)
    table = list(csv.DictReader((where / "out/localized.csv").open()))
    assert [line["label"] for line in table] == [Path(line["image_id"]).parent.name for line in table]


def test_yolo_gives_the_boxes_back(found):
    where, rows = found
    names = (where / "out/yolo/classes.txt").read_text().split()
    assert re.findall(r'\d: "(\w+)"', (where / "out/yolo/data.yaml").read_text()) == names
    assert len(list((where / "out/yolo/labels").glob("*.txt"))) == 9
    for name, row in rows.items():
        line = (where / f"out/yolo/labels/{file_name(name)}.txt").read_text().split()
        label, cx, cy, across, down, conf = int(line[0]), *map(float, line[1:])
        size = row["width"], row["height"]
        back = [(cx - across / 2) * size[0], (cy - down / 2) * size[1], (cx + across / 2) * size[0],
                (cy + down / 2) * size[1]]  # fmt: skip
        assert names[label] == row["label"]
        assert back == pytest.approx(box_of(row), abs=1e-3)
        assert conf == pytest.approx(row["score"], abs=1e-6)


def test_masks_are_class_labels_and_lie_in_their_boxes(found):
    where, rows = found
    for name, row in rows.items():
        with Image.open(where / f"out/masks/{file_name(name)}.png") as image:
            assert image.mode == "P"
            labels = np.array(image)
        assert labels.shape == (row["height"], row["width"])
        assert set(np.unique(labels)) <= {0, row["class_id"] + 1}
        assert (labels > 0).sum() == row["area"]
        y, x = np.nonzero(labels)
        assert x.min() + 0.5 >= row["x0"]
        assert x.max() + 0.5 <= row["x1"]
        assert y.min() + 0.5 >= row["y0"]
        assert y.max() + 0.5 <= row["y1"]


def test_the_page_holds_its_pictures_and_needs_no_network(found):
    where, _ = found
    page = (where / "out/index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 9
    assert not re.search(r'(src|href)="(?!data:)', page)
    overlays = list((where / "out/overlays").glob("*.jpg"))
    assert len(overlays) == 9
    with Image.open(io.BytesIO(overlays[0].read_bytes())) as image:
        assert max(image.size) <= 1024


def test_forms_are_made_later_without_an_image(found, tmp_path):
    where, _ = found
    shutil.copytree(where / "out/parts", tmp_path / "later/parts")
    for name in ("contract.json", "listing.parquet"):
        shutil.copy(where / "out" / name, tmp_path / "later" / name)
    shutil.move(where / "photos", where / "elsewhere")
    try:
        assert localize.main(["--out", str(tmp_path / "later"), "--format", "coco", "voc", "masks", "html"]) == 0
    finally:
        shutil.move(where / "elsewhere", where / "photos")
    assert (tmp_path / "later/coco.json").read_bytes() == (where / "out/coco.json").read_bytes()
    assert "cannot be read any more" in (tmp_path / "later/index.html").read_text()
    assert json.loads((tmp_path / "later/contract.json").read_text())["classes"] == ["cross", "ring", "triangle"]


def test_the_page_shows_lowest_and_highest_and_no_more_than_asked(found, tmp_path):
    where, rows = found
    shutil.copytree(where / "out", tmp_path / "some")
    assert localize.main(["--out", str(tmp_path / "some"), "--format", "html", "--gallery", "3"]) == 0
    page = (tmp_path / "some/index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    order = sorted(rows.values(), key=lambda row: row["score"])
    assert page.index(order[0]["image_id"]) < page.index(order[-1]["image_id"])


def test_more_classes_than_a_mask_holds_are_refused():
    with pytest.raises(UsageError, match="holds 254 classes at most but the model has 1000: use coco's RLE"):
        formats._masks(None, None, ["c"] * 1000)
