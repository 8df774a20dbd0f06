import copy

import cv2
import numpy as np
import pytest
import torch

from wsol_pipeline.evaluation.contours import iou_matrix, ious_of_boxes
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import (
    LocalizationCounts,
    all_boxes,
    found,
    ious_per_threshold,
    mask_at,
    predicted_box,
)
from wsol_pipeline.evaluation.protocols import protocol


def smooth(seed, size=28):
    return cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(size, size)), (0, 0), 2.5).astype(np.float32)


def reference_ious(oracle, raw, truth, name):
    """Best IoU at each of 1000 thresholds as the authors' loops compute it, one mask at a time."""
    rule = protocol(name)
    map_HW = normalised_map(raw, rule)
    ious, seen = [], {}
    for tau in np.arange(0, 1, 0.001):
        if name.startswith("mldfr"):
            cut = np.where(map_HW < tau, 0, map_HW)
            mask = cut >= cut.mean()
        elif name.startswith("wsol"):
            levels = (map_HW * 255).astype(np.uint8)
            mask = levels > int(tau * np.max(levels))
        else:
            mask = map_HW > np.float32(tau)
        key = mask.tobytes()
        if key not in seen:
            seen[key] = oracle.best_iou(oracle.boxes_of(mask, rule.box_rule), truth.tolist())
        ious.append(seen[key])
    return np.array(ious)


@pytest.mark.parametrize("name", ["wsol-v1", "wsol-v2", "bas-ext", "bas-conf", "mldfr", "mldfr-multi"])
@pytest.mark.parametrize("kind", ["smooth", "coarse", "constant", "nan"])
def test_a_whole_map_equals_the_loop_over_thresholds(oracle, name, kind):
    raw = smooth(7, 14 if kind == "coarse" else 28)
    if kind == "constant":
        raw[:] = 2.0
    if kind == "nan":
        raw[3, 4] = np.nan
    truth = np.array([[30.0, 40, 150, 160], [100, 20, 223, 90]])
    np.testing.assert_array_equal(
        ious_per_threshold(raw, truth, protocol(name)), reference_ious(oracle, raw, truth, name)
    )


def plateau(box, size=8):
    """A map that is 1 in a box (inclusive) and 0 elsewhere, whose box is the same at every threshold."""
    raw = np.zeros((size, size), np.float32)
    raw[box[1] : box[3] + 1, box[0] : box[2] + 1] = 1
    return raw


RULE = protocol("bas-ext", 8, 8)  # at its own size, so that pixels are countable by hand


def test_counts_by_hand():
    # The predicted box is (2, 2, 4, 4) with its exclusive maximum, 9 pixels under the IoU's +1.
    maps = np.stack([plateau((2, 2, 3, 3))] * 3)
    boxes = [
        np.array([[2.0, 2, 4, 4]]),  # IoU 1
        np.array([[2.0, 2, 4, 7]]),  # 9 / 18 = .5: found at .3 and .5
        np.array([[7.0, 7, 7, 7], [4, 2, 4, 4]]),  # best 3 / 9 = .333: found at .3
    ]
    metric = LocalizationCounts(RULE)
    metric.update(0, maps, boxes, torch.tensor([1, 0, 7]))
    assert metric.hits[0, :, 500].tolist() == [3, 2, 1]
    assert metric.top1_hits[0, :, 500].tolist() == [1, 1, 0]
    assert metric.top5_hits[0, :, 500].tolist() == [2, 2, 1]
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx(
        {
            "max_box_acc_iou30": 100,
            "max_box_acc_iou50": 200 / 3,
            "max_box_acc_iou70": 100 / 3,
            "max_box_acc_v2": 200 / 3,
            "gt_known_loc": 200 / 3,
            "top1_loc": 100 / 3,
            "top5_loc": 200 / 3,
            "top1_loc_30": 100 / 3,
            "top1_loc_70": 0,
            "top1_loc_mean": 200 / 9,
            "mean_iou": 100 * (1 + 1 / 2 + 1 / 3) / 3,
            "cls_top1": 100 / 3,
            "cls_top5": 200 / 3,
            "ois_iou30": 100,
            "ois_iou50": 200 / 3,
            "ois_iou70": 100 / 3,
        }
    )


def test_conference_rule_asks_for_more_than_half():
    ious = np.array([0.3, 0.5, 0.7])
    assert found(ious, protocol("bas-conf")).sum(1).tolist() == [2, 1, 0]
    assert found(ious, protocol("bas-ext")).sum(1).tolist() == [3, 2, 1]


def test_a_box_outside_the_crop_is_a_miss():
    truth = np.array([[3.0, 3, 2, 6]])  # inverted by one pixel: with +1 its width is 0
    assert not ious_per_threshold(plateau((0, 0, 7, 7)), truth, RULE).any()


def test_predicted_box():
    assert predicted_box(plateau((2, 1, 5, 6)), 0.5, RULE).tolist() == [2, 1, 6, 7]
    assert predicted_box(np.zeros((8, 8)), 0.5, RULE).tolist() == [0, 0, 8, 8]
    assert predicted_box(np.zeros((8, 8)), 0.5, protocol("wsol-v1", 8)).tolist() == [0, 0, 0, 0]


def batches(num_images=12):
    rng = np.random.default_rng(0)
    maps = torch.stack([torch.from_numpy(smooth(s)) for s in range(num_images)])
    near = [predicted_box(m.numpy(), 0.5, protocol("wsol-v1")) for m in maps]  # so that some thresholds hit
    boxes = [(box + rng.integers(-9, 9, 4)).clip(0, 223)[None].astype(float) for box in near]
    return maps, boxes, torch.arange(num_images) % 7


