"""Class masks against one confusion matrix per threshold, as chainercv evaluates VOC's seeds; multi-label counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.detection import average_precision
from wsol_pipeline.evaluation.evaluate import count, detect
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.segmentation import class_metrics, count_classes
from wsol_pipeline.evaluation.selection import Choice, choose, oracle, transferred
from wsol_pipeline.protocol import Role

K = 4
RULE = protocol("voc-miou", 16, 16)


class Rows:
    """Five images of 16 x 12 with one to three of four classes, a void column and boxes; stored at this size."""

    role, box_convention, has_masks, num_classes = Role.VAL, "inclusive0", True, K

    def __init__(self, part=slice(None)):
        rng = np.random.default_rng(0)
        images = torch.from_numpy(rng.integers(0, 255, (5, 3, 12, 16), np.uint8))
        labels, masks, boxes, box_labels = torch.zeros(5, K), [], [], []
        for number in range(5):
            present = rng.permutation(K)[: 1 + number % 3]
            labels[number, present] = 1
            mask = np.kron(rng.choice([0, *(present + 1)], (3, 4)), np.ones((4, 4))).astype(np.uint8)
            mask[:, 0] = 255
            masks.append(mask)
            boxes.append(np.array([[2 * c, 1, 2 * c + 5, 8] for c in present], np.float32))
            box_labels.append(present)
        self.batch = SimpleNamespace(
            ids=list("abcde")[part], images_BCHW=images[part], labels_B=labels[part], masks=masks[part],
            boxes=boxes[part], box_labels=box_labels[part], sizes_B2=np.array([[16, 12]] * 5)[part], whole_BCHW=None,
            stored_BCHW=None,
        )  # fmt: skip

    def batches(self):
        yield self.batch


class Grey(nn.Module):
    def forward(self, images_BCHW):
        return SimpleNamespace(logits_BK=torch.arange(K).float().expand(len(images_BCHW), K))


class ClassMaps:
    """A map of its own per class and image, at 6 x 8."""

    def settings(self, method):
        return ["a", "b"]

    def maps(self, method, images_BCHW, classes_B, setting, output=None):
        low_BHW = images_BCHW.mean(1)[:, ::2, ::2]
        return (low_BHW * (classes_B + 1)[:, None, None] + (setting == "b")).sin().clamp(min=0)

    def search(self, method, images_BCHW, classes_B, output=None):
        for setting in self.settings(method):
            yield setting, self.maps(method, images_BCHW, classes_B, setting)


def reference(rows, setting, threshold):
    """One confusion matrix over the split: argmax over a constant background score and the classes' maps."""
    matrix = np.zeros((K + 1, K + 1))
    batch = rows.batch
    for i, label_HW in enumerate(batch.masks):
        scores = np.full((K + 1, 12, 16), -1.0)
        scores[0] = threshold
        for c in np.flatnonzero(batch.labels_B[i].numpy()):
            images = batch.images_BCHW[i : i + 1].float() / 255 - 0.5
            raw = ClassMaps().maps(None, images, torch.tensor([c]), setting)[0]
            scores[c + 1] = normalised_map(raw.numpy(), RULE, (16, 12))
        known = label_HW != 255
        matrix += confusion_matrix(label_HW[known], scores.argmax(0)[known], labels=range(K + 1))
    return matrix


def by_definition(matrix):
    tp, true, claimed, total = matrix.diagonal(), matrix.sum(1), matrix.sum(0), matrix.sum()
    with np.errstate(invalid="ignore"):
        return {
            "miou": np.nanmean(tp / (true + claimed - tp)),
            "mean_recall": np.nanmean(tp / true),
            "mean_precision": np.nanmean(tp / claimed),
            "mean_specificity": np.nanmean((total - true - claimed + tp) / (total - true)),
        }


def counted(rows, **options):
    prepare = lambda images, device, dtype: images.to(dtype) / 255 - 0.5  # noqa: E731
    return count(Grey(), ClassMaps(), rows, RULE, prepare=prepare, **options)


def test_every_threshold_equals_its_confusion_matrix():
    rows = Rows()
    counts = counted(rows)
    metrics = class_metrics(counts.class_pixels)
    for s, setting in enumerate("ab"):
        for t in (0, 1, 77, 200, 440, 800, 999):
            for name, value in by_definition(reference(rows, setting, RULE.thresholds[t])).items():
                assert metrics[name][s, t] == pytest.approx(value, abs=1e-12), (name, setting, t)


def test_the_background_threshold_is_chosen_and_read():
    rows = Rows()
    counts = counted(rows)
    choice = choose(counts, "miou")
    (threshold,) = choice.thresholds["miou"]
    expected = by_definition(reference(rows, choice.readout, threshold))
    for read in (transferred, oracle):
        values = read(counts, choice)
        assert {name: values[name] for name in expected} == pytest.approx({n: 100 * v for n, v in expected.items()})
    assert choice.value == pytest.approx(max(class_metrics(counts.class_pixels)["miou"].max(1)) * 100)
    with pytest.raises(UsageError, match="metric of these counts 'mean_recal'"):
        choose(counts, "mean_recal")


def test_parts_merge_to_the_whole():
    whole = counted(Rows())
    merged = counted(Rows(slice(0, 2))) + counted(Rows(slice(2, 5)))
    np.testing.assert_array_equal(merged.class_pixels, whole.class_pixels)
    np.testing.assert_array_equal(type(whole).from_dict(whole.to_dict()).class_pixels, whole.class_pixels)


