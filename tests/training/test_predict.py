"""`Model.predict`: whatever somebody calls an image, any sizes together, and what is refused in a line."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from wsol_models import readouts
from wsol_pipeline.data.headers import _TURNS
from wsol_pipeline.data.photographs import photograph
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.inputs import pixels_of
from wsol_pipeline.training.loop import train
from wsol_pipeline.training.model import load_model


class Spots:
    """A readout whose map follows the image: bright where it is red; 0 elsewhere."""

    def maps(self, method, images_BCHW, classes_B, setting, output=None):
        return (images_BCHW[:, 0] - images_BCHW[:, 1]).clamp(min=0)


def test_all_of_an_image_is_seen_where_a_crop_would_leave_its_margin_out(model):
    """32 of 36 pixels: of 360 the outer 20 are not seen, unless all is resized to 32."""
    cropping = replace(model, config=replace(model.config, protocol="bas-ext"))
    image = red(360, 360, (0, 90, 180, 270))
    (judged,) = cropping.predict(image, threshold=0.5)
    assert judged.window == (20, 20, 340, 340)
    assert judged.box[0] == 20
    whole = cropping.seeing("resize")
    (seen,) = whole.predict(image, threshold=0.5)
    assert seen.window == (0, 0, 360, 360)
    assert seen.box == pytest.approx((0, 90, 180, 270), abs=360 / 32)
    assert cropping.seeing("whole") == cropping
    with pytest.raises(UsageError, match=r"--views resize is for protocols that crop; this model \(wsol-v1\) sees all"):
        model.seeing("resize")


class Flat:
    def maps(self, method, images_BCHW, classes_B, setting, output=None):
        return torch.ones(len(images_BCHW), 8, 8)


@pytest.fixture(scope="module")
def _finished(tmp_path_factory, make_config, dataset, reading):
    torch.set_num_threads(1)
    checkpoints = CheckpointStore(Store.at(tmp_path_factory.mktemp("predict")), 1)
    list(train(make_config("bas", epochs=1), dataset, checkpoints, reading=reading))
    return checkpoints.final()


@pytest.fixture
def model(_finished, monkeypatch):
    monkeypatch.setattr(readouts, "readout", lambda name, **options: Spots())
    return load_model(_finished)


def red(width, height, box):
    """A red rectangle, `box` half-open, on grey."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = (255, 0, 0)
    return pixels


def encoded(pixels, kind="PNG", **options):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


SCENES = [red(64, 64, (16, 8, 48, 40)), red(160, 64, (40, 16, 120, 48)), red(96, 192, (24, 96, 48, 144))]
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
BOXES = [(16, 8, 48, 40), (40, 16, 120, 48), (24, 96, 48, 144)]


def test_mixed_sizes_come_in_order_and_in_their_own_pixels(model):
    """The rectangles end on cells of the 32 x 32 grid, so that a box is off by the half that antialiasing blurs."""
    found = model.predict(SCENES, threshold=0.5)
    assert [one.image for one in found] == [0, 1, 2]
    for one, pixels, box in zip(found, SCENES, BOXES, strict=True):
        assert (one.height, one.width) == pixels.shape[:2]
        cell = pixels.shape[1] / 32, pixels.shape[0] / 32
        assert one.box == pytest.approx(box, abs=max(cell) * 1.01)
        assert one.window == (0, 0, one.width, one.height)
        y, x = np.nonzero(one.mask)
        assert (one.box[0] <= x.min() + 0.5, x.max() + 0.5 <= one.box[2]) == (True, True)
        assert (one.box[1] <= y.min() + 0.5, y.max() + 0.5 <= one.box[3]) == (True, True)


def test_a_list_is_what_each_of_it_is(model):
    model.method.double()  # batches differ in last bits
    together = model.predict(SCENES, threshold=0.5, batch_size=3)
    for one, pixels in zip(together, SCENES, strict=True):
        (alone,) = model.predict(pixels, threshold=0.5)
        assert (alone.box, alone.label) == (one.box, one.label)
        assert alone.score == pytest.approx(one.score, rel=1e-9)
    streamed = list(model.stream(iter(SCENES), batch_size=2, threshold=0.5))
    assert [(one.image, one.box) for one in streamed] == [(one.image, one.box) for one in together]


def test_whatever_is_called_an_image_is_one(model, tmp_path):
    (tmp_path / "scene.png").write_bytes(encoded(SCENES[0]))
    tensor = torch.from_numpy(SCENES[0]).permute(2, 0, 1)
    forms = [str(tmp_path / "scene.png"), tmp_path / "scene.png", f"file://{tmp_path}/scene.png",
             Image.fromarray(SCENES[0]), SCENES[0], tensor]  # fmt: skip
    boxes = {one.box for one in model.predict(forms, threshold=0.5)}
    assert len(boxes) == 1
    assert model.predict(forms, threshold=0.5)[0].path == str(tmp_path / "scene.png")
    assert model.predict(np.stack([SCENES[0]] * 2))[1].image == 1
    assert model.predict([]) == []