def test_shards_merge_to_the_whole():
    maps, boxes, ranks = batches()
    rule = protocol("wsol-v2")
    whole, parts = LocalizationCounts(rule, keep_images=True), []
    whole.update(0, maps, boxes, ranks)
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        shard = LocalizationCounts(rule, keep_images=True)
        shard.update(0, maps[part], boxes[part], ranks[part])
        parts.append(shard)
    assert 0 < whole.top1_hits.max() < whole.top5_hits.max() < whole.hits.max()
    expected, merged = whole.counts(), parts[0].counts() + parts[1].counts() + parts[2].counts()
    for name in ("hits", "top1_hits", "top5_hits", "top1", "top5", "images"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(expected, name))
    np.testing.assert_array_equal(merged.image_hits.bits, expected.image_hits.bits)
    np.testing.assert_array_equal(merged.image_hits.ranks, ranks)
    parts[0].merge_state(parts[1])
    parts[0].merge_state(parts[2])
    assert all(torch.equal(parts[0].compute()[name], value) for name, value in whole.compute().items())


def test_settings_do_not_mix():
    maps, boxes, ranks = batches(4)
    metric = LocalizationCounts(protocol("wsol-v1"), num_settings=2)
    metric.update(0, maps, boxes, ranks)
    metric.update(1, maps.flip(-1), boxes, ranks)
    alone = LocalizationCounts(protocol("wsol-v1"))
    alone.update(0, maps.flip(-1), boxes, ranks)
    assert torch.equal(metric.hits[1], alone.hits[0])
    assert not torch.equal(metric.hits[0], metric.hits[1])


def test_as_many_boxes_as_maps():
    maps, boxes, ranks = batches(4)
    with pytest.raises(ValueError, match="zip"):
        LocalizationCounts(protocol("wsol-v1")).update(0, maps, boxes[:3], ranks)


def test_images_are_kept_for_one_setting_only():
    with pytest.raises(ValueError, match="one setting but there are 2"):
        LocalizationCounts(protocol("wsol-v1"), num_settings=2, keep_images=True)


def test_threads_change_nothing():
    maps, boxes, ranks = batches()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            metric = LocalizationCounts(protocol("wsol-v2"), keep_images=True)
            metric.update(0, maps, boxes, ranks)
            found.append(metric.counts(map(str, range(12)), range(12)).image_hits.bits)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", ["wsol-v1", "wsol-v2", "bas-ext", "mldfr", "mldfr-multi"])
def test_all_boxes_are_those_of_the_slow_way_and_give_the_best_iou(oracle, name):
    rule, truth = protocol(name), np.array([[40.0, 30, 150, 160], [5, 5, 20, 40]])
    for seed, threshold in zip(range(6), (0.0, 0.2, 0.35, 0.5, 0.7, 0.9), strict=True):
        raw = smooth(seed)
        boxes = all_boxes(raw, threshold, rule, (224, 224))
        expected = oracle.boxes_of(mask_at(raw, threshold, rule, (224, 224)), rule.box_rule)
        assert sorted(map(tuple, boxes.tolist())) == sorted(expected)
        at = int(np.abs(rule.thresholds - threshold).argmin())
        assert ious_of_boxes(boxes, truth).max() == ious_per_threshold(raw, truth, rule, (224, 224))[at]
    assert all_boxes(np.zeros((4, 4)), 0.5, rule, (8, 8)).tolist() == [
        predicted_box(np.zeros((4, 4)), 0.5, rule, (8, 8)).tolist()
    ]


def test_iou_matrix_by_hand():
    """4x4 boxes, inclusive: equal 1, half of one in the other 8 / 24, apart 0; an inverted true box is never met."""
    boxes = np.array([[0, 0, 3, 3], [2, 0, 5, 3]])
    truth = np.array([[0.0, 0, 3, 3], [9, 9, 12, 12], [3, 3, 0, 0]])
    np.testing.assert_allclose(iou_matrix(boxes, truth), [[1, 0, 0], [1 / 3, 0, 0]])
    np.testing.assert_array_equal(iou_matrix(boxes, truth).max(1), ious_of_boxes(boxes, truth))


@pytest.mark.parametrize("settings", [1, 2])
def test_computed_metrics_are_per_setting(settings):
    maps, boxes, ranks = batches(4)
    metric = LocalizationCounts(protocol("wsol-v1"), num_settings=settings)
    for setting in range(settings):
        metric.update(setting, maps, boxes, ranks)
    for computed in (metric.compute(), copy.deepcopy(metric).compute()):
        assert all(values.shape == (settings,) for values in computed.values())


def test_overlapping_masks_of_classes_go_to_the_higher_object():
    """Positions of two classes: S = (3, 5), B = (1, 9) is the first's; B = (1, 1) the second's; B = (4, 9) nobody's."""
    above, below = torch.tensor([[3.0, 3, 3], [5, 5, 5]]), torch.tensor([[1.0, 1, 4], [9, 1, 9]])
    maps = torch.stack([above, below], 1)[:, :, None].repeat(1, 1, 3, 1)
    labels = np.array([[1, 2, 0]] * 3, np.uint8)
    metric = LocalizationCounts(protocol("voc-miou", 3, 3), masks=True, num_classes=2)
    pairs = np.array([0, 0]), np.array([0, 1])
    metric.update(0, maps, [np.empty((0, 4))] * 2, [0, 0], [labels, labels], [(3, 3)] * 2, pairs)
    assert metric.compute()["miou"].tolist() == [100]
