"""Boxes of a machine: by a child interpreter that is made up, by detectors with random weights, read back by name."""

import csv
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from rayjobs import propose as job
from wsol_pipeline.data.targets import read_targets
from wsol_pipeline.errors import DataError, ResourceError, UsageError
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.use import propose
from wsol_pipeline.use.detectors import CocoDetector, build, shared_with_coco
from wsol_pipeline.use.options import ProposeOptions
from wsol_pipeline.use.proposals import SelectiveSearch, selective_search

HAS_IT = """
import numpy

class Search:
    def setBaseImage(self, image): self.image = image
    def switchToSelectiveSearchFast(self): pass
    def process(self):
        height, width, _ = self.image.shape
        if self.image[0, 0, 0] == 255:
            raise SystemExit("an image of death")
        whole = [[0, 0, width, height]]
        return numpy.array(whole + [[x, y, width // 2, height // 2] for x in (0, width // 4, width // 2)
                                    for y in (0, height // 4, height // 2)])

class segmentation:
    createSelectiveSearchSegmentation = Search

class ximgproc:
    segmentation = segmentation

def setNumThreads(number): pass
"""


@pytest.fixture
def python(tmp_path):
    """`python(cv2)`: an interpreter that has this for OpenCV."""

    def make(text=HAS_IT, name="ss"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cv2.py").write_text(text)
        file = tmp_path / name / "python"
        file.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path / name}" exec "{sys.executable}" "$@"\n')
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture
def options(final, dataset, reading, tmp_path):
    def make(**changes):
        given = {"reference": final.uri, "data": dataset.uri, "out": str(tmp_path / "boxes.csv"), "children": 1}
        return ProposeOptions(**{**given, "cache_dir": reading.cache_dir, "device": "cpu", **changes})

    return make


def test_a_file_of_proposals_is_made_of_labels_and_read_by_its_own_name(python, final, dataset, tmp_path, capsys):
    out = tmp_path / "boxes.csv"
    where = ["--reference", final.uri, "--data", dataset.uri, "--out", str(out), "--proposals-python", python()]
    assert job.main(where) == 0
    told = capsys.readouterr().out
    assert "reference: bas on tiny, selected on val/boxes" in told
    assert f"--select-by proposals:{out}" in told
    found = list(csv.DictReader(io.StringIO(out.read_text())))
    assert {row["made_by"] for row in found} == {"proposals"}
    targets = read_targets(str(out), dataset, "proposals", allow_partial=True)
    assert targets.truth.startswith("proposals:")
    assert 0 < len(targets.boxes) == len(found) <= 25
    sides = {(x1 - x0, y1 - y0) for ((x0, y0, x1, y1),) in targets.boxes.values()}
    assert sides == {(20, 20)}  # the whole image is over 70 %
    for kind in ("pseudo", "detector", "annotated"):
        with pytest.raises(UsageError, match=f"was made by proposals: it is read as proposals:{out} alone"):
            read_targets(str(out), dataset, kind)
    with pytest.raises(UsageError, match="is there already"):
        job.main(where)


def test_proposals_are_those_of_the_image_at_224_pixels(python):
    with selective_search(python(), 2) as find:
        small, large = find([torch.zeros(3, 40, 60, dtype=torch.uint8), torch.zeros(3, 448, 896, dtype=torch.uint8)])
    assert small[0].tolist() == [0, 0, 60, 40]
    assert small[5].tolist() == [15, 10, 45, 30]
    assert large[0].tolist() == [0, 0, 896, 448]  # seen at 224 x 112
    assert large[5].tolist() == [224, 112, 672, 336]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class ximgproc: pass", "'ximgproc' has no attribute 'segmentation'.*opencv-contrib-python-headless"),
        ("", "module 'cv2' has no attribute 'ximgproc'"),
        ("raise SystemExit", "it said nothing"),
    ],
)
def test_an_interpreter_without_selective_search_is_told_how_to_get_it(python, text, told):
    with pytest.raises(UsageError, match=told):
        SelectiveSearch(python(text))


def test_an_interpreter_that_is_none_or_dies_is_said(python):
    with pytest.raises(UsageError, match="--proposals-python /nowhere/python cannot be started"):
        SelectiveSearch("/nowhere/python")
    with SelectiveSearch(python()) as child, pytest.raises(ResourceError, match="died at an image of 60x40"):
        child(torch.full((3, 40, 60), 255, dtype=torch.uint8))