def test_grey_and_alpha_become_colour(model):
    grey = np.full((20, 30), 77, np.uint8)
    clear = np.dstack([np.full((20, 30, 3), 10, np.uint8), np.zeros((20, 30), np.uint8)])
    assert [one.width for one in model.predict([grey, clear, Image.fromarray(grey)])] == [30, 30, 30]
    assert pixels_of(clear).unique().tolist() == [255]
    assert pixels_of(grey).unique().tolist() == [77]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_picture_deeper_than_8_bits_is_refused_as_its_file_is(mode):
    with pytest.raises(UsageError, match=f"one of the modes 1, L, .* but has '{mode}'"):
        pixels_of(Image.new(mode, (4, 4), 300))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_exif_is_applied_and_boxes_are_of_the_shown_pixels(model, tmp_path, kind, turn):
    upright = SCENES[1]
    image = Image.fromarray(upright)
    back = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    undo = {**_TURNS, **back}.get(turn)
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = image if undo is None else image.transpose(undo)
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    stored.save(tmp_path / f"photo.{kind.lower()}", kind, exif=exif, **options)
    (one,) = model.predict(tmp_path / f"photo.{kind.lower()}", threshold=0.5)
    (plain,) = model.predict(upright, threshold=0.5)
    assert (one.width, one.height) == (160, 64)
    assert one.box == pytest.approx(plain.box, abs=1e-9 if kind != "JPEG" else 5.1)
    assert photograph((tmp_path / f"photo.{kind.lower()}").read_bytes())[1] == turn


def test_a_box_of_stored_pixels_where_exif_6_shows_it():
    """Of 4000 x 3000 stored, (100, 200, 300, 500) is shown at (x, y) -> (3000 - y, x): 2500, 100, 2800, 300."""
    stored = np.zeros((300, 400, 3), np.uint8)
    stored[20:50, 10:30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = photograph(encoded(stored, exif=exif))[0]
    rows, columns = np.nonzero(shown[0].numpy())
    assert (shown.shape[2], shown.shape[1]) == (300, 400)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (250, 10, 280, 30)


def test_labels_top_classes_and_conf(model):
    given = model.predict(SCENES[:2], labels=["ring", 2])
    assert [(one.label, one.class_id, one.label_source) for one in given] == [
        ("ring", 1, "given"), ("triangle", 2, "given")]  # fmt: skip
    top = model.predict(SCENES[0], top=2)
    assert len(top) == 2
    assert top[0].predicted == max(top, key=lambda one: one.class_score).label
    assert [one.label for one in model.predict(SCENES[0], classes=("ring",))] == ["ring"]
    (none,) = model.predict(SCENES[0], conf=1.0)
    assert (none.box, none.reason) == (None, "no class over --conf 1")
    assert not none.mask.any()


def test_all_boxes_and_how_many(model):
    two = red(64, 64, (4, 4, 30, 30))
    two[44:60, 44:60] = (255, 0, 0)
    found = model.predict(two, threshold=0.5, boxes="all")
    assert [one.rank for one in found] == [0, 1]
    assert found[0].mask.sum() > found[1].mask.sum()
    assert all(one.score < one.class_score for one in found)
    assert len(model.predict(two, threshold=0.5, boxes="all", max_det=1)) == 1
    assert len(model.predict(two, threshold=0.5, boxes="all", min_area=0.1)) == 1
    (none,) = model.predict(two, threshold=0.5, boxes="all", min_area=0.9)
    assert (none.box, none.reason) == (None, "no box over --min-area 0.9")


def test_a_flat_map_has_no_box(model, monkeypatch):
    monkeypatch.setattr(readouts, "readout", lambda name, **options: Flat())
    (one,) = model.predict(SCENES[0])
    assert (one.box, one.reason, one.mask.any()) == (None, "flat map", False)
    with pytest.raises(UsageError, match="has no box of .*flat map"):
        one.to_coco()
    assert one.draw(SCENES[0]).size == (64, 64)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 3), (2, 900)])
def test_the_smallest_and_the_longest_images_have_boxes_within(model, width, height):
    (one,) = model.predict(np.full((height, width, 3), (255, 0, 0), np.uint8))
    if one.box:
        assert 0 <= one.box[0] < one.box[2] <= width
        assert 0 <= one.box[1] < one.box[3] <= height
    assert one.mask.shape == (height, width)


