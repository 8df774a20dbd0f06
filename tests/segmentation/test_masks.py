"""Label images keep their values through PNG, run lengths and COCO."""

import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.segmentation import masks


def test_the_palette_is_vocs():
    colours = np.array(masks.palette()).reshape(256, 3)
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 15: (192, 128, 128),
                20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {label: tuple(colours[label]) for label in expected} == expected


def test_all_values_come_back():
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = masks.encode(labels)
    assert np.array_equal(masks.decode(data), labels)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
        assert len(image.getpalette()) == 768


def test_a_few_values_keep_theirs():
    labels = np.array([[250, 7], [7, 255]], np.uint8)
    assert np.array_equal(masks.decode(masks.encode(labels)), labels)


def test_colours_are_no_labels():
    sink = io.BytesIO()
    Image.new("RGB", (3, 2)).save(sink, "PNG")
    with pytest.raises(DataError, match="a PNG with a palette or grey but has mode 'RGB'"):
        masks.decode(sink.getvalue())
    sink = io.BytesIO()
    Image.new("RGB", (3, 2)).save(sink, "JPEG")
    with pytest.raises(DataError, match="must be a PNG but is a JPEG"):
        masks.decode(sink.getvalue())


def test_coco_has_each_class_of_each_image():
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 2:5] = 2
    labels[0, 0] = 255
    found = masks.coco([("a", labels), ("b", np.zeros((2, 2), np.uint8))], ["cat", "dog"])
    (one,) = found["annotations"]
    assert (one["image_id"], one["category_id"], one["area"], one["bbox"]) == (1, 2, 6, [2, 1, 3, 2])
    assert np.array_equal(coco_masks.decode(one["segmentation"]), labels == 2)
    assert [image["file_name"] for image in found["images"]] == ["a", "b"]
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_more_classes_than_labels_are_refused():
    masks.check_classes(254)
    with pytest.raises(UsageError, match="254 classes at most but the dataset has 255"):
        masks.check_classes(255)
