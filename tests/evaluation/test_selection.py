import json
from dataclasses import replace

import numpy as np
import pytest

from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import (
    at_threshold,
    balanced,
    best,
    bootstrap,
    choose,
    class_weights,
    errors,
    objectives,
    oracle,
    resampled,
    transferred,
)

GRID = np.array([0.0, 0.25, 0.5, 0.75])


def counts(hits, top1_hits=None, settings=(1, 20), images=10, top1=5, image_hits=None):
    """Counts from hits [S, I, T]; top-5 equal to hits."""
    hits = np.array(hits)
    top1_hits = np.zeros_like(hits) if top1_hits is None else np.array(top1_hits)
    per_setting = np.ones(len(hits), int)
    return Counts(
        "wsol-v2", settings, (0.3, 0.5, 0.7), GRID, hits, top1_hits, hits,
        per_setting * top1, per_setting * images, per_setting * images, image_hits,
    )  # fmt: skip


VAL = counts(
    [
        [[9, 8, 7, 6], [5, 5, 4, 3], [0, 1, 1, 0]],  # best 9, 5, 1: V2 = 50 %
        [[1, 9, 2, 2], [1, 2, 6, 6], [0, 0, 0, 3]],  # best 9, 6, 3: V2 = 60 %
    ],
    top1_hits=[np.zeros((3, 4), int), [[0, 0, 0, 0], [4, 0, 0, 1], [0, 0, 0, 0]]],
)
TEST = counts(
    [
        [[10, 10, 10, 10]] * 3,
        [[8, 4, 2, 2], [1, 2, 3, 7], [0, 0, 0, 2]],
    ],
    top1_hits=[np.zeros((3, 4), int), [[0, 0, 0, 0], [1, 2, 3, 3], [0, 0, 0, 0]]],
)


def test_choose_solves_setting_and_thresholds_on_validation():
    choice = choose(VAL)
    assert (choice.setting, choice.readout, choice.metric) == (1, 20, "max_box_acc_v2")
    assert choice.value == pytest.approx(60)
    assert choice.thresholds["max_box_acc_v2"] == (0.25, 0.5, 0.75)  # each IoU its own
    assert choice.thresholds["gt_known_loc"] == (0.5,)  # of the equal .5 and .75 the lowest
    assert choice.thresholds["top1_loc"] == (0.0,)  # its own, not GT-known's


def test_choose_follows_the_objective():
    assert choose(VAL, "max_box_acc_iou30").setting == 0  # equal settings: the first
    with pytest.raises(UsageError, match="gt_known_loc"):
        choose(VAL, "gt_know_loc")


def test_transferred_reads_test_at_what_validation_chose():
    values = transferred(TEST, choose(VAL))
    assert values["max_box_acc_v2"] == pytest.approx((40 + 30 + 20) / 3)
    assert values["gt_known_loc"] == pytest.approx(30)
    assert values["top1_loc"] == pytest.approx(10)
    assert values["cls_top1"] == pytest.approx(50)


def test_oracle_picks_thresholds_on_test_but_not_the_setting():
    values = oracle(TEST, choose(VAL))
    assert values["max_box_acc_v2"] == pytest.approx((80 + 70 + 20) / 3)
    assert values["gt_known_loc"] == pytest.approx(70)
    assert values["top1_loc"] == pytest.approx(30)
    assert values.keys() == transferred(TEST, choose(VAL)).keys()


def test_the_setting_is_found_by_its_value():
    alone = counts(TEST.hits[1:], TEST.top1_hits[1:], settings=(20,))
    assert transferred(alone, choose(VAL)) == transferred(TEST, choose(VAL))
    with pytest.raises(UsageError, match="readout setting '20'"):
        transferred(counts(TEST.hits[1:], settings=(3,)), choose(VAL))


def test_records_survive_json():
    again = Counts.from_dict(json.loads(json.dumps(VAL.to_dict())))
    choice = choose(again)
    assert choice == choose(VAL)
    assert type(choice).from_dict(json.loads(json.dumps(choice.to_dict()))) == choice
    np.testing.assert_array_equal((again + again).hits, 2 * VAL.hits)


def test_only_like_counts_add_up():
    with pytest.raises(UsageError, match="settings"):
        VAL + counts(VAL.hits, settings=(1, 21))


def test_no_images_is_an_error_and_not_zero():
    with pytest.raises(DataError, match="at least one image"):
        choose(counts(np.zeros((2, 3, 4), int), images=0))


