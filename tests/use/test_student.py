"""A detector that learns from a teacher's boxes: which, how, and how it is judged beside its teacher."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from rayjobs import detector as job
from rayjobs import localize
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.images import normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.training.model import load_model
from wsol_pipeline.use import detectors, judged_student, student
from wsol_pipeline.use.judged_student import Judged, iou_of_best, verdict
from wsol_pipeline.use.options import DetectorOptions
from wsol_pipeline.use.student import Sample

GIVEN = {"taught": "t", "study": "s", "steps": 4, "batch_size": 2}


def tiny(arch, num_classes, **options):
    """A RetinaNet of eight channels, of one level of anchors."""
    backbone = nn.Sequential(nn.Conv2d(3, 8, 5, 8, 2), nn.ReLU())
    backbone.out_channels = 8
    anchors = AnchorGenerator(((16, 28),), ((1.0,),))
    return RetinaNet(
        backbone,
        num_classes,
        min_size=40,
        max_size=90,
        anchor_generator=anchors,
        score_thresh=0.0,
        detections_per_img=10,
    )


def sample(share=0.25, label=0, number=0, size_wh=(100, 50)):
    """A box of the image's shape at its left upper corner."""
    side = share**0.5
    item = {"index": number, "image_id": f"{number}.jpg", "uri": f"{number}.jpg"}
    return Sample(item, label, (0.0, 0.0, side * size_wh[0], side * size_wh[1]), size_wh, "")


@pytest.fixture(scope="module")
def taught(final, dataset, tmp_path_factory):
    """A storage with the teacher's study, and its boxes of all training images."""
    place = tmp_path_factory.mktemp("taught")
    record = {"schema": SCHEMA, "published": None, "data": dataset.uri, **model_named(final, Store.at(place))}
    Store.at(place).write("bas/winner.json", json.dumps(record).encode())
    where = ["--study", "bas", "--storage", str(place), "--labels", "folder", "--device", "cpu"]
    assert localize.main([*where, "--source", f"{dataset.uri}:train", "--out", str(place / "boxes")]) == 0
    return place


def run(taught, out, *more):
    where = ["--from", str(taught / "boxes"), "--study", "bas", "--storage", str(taught), "--device", "cpu"]
    return job.main([*where, "--steps", "3", "--batch-size", "2", "--out", str(out), *more])


