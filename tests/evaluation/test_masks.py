"""Mask metrics by hand, against the benchmark's own steps with numpy, and against scikit-learn where both agree."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.evaluate import batch_masks
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.masks import count_pixels, iou_curve, pixel_average_precision
from wsol_pipeline.evaluation.metrics import LocalizationCounts
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import best, bootstrap, choose, curves, oracle, transferred

RULE = protocol("wsol-mask", 16, 16)
MASK_PROTOCOLS = ("wsol-mask", "wsol-mask-background", "bas-ext-mask")


def random_masks(rng, count, size=16):
    """Blocks with a band of ignored pixels at the right."""
    masks = np.kron(rng.random((count, size // 4, size // 4)) < 0.4, np.ones((4, 4))).astype(np.uint8)
    masks[:, :, -3:] = 255
    return masks


def random_maps(rng, masks):
    """Raw 8x8 maps that know a little of their masks."""
    return (rng.random((len(masks), 8, 8)) + 0.4 * (masks[:, ::2, ::2] == 1)).astype(np.float32)


def reference(maps, masks):
    """PxAP and pIoU as wsolevaluation computes the first, with its histograms."""
    edges = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])
    true_hist, false_hist = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for map_HW, mask_HW in zip(maps, masks, strict=True):
        true_hist += np.histogram(map_HW[mask_HW == 1], bins=edges)[0]
        false_hist += np.histogram(map_HW[mask_HW == 0], bins=edges)[0]
    tp, fp = true_hist[::-1].cumsum(), false_hist[::-1].cumsum()
    fn = true_hist.sum() - tp
    with np.errstate(invalid="ignore"):
        precision, recall = tp / (tp + fp), tp / (tp + fn)
    counted = (tp + fp) != 0
    pxap = (precision[1:] * np.diff(recall))[counted[1:]].sum() * 100
    return pxap, (tp / (tp + fp + fn)).max() * 100


def counted(maps, masks, rule=RULE, keep_images=False):
    metric = LocalizationCounts(rule, masks=True, keep_images=keep_images)
    metric.update(0, maps, [np.empty((0, 4))] * len(maps), np.zeros(len(maps), int), masks)
    return metric.counts([str(i) for i in range(len(maps))], range(len(maps)))


@pytest.mark.parametrize("name", MASK_PROTOCOLS)
def test_a_split_equals_the_benchmarks_steps(name):
    rng, rule = np.random.default_rng(3), protocol(name, 16, 16)
    masks = random_masks(rng, 12)
    raw = random_maps(rng, masks)
    raw[4] = 2.5  # constant: zeros
    true_masks = batch_masks(SimpleNamespace(masks=masks), rule)
    values = best(counted(raw, true_masks, rule))
    expected_masks = np.where(masks == 255, 255, 1 - masks) if name.endswith("background") else masks
    pxap, piou = reference([normalised_map(m, rule) for m in raw], expected_masks)
    assert values["pxap"].item() == pytest.approx(pxap, abs=1e-9)
    assert values["piou"].item() == pytest.approx(piou, abs=1e-9)


def test_values_on_a_cut_belong_to_the_bin_above():
    """np.histogram's half-open bins, for values that are cuts and their neighbours in float64."""
    cuts = RULE.mask_cuts
    values = np.concatenate([cuts, np.nextafter(cuts[1:], 0), np.nextafter(cuts[:-1], 1)])[None]
    pixels, levels = count_pixels(values, np.ones(values.shape, np.uint8), cuts)
    np.testing.assert_array_equal(pixels[1], np.histogram(values, np.append(cuts, 2))[0])
    np.testing.assert_array_equal(levels[1], np.bincount((values[0] * 255).astype(int), minlength=256))
    assert not pixels[0].any()