def with_images(hits_NIT, ranks, labels=None):
    """Counts of one setting that agree with the hits of the single images."""
    hits_NIT, ranks = np.array(hits_NIT, bool), np.array(ranks)
    labels = np.array(labels or [0] * len(ranks))
    kept = ImageHits(tuple(map(str, range(len(ranks)))), labels, np.packbits(hits_NIT, axis=-1), ranks)
    return Counts(
        "wsol-v2", (20,), (0.3, 0.5, 0.7), GRID, hits_NIT.sum(0)[None], hits_NIT[ranks < 1].sum(0)[None],
        hits_NIT[ranks < 5].sum(0)[None], np.array([(ranks < 1).sum()]), np.array([(ranks < 5).sum()]),
        np.array([len(ranks)]), kept,
    )  # fmt: skip


def test_redraws_are_recounts_of_the_drawn_images_at_their_own_best_thresholds():
    full = random_images(30)
    hits_NIT = np.unpackbits(full.image_hits.bits, axis=-1, count=4)
    rng = np.random.default_rng(7)
    recounted, classified = [], []
    for _ in range(20):
        drawn = rng.integers(30, size=30)
        recounted.append(np.mean([100 * max(hits_NIT[drawn, i, t].mean() for t in range(4)) for i in range(3)]))
        classified.append(100 * (full.image_hits.ranks[drawn] == 0).mean())
    found = resampled(full, ["max_box_acc_v2", "cls_top1"], samples=20, seed=7)
    np.testing.assert_allclose(found, [recounted, classified])
    assert len(set(recounted)) > 10


def test_the_hits_of_single_images_survive_json():
    full = random_images(5)
    again = ImageHits.from_dict(json.loads(json.dumps(full.image_hits.to_dict())))
    assert again.ids == full.image_hits.ids
    for name in ("labels", "bits", "ranks"):
        np.testing.assert_array_equal(getattr(again, name), getattr(full.image_hits, name))
    assert again.mask_pixels is None


def random_images(num_images=400):
    rng = np.random.default_rng(0)
    return with_images(rng.random((num_images, 3, 4)) < [0.2, 0.4, 0.5, 0.5], rng.integers(0, 9, num_images))


def test_bootstrap_brackets_the_numbers():
    full, choice = random_images(), choose(VAL)
    intervals = bootstrap(full, choice, samples=400)
    for name, values in (("transferred", transferred(full, choice)), ("oracle", oracle(full, choice))):
        for metric, (low, high) in intervals[name].items():
            assert low < values[metric] < high, (name, metric)


def test_bootstrap_has_the_width_of_a_proportion():
    full, choice = random_images(), choose(VAL)
    low, high = bootstrap(full, choice, samples=2000)["transferred"]["gt_known_loc"]
    p = transferred(full, choice)["gt_known_loc"] / 100
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(p * (1 - p) / 400), rel=0.1)


def test_bootstrap_rechooses_the_threshold_of_the_oracle_alone():
    # Two images, each found at one threshold of its own: a sample of one image twice has an oracle of 100 %.
    hits = np.zeros((2, 3, 4), bool)
    hits[0, :, 0] = hits[1, :, 2] = True
    intervals = bootstrap(with_images(hits, [0, 0]), choose(VAL), samples=200)
    assert intervals["oracle"]["gt_known_loc"] == (50, 100)
    assert intervals["transferred"]["gt_known_loc"] == (0, 100)


def test_bootstrap_draws_the_classes_of_an_image_together():
    """Of two images one has three classes, all hit: 0, 75 or 100 % of the pairs, and never another share."""
    hits = np.zeros((4, 3, 4), bool)
    hits[:3] = True
    full = with_images(hits, [0, 0, 0, 0])
    full = replace(full, image_hits=replace(full.image_hits, ids=("a", "a", "a", "b")))
    choice = choose(VAL)
    for confidence in np.linspace(0.1, 0.9, 9):
        interval = bootstrap(full, choice, samples=50, confidence=confidence)["transferred"]["gt_known_loc"]
        assert set(interval) <= {0, 75, 100}


def test_bootstrap_is_seeded_and_needs_images():
    full, choice = random_images(), choose(VAL)
    assert bootstrap(full, choice, 50, seed=3) == bootstrap(full, choice, 50, seed=3)
    assert bootstrap(full, choice, 50, seed=3) != bootstrap(full, choice, 50, seed=4)
    with pytest.raises(UsageError, match="keep_images"):
        bootstrap(VAL, choice)