def test_a_student_is_trained_and_stands_beside_its_teacher_once(taught, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detectors, "build", tiny)
    assert run(taught, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "centred boxes" in told
    assert "The student is " in told
    kept = json.loads((tmp_path / "out/student.json").read_text())
    teacher, pupil, control = kept["rows"]
    assert [row["name"] for row in (teacher, pupil, control)] == ["teacher", "student", "centred boxes"]
    assert set(map(tuple, teacher["beyond"].values())) == {(0.0, 0.0, 0.0)}
    for metric, (difference, low, high) in pupil["beyond"].items():
        assert difference == pytest.approx(pupil["figures"][metric] - teacher["figures"][metric])
        assert low <= difference + 1e-9
        assert difference - 1e-9 <= high
    assert 0 < kept["boxes"] <= dataset.train.num_rows
    assert (tmp_path / "out/student.safetensors").exists()
    with pytest.raises(UsageError, match="a student is judged once"):
        run(taught, tmp_path / "out")


def test_a_student_that_died_goes_on_and_only_as_it_was_begun(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "build", tiny)
    monkeypatch.setattr(student, "KEEP_EVERY", 1)
    with monkeypatch.context() as patch:
        patch.setattr(judged_student, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(taught, tmp_path / "out")
    with pytest.raises(UsageError, match="There is no file of weights at 'nowhere.pth'"):
        run(taught, tmp_path / "out", "--weights", "nowhere.pth")
    with pytest.raises(UsageError, match="was begun otherwise .*seed"):
        run(taught, tmp_path / "out", "--seed", "1")
    monkeypatch.setattr(student, "_step", lambda *_: pytest.fail("a step was done twice"))
    assert run(taught, tmp_path / "out") == 0
    assert not (tmp_path / "out/trainings").exists()


def test_what_cannot_be_learned_from_is_refused_before_test_is_opened(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(judged_student, "judge", lambda *_: pytest.fail("test was opened"))
    store = Store.at(taught / "boxes")
    contract = json.loads(store.read("contract.json"))
    with monkeypatch.context() as patch:
        patch.setattr(judged_student, "read_contract", lambda _: {**contract, "model_sha256": "0"})
        with pytest.raises(DataError, match="was localized by another model"):
            run(taught, tmp_path / "a")
    some = student.samples(store)
    for changed, told in (
        ([Sample({**some[0].item, "image_id": "x"}, 0, (0, 0, 1, 1), (9, 9), "")], "has test images .x first."),
        ([], "no box that takes 2 to 95 %"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(student, "samples", lambda _, changed=changed: changed)
            patch.setattr("wsol_pipeline.data.dataset.Dataset.ids_of", lambda *_: ["x"])
            with pytest.raises(DataError, match=told):
                run(taught, tmp_path / "a")


def test_boxes_of_predicted_classes_teach_nothing(final, photographs, tmp_path):
    where = ["--model", final.uri, "--source", str(photographs), "--out", str(tmp_path / "out"), "--device", "cpu"]
    localize.main(where)
    with pytest.raises(UsageError, match="has predicted classes: localize with --labels"):
        student.samples(Store.at(tmp_path / "out"))


def test_boxes_that_are_tiny_or_nearly_the_image_teach_nothing(taught, monkeypatch):
    store = Store.at(taught / "boxes")
    shares = sorted(one.share for one in student.samples(store))
    assert shares[0] >= student.LEAST_AREA
    assert shares[-1] <= student.MOST_AREA
    low, high = shares[len(shares) // 4], shares[len(shares) // 2]
    monkeypatch.setattr(student, "LEAST_AREA", low)
    monkeypatch.setattr(student, "MOST_AREA", high)
    assert sorted(one.share for one in student.samples(store)) == [one for one in shares if low <= one <= high]


def test_of_each_class_the_best_four_in_five_by_evidence_teach():
    some = [sample(label=number % 2, number=number) for number in range(11)]
    gains = np.array([0.9, 0.1, 0.1, 0.2, np.nan, 0.3, 0.5, 0.4, 0.6, 0.5, 0.7])
    kept = [one.item["index"] for one in student.best_of_classes(some, gains)]
    assert kept == [0, 2, 3, 5, 6, 7, 8, 9, 10]  # ceil(.8 · 6) = 5 of the even ones, 4 of 5 of the odd


def test_the_control_has_boxes_of_the_median_share_in_the_middle():
    found = student.centred([sample(0.04), sample(0.25), sample(0.81)])
    assert [one.box for one in found] == [(25.0, 12.5, 75.0, 37.5)] * 3
    assert found[0].share == 0.25


def test_evidence_is_what_the_classifier_loses_without_the_mask(taught, final):
    """The gain of docs/labels-only.md, from the photograph by hand."""
    teacher, one = load_model(final), student.samples(Store.at(taught / "boxes"))[3]
    (gain,) = student.evidence(teacher, [one], lambda more: None)
    seen = teacher.prepare(student.pixels(one.item)).image_CHW
    image = normalize(seen[None])
    mask = torch.from_numpy(student._seen_mask(one, student.Frame.of(one.size_wh, teacher.protocol), seen.shape[1:]))
    with torch.no_grad():
        with_it, without = (
            max(0.0, float(teacher.method(of).logits_BK[0, one.label])) for of in (image, image * ~mask)
        )
    area = float(mask.double().mean())
    assert 0 < area < 1
    expected = np.nan if with_it == 0 else 1 - (min(without / (with_it + 1e-8), 1) + area)
    assert gain == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_mirrored_image_has_a_mirrored_box(monkeypatch):
    monkeypatch.setattr(student, "pixels", lambda item: torch.arange(8, dtype=torch.uint8).expand(3, 4, 8))
    one = Sample({}, 2, (1.0, 0.0, 3.0, 4.0), (8, 4), "")
    image, target = student.shown(one, False, "cpu")
    flipped, mirrored = student.shown(one, True, "cpu")
    assert target["boxes"].tolist() == [[1, 0, 3, 4]]
    assert mirrored["boxes"].tolist() == [[5, 0, 7, 4]]
    assert target["labels"].tolist() == [3]  # 0 is the background
    assert torch.equal(image[..., 1:3], flipped[..., 5:7].flip(2))


def test_every_sample_comes_before_any_comes_again_and_the_same_seed_draws_the_same():
    some = [sample(number=number) for number in range(5)]
    drawn = list(student.batches(some, DetectorOptions(**{**GIVEN, "steps": 5})))
    again = list(student.batches(some, DetectorOptions(**{**GIVEN, "steps": 5})))
    order = [one.item["index"] for batch in drawn for one, _ in batch]
    assert sorted(order[:5]) == sorted(order[5:]) == [0, 1, 2, 3, 4]
    assert drawn == again


def test_a_student_learns_a_box(monkeypatch, tmp_path):
    """The loss on one image falls; how far is no subject here."""
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, 6:34, 6:34] = 255
    monkeypatch.setattr(student, "pixels", lambda item: image)
    one = Sample({}, 0, (6.0, 6.0, 34.0, 34.0), (40, 40), "")
    torch.manual_seed(0)
    network = tiny("", 2)

    def loss():
        images, targets = zip(student.shown(one, False, "cpu"), strict=True)
        network.train()
        return float(sum(network(list(images), list(targets)).values()).detach())

    before, steps = loss(), []
    kept = student.Kept(Store.at(tmp_path), "a.pt")
    student.train(network, [one], DetectorOptions(**{**GIVEN, "steps": 30}), "cpu", kept, steps.append)
    assert sum(steps) == 60  # images
    assert not network.training
    assert loss() < before


def test_a_loss_that_is_no_number_ends_it(monkeypatch, tmp_path):
    monkeypatch.setattr(student, "pixels", lambda item: torch.zeros(3, 40, 40, dtype=torch.uint8))
    network = tiny("", 2)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.inf)
    kept = student.Kept(Store.at(tmp_path), "a.pt")
    with pytest.raises(DataError, match=r"loss is (nan|inf): --learning-rate 0.005 is too much"):
        student.train(network, [sample(size_wh=(40, 40))], DetectorOptions(**GIVEN), "cpu", kept, lambda more: None)


def test_a_training_that_was_killed_ends_as_one_that_was_not(monkeypatch, tmp_path):
    """Killed after step 3, with the last file of step 2: steps 3 to 7 follow, with their images, rates and draws."""
    monkeypatch.setattr(student, "pixels", lambda item: torch.full((3, 40, 40), 20 * item["index"], dtype=torch.uint8))
    monkeypatch.setattr(student, "KEEP_EVERY", 2)
    some = [sample(number=number, size_wh=(40, 40)) for number in range(5)]
    options = DetectorOptions(**{**GIVEN, "steps": 7})

    def ended(name, add):
        torch.manual_seed(1)
        network = tiny("", 2)
        student.train(network, some, options, "cpu", student.Kept(Store.at(tmp_path), name), add)
        return network.state_dict()

    def dies(more, told=[]):  # noqa: B006
        told.append(more)
        if sum(told) == 6:  # images
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ended("killed", dies)
    steps = []
    again, whole = ended("killed", steps.append), ended("whole", lambda more: None)
    assert steps == [4, 2, 2, 2, 2, 2]
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    (tmp_path / "killed").write_bytes(b"half of it")
    with pytest.raises(DataError, match="killed was altered: without it this training begins anew"):
        ended("killed", steps.append)


def test_weights_of_a_backbone_or_of_a_detector_of_other_classes_are_a_start(tmp_path):
    network = tiny("", 3)
    other = {name: torch.full_like(tensor, 7) for name, tensor in tiny("", 5).state_dict().items()}
    torch.save(other, tmp_path / "detector.pth")
    count = student.begin(network, str(tmp_path / "detector.pth"))
    new = {name for name, tensor in network.state_dict().items() if not (tensor == 7).all()}
    assert new == {name for name in new if name.startswith("head.classification_head.cls_logits")}
    assert count == len(other) - len(new) > 0
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "none.pth")
    with pytest.raises(DataError, match="fits neither this detector nor its backbone; it has fc.weight"):
        student.begin(network, str(tmp_path / "none.pth"))
    classifier = detectors.build("retinanet_resnet50_fpn_v2", 3)
    torch.save({"conv1.weight": torch.full((64, 3, 7, 7), 7.0), "fc.bias": torch.zeros(9)}, tmp_path / "resnet.pth")
    assert student.begin(classifier, str(tmp_path / "resnet.pth")) == 1
    assert (classifier.state_dict()["backbone.body.conv1.weight"] == 7).all()


def test_the_best_box_counts_as_the_protocol_does():
    """Both scaled to 32 pixels and truncated: 10..20 of 40 is 8..15 with its last pixel, 8 pixels wide."""
    rules = protocol("wsol-v1", 32, 36)
    truth = np.array([[8.0, 8, 15, 15]])
    assert iou_of_best(np.array([[10.0, 10, 20, 20], [0, 0, 40, 40]]), truth, (40, 40), rules) == 1
    assert iou_of_best(np.array([[10.0, 10, 30, 20]]), truth, (40, 40), rules) == pytest.approx(64 / (16 * 8))
    assert iou_of_best(np.empty((0, 4)), truth, (40, 40), rules) == 0


@pytest.mark.parametrize(
    ("beyond", "told"),
    [((3.0, 1.0, 5.0), "better than"), ((-3.0, -5.0, -0.1), "worse than"), ((2.0, -0.5, 4.0), "equal to")],
)
def test_a_student_within_the_interval_is_called_equal(beyond, told):
    rows = [Judged("student", {}, 0.0, {"max_box_acc_v2": beyond, "gt_known_loc": beyond})]
    assert verdict(rows).startswith(f"The student is {told} its teacher")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"taught": ""}, "--from must say"),
        ({"study": ""}, "--study must name the teacher"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"seed": -1}, "seed cannot be negative"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, told):
    with pytest.raises(UsageError, match=told):
        DetectorOptions(**{**GIVEN, **changes})