def test_average_precision_is_scikit_learns_where_values_are_cuts():
    rng = np.random.default_rng(0)
    map_HW, mask_HW = RULE.mask_cuts[rng.integers(0, 1001, (40, 50))], (rng.random((40, 50)) < 0.3).astype(np.uint8)
    pixels, _ = count_pixels(map_HW, mask_HW, RULE.mask_cuts)
    expected = average_precision_score(mask_HW.ravel(), map_HW.ravel())
    assert pixel_average_precision(pixels[None])[0] == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    """From the top: 1 inside, .5 outside, .25 inside, and one ignored; 0 outside.

    Recall goes to 1/2 with precision 1 and to 1 with 2/3: 1/2 + 1/3. IoU at .25 is 2/3, at 1 it is 1/2, at 0 1/2.
    """
    map_HW = np.array([[1.0, 0.5, 0.25], [0.75, 0.0, 0.0]])
    mask_HW = np.array([[1, 0, 1], [255, 0, 255]], np.uint8)
    pixels, levels = count_pixels(map_HW, mask_HW, RULE.mask_cuts)
    assert pixel_average_precision(pixels[None])[0] == pytest.approx(5 / 6)
    assert iou_curve(pixels[None])[0, [0, 1, 250, 251, 500, 501, 1000]] == pytest.approx(
        [2 / 4, 2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
    )
    # Levels int(255 * value) are 255, 127, 63 and 0: the IoU is 2/3 from level 1 to 63.
    assert np.flatnonzero(iou_curve(levels[None])[0] == 2 / 3).tolist() == list(range(1, 64))


def test_peak_level_and_its_transfer():
    mask = np.zeros((1, 16, 16), np.uint8)
    mask[0, :8] = 1
    val, test = np.full((1, 16, 16), 0.1), np.zeros((1, 16, 16))
    val[0, :8], val[0, 15, 15], val[0, 14, 14] = 0.5, 1.0, 0.0
    test[0, :4], test[0, 4:8] = 1.0, 0.3
    rule = protocol("bas-ext-mask", 16, 16)
    choice = choose(counted(val, mask, rule), "peak_iou")
    values = transferred(counted(test, mask, rule), choice)
    assert choice.thresholds["peak_iou"] == (26.0,)  # 25 = int(.1 * 255) is the background's level
    assert choice.thresholds["pxap"] == ()
    assert values["peak_t"] == 26
    assert values["peak_iou"] == 100
    assert oracle(counted(test, mask, rule), choice)["peak_t"] == 1


def test_parts_merge_to_the_whole():
    rng = np.random.default_rng(1)
    masks = random_masks(rng, 9)
    raw = random_maps(rng, masks)
    whole = counted(raw, masks, keep_images=True)
    parts = [counted(raw[p], masks[p], keep_images=True) for p in (slice(0, 4), slice(4, 5), slice(5, 9))]
    merged = parts[0] + parts[1] + parts[2]
    for name in ("mask_pixels", "mask_levels"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(merged.image_hits, name), getattr(whole.image_hits, name))
        np.testing.assert_array_equal(getattr(whole.image_hits, name).sum(0), getattr(whole, name)[0])
    again = type(whole).from_dict(whole.to_dict())
    assert choose(again, "pxap") == choose(whole, "pxap")


def test_boxes_and_masks_side_by_side():
    rule = protocol("wsol-v1", 16, 16)
    mask = np.zeros((1, 16, 16), np.uint8)
    mask[0, 4:12, 4:12] = 1
    metric = LocalizationCounts(rule, masks=True)
    metric.update(0, mask.astype(np.float32), [np.array([[4.0, 4, 12, 12]])], [0], mask)
    values = metric.compute()
    assert values["gt_known_loc"] == values["piou"] == values["peak_iou"] == 100
    alone = LocalizationCounts(rule)
    alone.update(0, mask.astype(np.float32), [np.array([[4.0, 4, 12, 12]])], [0])
    assert "piou" not in alone.compute()


def test_a_binary_map_has_one_mask_and_no_average_precision():
    """Exact without normalisation: also where it holds the whole image."""
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[:, :8] = 1
    cut = torch.ones(2, 16, 16, dtype=torch.bool)
    cut[0, :, :8] = False
    counts = counted(cut, masks)
    curve = curves(counts, "piou")[0, 0]
    assert curve[0] == pytest.approx(50)  # at 0 every pixel
    np.testing.assert_allclose(curve[1:], 100 * (64 + 128) / (256 + 64 + 128))
    assert np.isnan(best(counts)["pxap"]).all()
    assert choose(counts, "piou").thresholds["piou"] == (0.0,)
    with pytest.raises(UsageError, match="pxap is not defined for binary maps"):
        choose(counts, "pxap")


def test_a_setting_without_average_precision_is_not_chosen():
    rng = np.random.default_rng(2)
    masks = random_masks(rng, 3)
    metric = LocalizationCounts(RULE, num_settings=2, masks=True)
    for setting, maps in enumerate((masks == 1, random_maps(rng, masks))):
        metric.update(setting, maps, [np.empty((0, 4))] * 3, np.zeros(3, int), masks)
    assert choose(metric.counts(), "pxap").setting == 1
    assert choose(metric.counts(), "piou").setting == 0


def test_bootstrap_brackets_mask_metrics():
    rng = np.random.default_rng(4)
    masks = random_masks(rng, 60)
    counts = counted(random_maps(rng, masks), masks, keep_images=True)
    choice = choose(counts, "pxap")
    intervals = bootstrap(counts, choice, samples=300)
    for name, values in (("transferred", transferred(counts, choice)), ("oracle", oracle(counts, choice))):
        for metric in ("pxap", "piou", "peak_iou"):
            low, high = intervals[name][metric]
            assert low < values[metric] < high, (name, metric)


def test_masks_that_cannot_be_scored_are_refused():
    maps, masks = np.ones((1, 8, 8)), np.zeros((1, 16, 16), np.uint8)
    with pytest.raises(DataError, match="a pixel that belongs to an object"):
        best(counted(maps, masks))
    with pytest.raises(ValueError, match=r"must have its map's size \(16, 16\)"):
        counted(maps, masks[:, :8])
    with pytest.raises(ValueError, match="are missing"):
        counted(maps, None)
    with pytest.raises(UsageError, match="Known: peak_iou, piou, pxap"):
        choose(counted(maps, masks + 1), "gt_known_loc")