def test_balanced_counts_weigh_classes_alike():
    hits = np.zeros((4, 3, 4), bool)
    hits[0] = hits[3] = True
    full, choice = with_images(hits, [0, 0, 0, 3], labels=[7, 7, 7, 2]), choose(VAL)
    for read in (transferred, oracle):
        values = read(balanced(full), choice)
        assert values["gt_known_loc"] == pytest.approx((100 / 3 + 100) / 2)
        assert values["top1_loc"] == pytest.approx((100 / 3 + 0) / 2)
        assert values["cls_top1"] == pytest.approx((100 + 0) / 2)
    with pytest.raises(UsageError, match="keep_images"):
        balanced(VAL)


def test_bootstrap_of_a_mean_over_classes_brackets_it():
    # 90 images of a class that is always found, 10 of one that is never: 90 % of the images, half of the classes.
    hits = np.zeros((100, 3, 4), bool)
    hits[:90] = True
    labels = [0] * 90 + [1] * 10
    full, choice = with_images(hits, [0] * 100, labels), choose(VAL)
    weights = class_weights(np.array(labels))
    low, high = bootstrap(full, choice, weights_N=weights)["transferred"]["gt_known_loc"]
    assert low < 50 < high < 75


def test_corloc_is_a_mean_over_classes_beside_those_over_images():
    """Three of four images of one class are found, none of the single one of the other."""
    hits = np.zeros((5, 3, 4), bool)
    hits[:3] = True
    full, choice = with_images(hits, [0, 0, 3, 0, 0], labels=[1, 1, 1, 1, 0]), choose(VAL)
    for read in (transferred, oracle):
        values = read(full, choice)
        assert values["gt_known_loc"] == pytest.approx(60)
        assert values["corloc"] == values["corloc_v2"] == pytest.approx(37.5)
        assert values["top1_loc"] == pytest.approx(40)
    assert "corloc" not in transferred(VAL, choice)
    low, high = bootstrap(full, choice)["transferred"]["corloc"]
    assert low < 37.5 < high


def test_corloc_is_read_at_the_threshold_of_gt_known():
    hits = np.zeros((2, 3, 4), bool)
    hits[0, :, 2] = hits[1, :, 1] = True  # VAL chose .5 for GT-known, the third threshold
    assert transferred(with_images(hits, [0, 0], labels=[0, 1]), choose(VAL))["corloc"] == 50


def test_a_metric_at_a_fixed_threshold():
    """Of setting 20: at .5 (the nearest to .55) 2, 6 and 0 of ten; at 0 1, 1 and 0."""
    assert at_threshold(VAL, "max_box_acc_v2", 0.55) == pytest.approx([40, 80 / 3])
    assert at_threshold(VAL, "max_box_acc_v2", 0)[1] == pytest.approx(20 / 3)
    assert at_threshold(VAL, "gt_known_loc", 0.75).tolist() == [30, 60]
    with pytest.raises(UsageError, match="Unknown metric of these counts 'pxap'"):
        at_threshold(VAL, "pxap", 0.5)


def test_errors_are_what_is_missing():
    found = errors({"cls_top1": 80.0, "cls_top5": 95.0, "top1_loc": 60.0, "top5_loc": 70.0, "gt_known_loc": 75.0})
    assert found == {"cls1_err": 20, "cls5_err": 5, "clsloc1_err": 40, "clsloc5_err": 30}
    assert errors({"pxap": 50.0}) == {}


def test_best_threshold_of_each_image():
    """Two images, each found at one threshold of its own: half of them at any one, both at their own."""
    hits = np.zeros((2, 3, 4), np.int64)
    hits[0, :, 0] = hits[1, :, 2] = 1
    full = replace(with_images(hits, [0, 0]), any_hits=np.array([[2, 2, 2]]))
    assert best(full)["gt_known_loc"].tolist() == [50]
    assert best(full)["ois_iou50"].tolist() == best(balanced(full))["ois_iou50"].tolist() == [100]
    assert "ois_iou50" not in transferred(full, choose(VAL))


def test_objectives_follow_the_protocol():
    assert "pxap" in objectives(protocol("wsol-v1"))
    assert "pxap" not in objectives(protocol("bas-ext"))
    assert objectives(protocol("wsol-mask")) == ("pxap", "piou", "peak_iou")