class Brightness(nn.Module):
    """Two classes: the sum of what is over the mean colour, and nothing."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images_BCHW):
        sums_B = images_BCHW.clamp(min=0).sum((1, 2, 3)) * self.scale
        return SimpleNamespace(logits_BK=torch.stack([sums_B, torch.zeros_like(sums_B)], 1))


def test_probabilities_are_those_of_what_is_shown():
    """Two white pixels of four; shown alone, and hidden, by boxes over none, one and both of them."""
    model = SimpleNamespace(method=Brightness(), protocol=protocol("wsol-v1", 2, 2))
    image = torch.tensor([[0, 255], [0, 255]], dtype=torch.uint8).expand(3, 2, 2)
    one = propose.Shown("a", 0, (20, 20), image, image, (0, 0))
    white = sum((1 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True))
    boxes = np.array([[0, 0, 10, 20], [10, 0, 20, 10], [10, 0, 20, 20]], float)
    sigmoid = lambda pixels: 1 / (1 + np.exp(-white * pixels))  # noqa: E731
    assert propose.probability(model, one, boxes) == pytest.approx(sigmoid(np.array([0, 1, 2])), abs=1e-6)
    assert propose.probability(model, one, boxes, alone=False) == pytest.approx(sigmoid(np.array([2, 1, 0])), abs=1e-6)


def shown(peak, size_wh=(40, 40)):
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    return propose.Shown("a", 0, size_wh, image, torch.zeros(3, 20, 20, dtype=torch.uint8), peak)


def test_a_detection_is_the_surest_that_holds_the_peak_and_no_classifier_is_asked(options):
    asked = options(by="detector", mode="boxes", weights="w")
    boxes = np.array([[0, 0, 4, 4], [5, 5, 20, 20], [5, 5, 19, 19]], float)  # of an image shrunk to half
    box, score = propose._best(None, shown((30.0, 30.0)), boxes, asked)
    assert (box.tolist(), score) == ([10, 10, 40, 40], None)
    assert propose._best(None, shown((39.0, 1.0)), boxes, asked) is None
    assert propose._best(None, shown(None), boxes, asked) is None  # a flat map points nowhere


def test_detections_of_any_class_come_surest_first_and_those_under_a_twentieth_do_not():
    detector = CocoDetector.__new__(CocoDetector)
    boxes = torch.arange(16.0).view(4, 4)
    detector.network = lambda images: [{"boxes": boxes, "scores": torch.tensor([0.05, 0.2, 0.9, 0.06])}]
    detector.rpn, detector.device = False, "cpu"
    assert detector(torch.zeros(3, 8, 8, dtype=torch.uint8)).tolist() == boxes[[2, 1, 3]].double().tolist()


def test_an_rpn_proposes_in_pixels_of_the_image(tmp_path):
    arch = "fasterrcnn_mobilenet_v3_large_320_fpn"
    torch.manual_seed(0)
    safetensors.torch.save_file(build(arch, 91).state_dict(), tmp_path / "w.safetensors")
    boxes = CocoDetector(arch, str(tmp_path / "w.safetensors"), rpn=True)(
        torch.randint(0, 256, (3, 64, 90), dtype=torch.uint8)
    )
    assert 0 < len(boxes) <= 300
    assert boxes.min() >= 0
    assert boxes.max(0) == pytest.approx([90, 64, 90, 64], rel=0.2)  # shown at 320 pixels or more
    assert (boxes <= [90.01, 64.01, 90.01, 64.01]).all()


def test_classes_of_coco_are_known_by_their_last_words():
    classes = ("n03417042 garbage truck", "church", "cat", "n03445777 golf ball", "cattle")
    assert shared_with_coco(classes) == ["n03417042 garbage truck", "cat"]


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"weights": "nowhere.pth"}, UsageError, "There is no file of weights at 'nowhere.pth'"),
        ({"weights": "broken.pth"}, DataError, "broken.pth holds no weights"),
        ({"weights": "empty.pth"}, DataError, "empty.pth holds no weights: EOFError"),
        ({"weights": "half.pth"}, DataError, "half.pth holds no weights: 97"),
        ({"weights": "broken.safetensors"}, DataError, "broken.safetensors holds no weights"),
        ({"weights": "other.pth"}, DataError, "other.pth holds no ssdlite320.*of COCO's 91 classes"),
        ({"arch": "ssd300"}, UsageError, "Unknown detector 'ssd300'. Did you mean 'ssd300_vgg16'"),
        ({"mode": "rpn"}, UsageError, "--mode rpn needs a detector with an RPN"),
    ],
)
def test_a_detector_that_is_not_what_it_should_be_is_refused(options, tmp_path, monkeypatch, changes, kind, told):
    monkeypatch.chdir(tmp_path)
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"<html>")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "half.pth").write_bytes(b"half of it")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    given = {"by": "detector", "mode": "boxes", "arch": "ssdlite320_mobilenet_v3_large", "weights": "other.pth"}
    with pytest.raises(kind, match=told):
        propose.propose(options(**{**given, **changes}))
    assert not (tmp_path / "boxes.csv").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"multilabel": True}, UsageError, "it takes data of one class an image"),
        ({"classes": ("a", "b", "c")}, DataError, r"The reference knows 3 classes \(a, ...\).*has 3 \(cross"),
        ({"cuts_own_mask": True}, UsageError, "cuts masks, which have no peak"),
    ],
)
def test_a_reference_that_cannot_point_is_refused(dataset, changes, kind, told):
    good = {"multilabel": False, "classes": dataset.classes, "cuts_own_mask": False}
    model = SimpleNamespace(config=SimpleNamespace(readout="bcam"), **{**good, **changes})
    with pytest.raises(kind, match=told):
        propose._check_fits(model, dataset)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"data": "d", "proposals_python": "p"}, "a classifier is needed: --reference or --study"),
        ({"reference": "m", "proposals_python": "p"}, "--data is needed"),
        ({"study": "s"}, "needs --proposals-python"),
        ({"study": "s", "by": "detector"}, "needs --weights"),
        ({"study": "s", "proposals_python": "p", "children": -1}, "children cannot be negative"),
    ],
)
def test_options_that_say_too_little_are_refused(given, told):
    with pytest.raises(UsageError, match=told):
        ProposeOptions(**given)