def test_coco_and_pictures_of_one(model, tmp_path):
    (one,) = model.predict(SCENES[1], threshold=0.5)
    coco = one.to_coco()
    assert (rle.decode(coco["segmentation"]) == one.mask).all()
    x, y, width, height = coco["bbox"]
    assert (x, y, x + width, y + height) == one.box
    assert coco["area"] == one.mask.sum()
    picture = one.draw(SCENES[1])
    assert picture.size == (160, 64)
    (tmp_path / "scene.png").write_bytes(encoded(SCENES[1]))
    (of_file,) = model.predict(tmp_path / "scene.png", threshold=0.5)
    assert np.array_equal(np.asarray(of_file.draw()), np.asarray(picture))
    with pytest.raises(UsageError, match="hand them to draw"):
        one.draw()
    with pytest.raises(UsageError, match="must have 160x64 pixels, as localized, but has 64x64"):
        one.draw(SCENES[0])


@pytest.mark.parametrize(
    ("image", "options", "match"),
    [
        (np.zeros((4, 4, 3), np.float32), {}, "must be uint8 0..255 but got float32"),
        (np.zeros((0, 4, 3), np.uint8), {}, "an image .* but got \\[0, 4, 3\\]"),
        (np.zeros((4, 4, 5), np.uint8), {}, "but got \\[4, 4, 5\\]"),
        (torch.zeros(3, 4, 4), {}, "must be uint8 0..255 but got float32"),
        (42, {}, "An image is a path.* but got int"),
        (SCENES[0], {"threshold": 1.5}, "0 <= τ < 1, or 'otsu' but got 1.5"),
        (SCENES[0], {"threshold": float("nan")}, "but got nan"),
        (SCENES[0], {"threshold": -0.1}, "but got -0.1"),
        (SCENES[0], {"threshold": "half"}, "but got 'half'"),
        (SCENES[0], {"labels": "rign"}, "Did you mean 'ring'"),
        (SCENES[0], {"labels": 9}, "a label is a name or 0..2 but got 9"),
        (SCENES[0], {"labels": ["ring", "ring"]}, "there are 2 of 1 images"),
        (SCENES[0], {"labels": "ring", "top": 2}, "labels and top exclude each other"),
        (SCENES[0], {"top": 0}, "top must be at least 1"),
        (SCENES[0], {"classes": ("rng",)}, "Did you mean 'ring'"),
        (SCENES[0], {"conf": 2}, "conf is a probability"),
        (SCENES[0], {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_is_refused_is_refused_in_a_line(model, image, options, match):
    with pytest.raises(UsageError, match=match) as told:
        model.predict(image, **options)
    assert "\n" not in str(told.value)


def test_a_threshold_for_a_model_that_cuts_its_own_mask_is_refused(fit, make_config):
    reading = {"readings": ("plain",), "modes": ("mask",)}
    config = make_config("bcam", readout="bcam", readout_options=reading, options={"heads": 2}, epochs=1)
    model = load_model(fit(config).final)
    (one,) = model.predict(SCENES[0])
    assert one.threshold is None
    with pytest.raises(UsageError, match="cuts its own mask: it has no threshold but got 0.5"):
        model.predict(SCENES[0], threshold=0.5)


@pytest.mark.parametrize(
    ("data", "match"),
    [(None, "Cannot read .*: No such file"), (b"", "0 bytes"), (b"<html></html>", "not a readable"),
     (encoded(NOISE, "JPEG")[:-900], "cannot be decoded"), (encoded(SCENES[0], "TIFF")[:2000], "cannot|not a")],
)  # fmt: skip
def test_a_broken_file_is_said_in_a_line(model, tmp_path, data, match):
    if data is not None:
        (tmp_path / "broken.jpg").write_bytes(data)
    with pytest.raises(DataError, match=match):
        model.predict(tmp_path / "broken.jpg")
    with pytest.raises(DataError, match="is a folder"):
        model.predict(tmp_path)


def test_deep_pixels_are_refused_unless_scaled(tmp_path):
    sink = io.BytesIO()
    Image.fromarray(np.arange(1000, dtype=np.uint16).reshape(20, 50) * 60).save(sink, "PNG")
    with pytest.raises(DataError, match="mode 'I;16'"):
        photograph(sink.getvalue())
    pixels, _ = photograph(sink.getvalue(), scale_16bit=True)
    assert (pixels.shape, int(pixels.min()), int(pixels.max())) == ((3, 20, 50), 0, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "PNG"])
def test_every_format_is_read(kind):
    palette = Image.fromarray(SCENES[0]).quantize(8) if kind in ("GIF", "PNG") else Image.fromarray(SCENES[0])
    sink = io.BytesIO()
    palette.save(sink, kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = photograph(sink.getvalue())[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels[20, 30], (255, 0, 0))
