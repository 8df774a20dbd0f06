"""The COCO importer on a small faithful copy of its layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as oracle

from wsol_pipeline.data.audit import open_audit, write_audit
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.images import label_mask
from wsol_pipeline.data.importers import coco
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.data.schema import Note
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]
WIDTH, HEIGHT = 40, 30


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def note(number, image, category, box, shape, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "segmentation": shape,
        "iscrowd": crowd,
    }


def runs(x, width):
    """Uncompressed RLE of full columns."""
    return {"size": [HEIGHT, WIDTH], "counts": [x * HEIGHT, width * HEIGHT, (WIDTH - x - width) * HEIGHT]}


TRAIN = [
    note(1, 1, 18, [1, 2, 4, 4], square(1, 2, 4)),
    note(2, 2, 3, [1, 2, 4, 4], square(1, 2, 4)),
    note(3, 2, 18, [0, 0, 40, 30], runs(0, 40), crowd=1),
    note(4, 4, 18, [1, 2, 4, 4], square(1, 2, 4)),
]
VAL = [
    note(1, 11, 18, [4, 2, 4, 4], square(4, 2, 4)),  # on the car
    note(2, 11, 3, [2.1, 0, 10.2, 10], square(2, 0, 10)),
    note(3, 11, 3, [30, 0, 10, 30], runs(10, 30), crowd=1),
    note(4, 11, 90, [20, 20, 4, 4], square(20, 20, 4)),  # of no class to learn
    note(5, 12, 18, [1, 2, 4, 4], []),
]


@pytest.fixture
def put(tmp_path, jpeg):
    """`put(set, first, notes, number=4, **more)`: a set whose images are numbered from `first` on."""

    def make(name, first, notes, number=4, **more):
        entries = []
        for image in range(first, first + number):
            path = tmp_path / name / f"{image:012d}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(jpeg(image))
            entries.append({"id": image, "file_name": path.name, "width": WIDTH, "height": HEIGHT})
        (tmp_path / "annotations").mkdir(exist_ok=True)
        data = {"images": entries, "annotations": notes, "categories": CATEGORIES} | more
        (tmp_path / f"annotations/instances_{name}.json").write_text(json.dumps(data))
        return tmp_path

    return make


@pytest.fixture
def mini(put):
    """Dogs and cars; a crowd, a category without training images, an image without a segmentation, three empty ones."""
    put("train2017", 1, TRAIN)
    return put("val2017", 11, VAL, number=3)


HALF = coco.Options(val_share=0.5)


def by_id(source):
    return {Path(row.id).stem.lstrip("0"): row for row in source.rows}


def test_rows(mini):
    source = coco.read(mini, HALF)
    rows = by_id(source)
    assert source.classes == ("car", "dog")  # by category id
    assert source.box_convention == "exclusive0"
    assert source.multilabel
    assert source.left_out == {
        "images without an instance to learn or score": 2,  # 3 and 13
        "categories that no training image shows": 1,
    }
    assert rows["11"].id == "val2017/000000000011.jpg"
    assert rows["11"].role is Role.TEST
    assert rows["11"].labels == (0, 1)
    assert rows["11"].boxes == ((4, 2, 8, 6), (2.1, 0, 12.3, 10))  # not 12.299999999999999
    assert rows["11"].box_labels == (1, 0)
    assert rows["12"].class_mask is None
    assert rows["2"].labels == (0, 1)  # a crowd is something to learn


def test_part_of_training_is_held_out(mini):
    """Half of one car and two dogs is one dog; its row is complete."""
    rows = by_id(coco.read(mini, HALF))
    held_out = [name for name in "124" if rows[name].role is Role.VAL]
    assert len(held_out) == 1
    assert held_out[0] in "14"
    assert rows[held_out[0]].boxes == ((1, 2, 5, 6),)
    assert rows["2"].role is Role.TRAIN
    assert rows["2"].boxes == ()


def test_a_set_of_your_own_is_val(mini, put):
    put("own", 21, [note(1, 21, 3, [1, 2, 4, 4], square(1, 2, 4))], number=1)
    rows = by_id(coco.read(mini, coco.Options(val="own")))
    assert [name for name, row in rows.items() if row.role is Role.VAL] == ["21"]
    assert all(rows[name].role is Role.TRAIN for name in "124")


def test_masks_of_training_images_are_for_the_audit_alone(mini, put, tmp_path):
    """A crowd counts neither way there too; no shard, and no fingerprint, knows of them."""
    put("own", 21, [note(1, 21, 3, [1, 2, 4, 4], square(1, 2, 4))], number=1)
    source = coco.read(mini, coco.Options(val="own"))
    out = Store.at(tmp_path / "out")
    import_dataset(source, out, name="coco", origin={}, max_bad=1)
    dataset = open_dataset(out.uri)
    assert write_audit(source.rows, source.rules, out, dataset.fingerprint) == (3, 0)
    found = open_audit(dataset).masks()
    drawn = {name: label_mask(mask, ignore, (WIDTH, HEIGHT), True) for name, mask, ignore in found}
    dog, crowd = (drawn[f"train2017/{number:012d}.jpg"] for number in (1, 2))
    assert (dog[2:6, 1:5] == 2).all()
    assert int((dog > 0).sum()) == 16
    assert (crowd[2:6, 1:5] == 1).all()
    assert int((crowd == 255).sum()) == WIDTH * HEIGHT - 16
    assert "mask" not in dataset.train.shard_set().read(np.arange(1), ["id", "image", "labels"]).schema.names


def test_images_may_lie_below_images(mini):
    (mini / "images").mkdir()
    for name in ("train2017", "val2017"):
        (mini / name).rename(mini / "images" / name)
    assert by_id(coco.read(mini, HALF))["11"].image == mini / "images/val2017/000000000011.jpg"


def test_the_smaller_instance_has_the_pixels_and_crowds_only_what_is_left(mini, write):
    """A car in columns 2..11, rows 0..9; a dog on it in columns 4..7, rows 2..5; crowd and toothbrush elsewhere."""
    dataset = write(mini / "out", coco.read(mini, HALF))
    rows = eval_rows(dataset.test(), ReadConfig(image_size=30, resize_size=30, mode="streaming"), "short_side", 8)
    masks = {name: mask for batch in rows.batches() for name, mask in zip(batch.ids, batch.masks, strict=True)}
    want = np.zeros((HEIGHT, WIDTH), np.uint8)
    want[:, 10:] = 255
    want[:10, 2:12] = 1
    want[2:6, 4:8] = 2
    np.testing.assert_array_equal(masks["val2017/000000000011.jpg"], want)
    assert (masks["val2017/000000000012.jpg"] == 255).all()


def test_runs_by_hand():
    """Two columns of three rows: one outside, two inside, two outside, one inside."""
    want = np.array([[0, 0], [1, 0], [1, 1]], bool)
    np.testing.assert_array_equal(coco.segment({"size": [3, 2], "counts": [1, 2, 2, 1]}, 2, 3), want)
    np.testing.assert_array_equal(coco.segment({"size": [3, 2], "counts": "122O"}, 2, 3), want)


def test_a_polygon_by_hand():
    want = np.zeros((5, 6), bool)
    want[1:4, 2:5] = True
    np.testing.assert_array_equal(coco.segment([[2, 1, 5, 1, 5, 4, 2, 4]], 6, 5), want)
    want[0, 0] = True
    np.testing.assert_array_equal(coco.segment([[2, 1, 5, 1, 5, 4, 2, 4], [0, 0, 1, 0, 1, 1, 0, 1]], 6, 5), want)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.0])
def test_compressed_runs_are_those_of_pycocotools(share):
    mask_HW = np.random.default_rng(3).random((200, 300)) < share
    encoded = oracle.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    shape = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    np.testing.assert_array_equal(coco.segment(shape, 300, 200), mask_HW)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": [10, 5]}, "RLE of 15 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, -5, 1195]}, "does not fit"),
        ({"size": [WIDTH, HEIGHT], "counts": [0, 1200]}, "does not fit the image of 40x30"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**70, 1200 - 2**70]}, "does not fit"),
        ({"size": [HEIGHT, WIDTH], "counts": "zz~~é"}, "does not fit"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 99}, "over 60 bits"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "RLE of 0 pixels"),
        ({"size": [HEIGHT, WIDTH]}, "cannot be drawn: KeyError: 'counts'"),
        ({"size": [HEIGHT, WIDTH], "counts": {}}, "does not fit|cannot be drawn"),
        ([[1, 2, 3, 4]], "at least three points"),
        ([1, 2, 3, 4, 5, 6], "is a list of numbers: it must be a list of polygons"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, 4, 5, 60000000]], "polygon is not on the image of 40x30"),
        ([[1, 2, 3, 4, 5, float("nan")]], "polygon is not on the image of 40x30"),
        ([["a", "b"]], "cannot be drawn: ValueError"),
        ("text", "cannot be drawn: ValueError"),
        (7, "cannot be drawn: TypeError"),
    ],
)
def test_a_segmentation_that_does_not_fit(shape, reason):
    with pytest.raises(DataError, match=reason):
        coco.segment(shape, WIDTH, HEIGHT)


GOOD = [4, 2, 4, 4]
LINE, POINT = [10, 10, 12, 10], [32.0, 24.0]


def drawn(source, name="11"):
    """The mask of an image."""
    return by_id(source)[name].class_mask.draw()


@pytest.mark.parametrize("empty", [[], [[]], [[], []], None])
def test_an_instance_without_points_has_no_segmentation(put, mini, told, empty):
    put("val2017", 11, [note(1, 11, 3, GOOD, empty)], number=1)
    source = coco.read(mini, HALF)
    assert by_id(source)["11"].class_mask is None
    assert told(source) == ""


@pytest.mark.parametrize("other", [LINE, POINT, []])
def test_points_and_lines_beside_a_polygon_are_dropped(put, mini, told, other):
    put("val2017", 11, [note(1, 11, 3, GOOD, [*square(4, 2, 4), other])], number=1)
    source = coco.read(mini, HALF)
    assert told(source) == ""
    want = np.zeros((HEIGHT, WIDTH), np.uint8)
    want[2:6, 4:8] = 1
    np.testing.assert_array_equal(drawn(source), want)
    assert by_id(source)["11"].notes == (Note.RING,)


def test_a_line_alone_is_no_instance(put, mini, told):
    put("val2017", 11, [note(1, 11, 3, GOOD, [LINE])], number=1)
    assert "polygon has the shape (4,): it must be x, y of at least three points" in told(coco.read(mini, HALF))


@pytest.mark.parametrize(
    ("box", "want", "rows", "columns"),
    [
        ([-3, 5, 20, 10], (0, 5, 17, 15), (5, 15), (0, 17)),
        ([30, 10, 13, 25], (30, 10, 40, 30), (10, 30), (30, 40)),
        ([-2, -2, 45, 35], (0, 0, 40, 30), (0, 30), (0, 40)),
    ],
)
def test_what_leaves_the_image_is_cut_off_at_its_edge_and_counted(put, mini, told, write, box, want, rows, columns):
    x, y, width, height = box
    ring = [x, y, x + width, y, x + width, y + height, x, y + height]
    put("val2017", 11, [note(1, 11, 3, box, [ring])], number=1)
    source = coco.read(mini, HALF)
    assert told(source) == ""
    assert by_id(source)["11"].boxes == (want,)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    np.testing.assert_array_equal(drawn(source), mask)
    assert write(mini / "out", source).manifest.notes == {Note.CLIPPED.value: 1}


@pytest.mark.parametrize("box", [[35, 5, 10, 10], [-30, 5, 50, 10], [50, 5, 10, 10]])
def test_what_is_not_more_than_half_on_the_image_is_refused(put, mini, told, box):
    put("val2017", 11, [note(1, 11, 3, box, [])], number=1)
    assert "is not on the image of 40x30" in told(coco.read(mini, HALF))


@pytest.mark.parametrize("seed", range(5))
def test_a_polygon_is_cut_off_as_one_that_was_drawn_on_a_larger_image(seed):
    """pycocotools draws it on 3x3 images; the one in the middle is ours."""
    ring = np.random.default_rng(seed).uniform([-WIDTH, -HEIGHT], [2 * WIDTH, 2 * HEIGHT], (7, 2))
    large = coco.segment([(ring + np.array([WIDTH, HEIGHT])).ravel().tolist()], 3 * WIDTH, 3 * HEIGHT)
    middle = large[HEIGHT : 2 * HEIGHT, WIDTH : 2 * WIDTH]
    small = coco.segment([ring.ravel().tolist()], WIDTH, HEIGHT)
    assert (small != middle).mean() < 0.02  # pixels of an edge fall either way


@pytest.mark.parametrize("form", ["val2017/{}", "./{}", "images/val2017/{}", "./images/{}", "val2017\\{}", ".\\{}"])
def test_file_names_with_the_folder_of_the_set(put, mini, told, form):
    plain = coco.read(mini, HALF)
    path = mini / "annotations/instances_val2017.json"
    data = json.loads(path.read_text())
    for entry in data["images"]:
        entry["file_name"] = form.format(entry["file_name"])
    path.write_text(json.dumps(data))
    assert list(coco.read(mini, HALF).rows) == list(plain.rows)


def loose(value):
    """The numbers of an entry as text or floats."""
    if isinstance(value, dict):
        return {key: loose(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [loose(inner) for inner in value]
    return value if isinstance(value, str) else str(value) if value % 2 else float(value)


def test_numbers_as_text_or_floats(mini):
    plain = coco.read(mini, HALF)
    for path in (mini / "annotations").iterdir():
        path.write_text(json.dumps({kind: loose(entries) for kind, entries in json.loads(path.read_text()).items()}))
    source = coco.read(mini, HALF)
    assert source.classes == plain.classes
    for row, other in zip(source.rows, plain.rows, strict=True):
        assert (row.id, row.size, row.labels, row.boxes) == (other.id, other.size, other.labels, other.boxes)
        if row.class_mask:
            np.testing.assert_array_equal(row.class_mask.draw(), other.class_mask.draw())


def test_a_width_that_is_no_number_of_pixels(mini, told):
    path = mini / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace('"width": 40', '"width": 40.5', 1))
    assert "val2017/000000000011.jpg: annotation is not in COCO's form: ValueError: 40.5 is no number" in told(
        coco.read(mini, HALF)
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (note(9, 12, 7, GOOD, []), "category 7 of annotation 9 is not listed"),
        (note(9, 12, [7], GOOD, []), "not in COCO's form: TypeError"),
        (note(9, 12, 3, [38, 2, 4, 4], []), "not on the image of 40x30"),
        (note(9, 12, 3, [4, 2, 0, 4], []), r"box \[4, 2, 0, 4\] of annotation 9 has no area"),
        (note(9, 12, 3, [4, 2, 4], []), "not in COCO's form: ValueError"),
        (note(9, 12, 3, None, []), "not in COCO's form: TypeError"),
        ({"id": 9, "image_id": 12, "category_id": 3}, "not in COCO's form: KeyError: 'bbox'"),
    ],
)
def test_a_bad_annotation_is_quarantined_with_its_reason(put, mini, write, bad, reason):
    put("val2017", 11, [*VAL, bad], number=3)
    with pytest.raises(DataError, match=reason) as error:
        write(mini / "out", coco.read(mini, HALF))
    assert "The first is 'val2017/000000000012.jpg'" in str(error.value)


def test_a_mask_that_cannot_be_drawn_is_quarantined(put, mini, write):
    put("val2017", 11, [note(9, 11, 3, GOOD, {"size": [HEIGHT, WIDTH], "counts": [10, 5]})], number=1)
    with pytest.raises(DataError, match="'val2017/000000000011.jpg': RLE of 15 pixels"):
        write(mini / "out", coco.read(mini, HALF))


def test_an_annotation_for_another_size_is_quarantined(mini, write):
    path = mini / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace('"width": 40, "height": 30', '"width": 30, "height": 40'))
    with pytest.raises(DataError, match="image is 40x30 but its annotation is for 30x40"):
        write(mini / "out", coco.read(mini, HALF))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"annotations": [7]}, "not in COCO's form: TypeError"),
        ({"annotations": None}, "not in COCO's form: TypeError"),
        ({"images": [{"id": 11}]}, "not in COCO's form: KeyError: 'file_name'"),
        (
            {"images": [{"id": float("inf"), "file_name": "a.jpg"}], "categories": [{"id": float("inf"), "name": "a"}]},
            "not in COCO's form: OverflowError",
        ),
        ({"categories": [{"id": "a", "name": "a"}]}, "not in COCO's form: ValueError"),
        ({"categories": [*CATEGORIES[:2], {"id": 90, "name": "brush"}]}, "differ on category 90: 'brush'"),
    ],
)
def test_a_file_that_is_not_in_cocos_form_is_refused(put, mini, more, reason):
    put("val2017", 11, VAL, number=3, **more)
    with pytest.raises(DataError, match=reason):
        coco.read(mini, HALF)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"annotations": [VAL[0], VAL[0]]}, "1 more than once among the ids of 'annotations'"),
        ({"annotations": [note(1, 99, 3, GOOD, [])]}, "annotations of image 99, which it does not list"),
        ({"annotations": [{"id": 1}]}, "annotations of image None, which it does not list"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}] * 2}, "1 more than once among the ids of 'images'"),
    ],
)
def test_entries_that_cannot_be_told_apart_are_refused(put, mini, told, write, more, reason):
    put("val2017", 11, VAL, number=3, **more)
    source = coco.read(mini, HALF)
    assert reason in told(source)
    with pytest.raises(DataError, match=reason):
        write(mini / "out", source)


@pytest.mark.parametrize(("name", "reason"), [("../../a.jpg", "leads out of"), ("\0", "leads nowhere")])
def test_a_path_that_leads_out_is_quarantined(put, mini, told, name, reason):
    entry = {"id": 11, "file_name": name, "width": WIDTH, "height": HEIGHT}
    put("val2017", 11, [VAL[0]], images=[entry, {**entry, "id": 12, "file_name": "000000000012.jpg"}])
    assert reason in told(coco.read(mini, HALF))


def test_a_file_that_is_no_json_is_refused(mini):
    (mini / "annotations/instances_val2017.json").write_text('{"images": [')
    with pytest.raises(DataError, match="instances_val2017.json is not in COCO's form: JSONDecodeError"):
        coco.read(mini, HALF)


def test_more_categories_than_a_mask_can_hold_are_refused(put, mini):
    categories = [{"id": number, "name": str(number)} for number in range(255)]
    put("train2017", 1, [note(n, 1, n, GOOD, []) for n in range(255)], categories=categories)
    put("val2017", 11, [], categories=categories)
    with pytest.raises(DataError, match="255 categories but a class mask holds 254 at most"):
        coco.read(mini, HALF)


def test_a_missing_set_names_those_that_there_are(mini):
    with pytest.raises(UsageError, match="Unknown set of images 'val2014'. Did you mean 'val2017'"):
        coco.read(mini, coco.Options(test="val2014"))


def test_missing_images_are_told(mini):
    (mini / "val2017").rename(mini / "elsewhere")
    with pytest.raises(DataError, match="neither val2017/ nor images/val2017/"):
        coco.read(mini, HALF)


@pytest.mark.parametrize("share", [0.0, 1.0, -1])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(UsageError, match="--val-share must lie between 0 and 1"):
        coco.Options(val_share=share)