def test_by_hand():
    """Of six pixels one is void; class 1 claims two, one rightly; class 0 has none of its own."""
    maps_CHW = np.array([[[0.1, 0.4, 0.2], [0.9, 0.5, 0]], [[0.1, 0.6, 0.8], [0.1, 0.1, 0.3]]])
    labels_HW = np.array([[0, 0, 2], [1, 255, 2]], np.uint8)
    pixels = count_classes(maps_CHW, np.array([0, 1]), labels_HW, np.array([0.0, 0.25, 0.5, 0.75]), 2)
    metrics = class_metrics(pixels[None])
    # At .5: claimed bg, 2, 2 / 1, -, bg for true 0 0 2 / 1 - 2
    assert metrics["miou"][0, 2] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert metrics["mean_recall"][0, 2] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert metrics["mean_specificity"][0, 2] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    # At 0 nothing is background: its precision is 0 / 0. Class 0 claims the first pixel, as of equal maps the first
    # wins, and its own; class 1 the rest, two rightly.
    assert metrics["mean_precision"][0, 0] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(DataError, match=r"in 0..2 or 255 but one is 3"):
        count_classes(np.zeros((1, 1, 1)), np.array([0]), np.array([[3]], np.uint8), RULE.thresholds, 2)
    with pytest.raises(ValueError, match="maps' size"):
        count_classes(np.zeros((1, 2, 1)), np.array([0]), np.array([[3]], np.uint8), RULE.thresholds, 2)


def test_single_labels_have_no_class_masks():
    rows = Rows()
    rows.batch.labels_B = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(DataError, match="voc-miou scores class masks"):
        counted(rows)


def test_pairs_of_image_and_class_count_like_images():
    """Each with the boxes of its class alone: of ten pairs, images and classes stand in the order of images.

    The higher the class, the higher its score; an image's other classes are not in its way.
    """
    rows = Rows()
    done = []
    counts = count(
        Grey(), ClassMaps(), rows, protocol("mldfr-multi", 16, 16), settings=["a"], keep_images=True,
        on_batch=done.append,
    )  # fmt: skip
    expected = [(i, c) for i, row in enumerate(rows.batch.labels_B) for c in np.flatnonzero(row.numpy())]
    assert counts.images.tolist() == [len(expected)]
    assert counts.image_hits.ids == tuple("abcde"[i] for i, _ in expected)
    assert counts.image_hits.labels.tolist() == [c for _, c in expected]
    absent_BK = rows.batch.labels_B.numpy() == 0
    assert counts.image_hits.ranks.tolist() == [absent_BK[i, c + 1 :].sum() for i, c in expected]
    assert done == [5]


def test_a_class_mask_is_an_object_mask_for_each_class():
    rows, rule = Rows(), protocol("wsol-mask", 16, 16)
    rows.batch.masks = [np.pad(mask, ((0, 4), (0, 0))) for mask in rows.batch.masks]
    counts = count(Grey(), ClassMaps(), rows, rule)
    objects = sum((rows.batch.masks[i] == c + 1).sum() for i, c in rows.batch.labels_B.nonzero().tolist())
    others = sum((rows.batch.masks[i] != 255).sum() for i, _ in rows.batch.labels_B.nonzero().tolist()) - objects
    assert counts.mask_pixels.sum(-1).tolist() == [[others, objects]] * 2


class Blocks:
    """The map of a class is 4 on the upper left of its box; nothing else of the image."""

    def maps(self, method, images_BCHW, classes_B, setting, output=None):
        assert setting == "a"
        maps_BHW = torch.zeros(len(images_BCHW), 12, 16)
        for map_HW, c in zip(maps_BHW, classes_B.tolist(), strict=True):
            map_HW[1:9, 2 * c : 2 * c + 6] = 4
        return maps_BHW


def test_detections_of_every_class_that_scores():
    """Logits 0 to 3 all reach a sigmoid of .5: four boxes an image, right where the class is there."""
    rows, rule = Rows(), protocol("mldfr-multi", 16, 16)
    choice = Choice("gt_known_loc", 0.0, 0, "a", {"gt_known_loc": (0.2,)})
    found, truth = detect(Grey(), Blocks(), rows, rule, choice)
    assert [(d.image, d.label) for d in found] == [(i, c) for i in "abcde" for c in range(K)]
    assert found[1].box == (2, 1, 7, 8)
    assert found[1].score == pytest.approx(4 / (1 + np.exp(-1)), rel=1e-6)
    assert len(truth) == int(rows.batch.labels_B.sum())
    # One score per class: right ones and wrong ones tie and stand in the order of images.
    there = rows.batch.labels_B[:, 0].numpy().astype(bool)
    precision = there.cumsum() / np.arange(1, 6)
    recall = there.cumsum() / there.sum()
    expected = np.mean([precision[recall >= r / 10].max() for r in range(11)])
    assert average_precision(found, truth, 0, 0.5) == pytest.approx(expected)
    assert len(detect(Grey(), Blocks(), rows, rule, choice, min_score=0.9)[0]) == 5
    assert detect(Grey(), Blocks(), rows, rule, choice, min_score=0.99)[0] == []
