from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from wsol_pipeline.errors import DataError, ProtocolError
from wsol_pipeline.evaluation.baseline import AREA_FRACTIONS, centred_boxes, centred_map, count_centred
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.evaluate import class_ranks, count, shown_part, solve, ten_crop_scores
from wsol_pipeline.evaluation.measures import Truth, choosing
from wsol_pipeline.evaluation.metrics import ious_per_threshold
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import bootstrap, choose, oracle, transferred
from wsol_pipeline.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from wsol_pipeline.protocol import Role

SIZE = 32
RULE = protocol("bas-ext", SIZE, SIZE)
BOX = (8, 4, 20, 28)  # of the bright object in each image


class Rows:
    """Six images with one bright box each, in batches of four and two; each may be walked once per evaluation."""

    box_convention = "inclusive0"
    has_masks = False
    num_classes = 3

    def __init__(self, role=Role.VAL):
        self.role = role
        self.opened = 0

    def batches(self):
        self.opened += 1
        for ids in (list("abcd"), list("ef")):
            images = torch.zeros(len(ids), 3, SIZE, SIZE, dtype=torch.uint8)
            images[:, :, BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
            yield SimpleNamespace(
                ids=ids,
                images_BCHW=images,
                labels_B=torch.tensor([ord(i) % 3 for i in ids]),
                boxes=[np.array([BOX], np.float32) for _ in ids],
                sizes_B2=np.full((len(ids), 2), SIZE),
            )


class Brightness(nn.Module):
    """Predicts class 1 first, then 0, then 2; counts its forwards."""

    forwards = 0

    def forward(self, images_BCHW):
        assert not self.training
        self.forwards += 1
        return SimpleNamespace(logits_BK=torch.tensor([[1.0, 2.0, 0.0]]).expand(len(images_BCHW), 3))


class Shift:
    """A map of the image's brightness, moved right by each setting; checks that one output is shared."""

    def settings(self, method):
        assert not method.training
        return [16, 0, 4]

    def search(self, method, images_BCHW, classes_B, output=None):
        for setting in self.settings(method):
            yield setting, self.maps(method, images_BCHW, classes_B, setting, output=output)

    def maps(self, method, images_BCHW, classes_B, setting, output=None):
        assert len(output.logits_BK) == len(images_BCHW) == len(classes_B)
        return images_BCHW.mean(1).roll(setting, dims=-1)


def test_solve_finds_the_setting_with_one_forward_per_batch():
    method, rows, done = Brightness(), Rows(), []
    choice, counts = solve(method, Shift(), rows, RULE, on_batch=done.append)
    assert (choice.setting, choice.readout) == (1, 0)
    assert choice.value == 100
    assert counts.images.tolist() == [6, 6, 6]
    assert (method.forwards, done, method.training) == (2, [4, 2], True)
    assert counts.top1.tolist() == [2, 2, 2]  # a and d are of class 1
    assert transferred(counts, choice)["top1_loc"] == pytest.approx(200 / 6)


@pytest.mark.parametrize("role", [Role.TEST, Role.TRAIN])
def test_solve_refuses_other_splits_before_it_reads_a_batch(role):
    rows = Rows(role)
    with pytest.raises(ProtocolError, match=role.value):
        solve(Brightness(), Shift(), rows, RULE)
    assert rows.opened == 0


def test_count_of_chosen_settings_equals_the_search():
    everything = count(Brightness(), Shift(), Rows(), RULE)
    alone = count(Brightness(), Shift(), Rows(Role.TEST), RULE, settings=[4], keep_images=True)
    np.testing.assert_array_equal(alone.hits[0], everything.hits[2])
    assert alone.settings == (4,)
    assert alone.image_hits.ids == tuple("abcdef")
    assert alone.image_hits.ranks.tolist() == [0, 2, 1, 0, 2, 1]  # a..f are of the classes 1, 2, 0, 1, 2, 0


@pytest.mark.parametrize("setting", [None, [4]])
def test_counts_do_not_depend_on_whether_maps_are_scored_behind(setting):
    before, counted = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            done, seen = [], []
            counts = count(
                Brightness(), Shift(), Rows(), RULE, settings=setting, keep_images=bool(setting), on_batch=done.append,
                on_maps=lambda rows, *_, seen=seen: seen.append(rows.tolist()),
            )  # fmt: skip
            counted.append((counts.to_dict(), counts.image_hits and counts.image_hits.to_dict(), done, seen))
    finally:
        torch.set_num_threads(before)
    assert counted[0] == counted[1]
    assert len(counted[0][3]) == (2 if setting else 6)


class Photographed(Rows):
    """The same images, cut out of the middle of 40 px that stand for photographs of 80 x 120."""

    stored = False

    def with_stored(self):
        rows = Photographed(self.role)
        rows.stored = True
        return rows

    def batches(self):
        assert self.stored
        for batch in super().batches():
            whole_BCHW = nn.functional.pad(batch.images_BCHW, (4, 4, 4, 4))
            batch.stored_BCHW = whole_BCHW.repeat_interleave(2, 2).repeat_interleave(3, 3)
            batch.sizes_B2 = np.array([[120, 80]] * len(batch.ids))
            batch.boxes = [(boxes + 4) * [3, 2, 3, 2] for boxes in batch.boxes]
            batch.num_shrunk = 1
            yield batch


class OfPhotographs(Shift):
    """The map is the photograph's brightness."""

    needs_stored = True

    def settings(self, method):
        return [0]

    def maps(self, method, images_BCHW, classes_B, setting, output=None, stored_BCHW=None, prepare=None):
        return prepare(stored_BCHW).mean(1)

    def search(self, method, images_BCHW, classes_B, output=None, **photographs):
        yield 0, self.maps(method, images_BCHW, classes_B, 0, **photographs)


@pytest.mark.parametrize("settings", [None, [0]])
def test_maps_of_photographs_are_cut_as_a_centre_crop_cuts_the_image(settings):
    """In 32 of 40 px, where the box is known, the map of the whole photograph finds it, and nowhere else."""
    rules, seen = protocol("bas-ext", SIZE, 40), []
    counts = count(
        Brightness(), OfPhotographs(), Photographed(), rules, settings=settings,
        on_maps=lambda rows, batch, maps_BHW, *_: seen.append(maps_BHW.shape),
    )  # fmt: skip
    assert seen == [(4, 64, 96), (2, 64, 96)]
    assert transferred(counts, choose(counts, "gt_known_loc"))["gt_known_loc"] == 100
    assert counts.hits[0, -1].max() == 6  # at an IoU of 0.7 too
    assert counts.shrunk == 2
    assert (counts + Counts.from_dict(counts.to_dict())).shrunk == 4


@pytest.mark.parametrize("planes", [(), (2,)])
def test_a_centre_crop_cuts_the_last_two_sides_of_maps_one_plane_or_two(planes):
    """40 px of which the centre 32 are shown are 4/5 of 100 x 50; B-CAM's masks are told by two planes."""
    maps = torch.arange(100 * 50).reshape(100, 50).expand(3, *planes, 100, 50)
    shown = shown_part(maps, OfPhotographs(), protocol("bas-ext", 32, 40))
    assert torch.equal(shown, maps[..., 10:90, 5:45])


class Masked(Rows):
    """The same images with masks that are the boxes, the left column ignored."""

    has_masks = True

    def batches(self):
        for batch in super().batches():
            batch.masks = list((batch.images_BCHW[:, 0].numpy() > 0).astype(np.uint8))
            for mask_HW in batch.masks:
                mask_HW[:, 0] = 255
            yield batch


def test_masks_are_counted_where_protocol_and_rows_have_them():
    rule = protocol("wsol-mask", SIZE, SIZE)
    choice, counts = solve(Brightness(), Shift(), Masked(), rule, "piou")
    assert (choice.readout, choice.value) == (0, 100)
    assert transferred(counts, choice)["peak_iou"] == 100
    assert counts.mask_pixels[1].sum() == 6 * SIZE * (SIZE - 1)
    assert count(Brightness(), Shift(), Masked(), RULE).mask_pixels is None
    with pytest.raises(DataError, match="wsol-mask scores masks but the 'val' split has none"):
        count(Brightness(), Shift(), Rows(), rule)
    centred = count_centred(Masked(), rule)
    assert 0 < transferred(centred, choose(centred, "pxap"))["piou"] < 60


def test_boxes_choose_for_masks_and_what_is_cut_already_needs_no_threshold():
    """A map that rises within the object has a PxAP of 100; the object as a mask has pIoU and no PxAP."""
    rule = protocol("wsol-mask", SIZE, SIZE)

    class Rising(Shift):
        def maps(self, *args, **kwargs):
            return super().maps(*args, **kwargs) * torch.linspace(0.5, 1, SIZE)

    class Cut(Shift):
        def maps(self, *args, **kwargs):
            return super().maps(*args, **kwargs) > 0

    for readout, expected in ((Rising(), {"pxap": pytest.approx(100)}), (Cut(), {"piou": 100, "peak_iou": 100})):
        choice, _ = solve(Brightness(), readout, Rows(), choosing(rule, Truth(6, 6, 0, False)))
        assert (choice.readout, choice.metric, choice.value) == (0, "max_box_acc_v2", 100)
        counts = count(Brightness(), readout, Masked(Role.TEST), rule, settings=[0], keep_images=True)
        found = {name: value for name, value in transferred(counts, choice).items() if not np.isnan(value)}
        assert found == expected | {"cls_top1": pytest.approx(100 / 3), "cls_top5": 100}
        assert oracle(counts, choice)["piou"] == 100
        assert bootstrap(counts, choice, samples=3)["transferred"].keys() >= expected.keys()


def test_the_box_of_a_background_map_is_round_what_it_leaves():
    """Brightness is no background: where it stands for one, its box is that of the darkness around."""
    rule = choosing(protocol("wsol-mask-background", SIZE, SIZE), Truth(6, 6, 0, False))
    inverse = np.full((SIZE, SIZE), 1.0)
    inverse[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 0.25
    truth = np.array([[BOX[0], BOX[1], BOX[2], BOX[3]]], float)
    ious = ious_per_threshold(inverse, truth, rule)
    assert ious[0] == 0
    assert ious[-1] == pytest.approx(1)  # 1 - map > 0.001
    assert (ious[1:] == ious[-1]).all()  # min-max makes the object 0: it lies below every threshold


class PartlyMasked(Masked):
    """The same, but only the images of the second batch have a mask; the readers give the others one of 255."""

    def batches(self):
        for batch in super().batches():
            if "a" in batch.ids:
                batch.masks = [np.full_like(mask_HW, 255) for mask_HW in batch.masks]
            yield batch


def test_images_without_a_mask_are_no_background():
    """Of six equal images two have a mask: a third of all pixel counts, and the same figures."""
    rule = protocol("wsol-mask", SIZE, SIZE)
    every, partly = (count(Brightness(), Shift(), rows(), rule) for rows in (Masked, PartlyMasked))
    np.testing.assert_array_equal(every.mask_pixels, 3 * partly.mask_pixels)
    assert partly.mask_pixels.any()
    assert choose(every, "piou").value == choose(partly, "piou").value


def test_an_image_without_a_box_is_refused_where_boxes_count():
    rows = Rows()
    batch = next(rows.batches())
    batch.boxes[2] = np.empty((0, 4))
    rows.batches = lambda: iter([batch])
    with pytest.raises(DataError, match="bas-ext scores boxes but image 'c' has none"):
        count(Brightness(), Shift(), rows, RULE)


class Corners(nn.Module):
    """Scores class 0 by the upper left pixel, class 1 by the upper right one."""

    def forward(self, images_BCHW):
        return SimpleNamespace(logits_BK=torch.stack([images_BCHW[:, 0, 0, 0], images_BCHW[:, 0, 0, -1]], dim=1))


def test_ten_crops_by_hand():
    """Of an image of 4 px with crops of 2: the pixels that the corners see are those of rows 0, 2 and 1."""
    rule = protocol("bas-ext", 2, 4)
    image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4) ** 2 / 40
    seen = [(0, 1), (2, 3), (8, 9), (10, 11), (5, 6)]
    pairs = torch.tensor([[a, b] for a, b in seen] + [[b, a] for a, b in seen]) ** 2 / 40
    torch.testing.assert_close(ten_crop_scores(Corners(), image, rule), pairs.softmax(1).mean(0, keepdim=True))


class TenCropRows(Rows):
    def batches(self):
        for batch in super().batches():
            batch.whole_BCHW = torch.zeros(len(batch.ids), 3, SIZE + 8, SIZE + 8, dtype=torch.uint8)
            batch.whole_BCHW[:, :, 4:-4, 4:-4] = batch.images_BCHW
            batch.whole_BCHW[:, :, :2] = 255
            yield batch


class Top(nn.Module):
    """Predicts class 0 where the first row is bright, else class 1."""

    def forward(self, images_BCHW):
        bright = (images_BCHW[:, 0, 0, 0] > 0).float()
        return SimpleNamespace(logits_BK=torch.stack([bright * 9, 1 - bright, bright - 9], dim=1))


def test_ten_crops_decide_the_class_and_the_centre_the_map():
    rule = protocol("bas-ext", SIZE, SIZE + 8)
    assert rule.ten_crop
    options = {"settings": [0], "keep_images": True}
    centre = count(Top(), Shift(), TenCropRows(Role.TEST), rule, **options)
    ten = count(Top(), Shift(), TenCropRows(Role.TEST), rule, ten_crop=True, **options)
    np.testing.assert_array_equal(centre.hits, ten.hits)
    assert centre.image_hits.ranks.tolist() == [0, 2, 1, 0, 2, 1]
    # 4 of 10 crops see bright rows and are sure of class 0; the rest gives it 1 / (1 + e): .4 + .6 * .27 is over a half
    assert ten.image_hits.ranks.tolist() == [1, 2, 0, 1, 2, 0]


def test_ranks():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 2.0], [0.0, float("nan"), 0.0]])
    assert class_ranks(logits, torch.tensor([2, 1, 2, 1])).tolist() == [1, 1, 1, 3]
    assert class_ranks(logits[:1], torch.tensor([0])).tolist() == [0]


def test_normalize():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    expected = [[(v - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)] for v in (0, 1)]
    torch.testing.assert_close(normalize(images)[:, :, 0, 0], torch.tensor(expected))
    assert normalize(images, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert images[1, 0, 0, 0] == 255  # the caller's images stay


def test_centred_boxes_cover_their_fraction():
    boxes = centred_boxes((224, 224))
    assert boxes[-1].tolist() == [0, 0, 223, 223]
    assert boxes[4].tolist() == [56, 56, 167, 167]  # a quarter of the area: half of each side
    assert centred_boxes((40, 20))[4].tolist() == [10, 5, 29, 14]
    inside = centred_map((40, 20)) >= 0.75
    assert inside[5:15, 10:30].all()
    assert inside.sum() == 20 * 10
    sides = boxes[:, 2] - boxes[:, 0] + 1
    np.testing.assert_allclose(sides**2 / 224**2, AREA_FRACTIONS, atol=0.02)


def test_baseline_is_chosen_and_read_like_a_method():
    rows = Rows()
    choice = choose(count_centred(rows, RULE))
    # The box (8, 4)-(20, 28) has 13 x 25 pixels = .317 of the image; centred ones of .2 to .55 reach IoU .5.
    (fraction,) = choice.thresholds["gt_known_loc"]
    assert 0.15 < fraction < 0.5
    ranks = dict.fromkeys("abc", 0) | {"d": 4, "e": 9, "f": 9}
    values = transferred(count_centred(Rows(Role.TEST), RULE, ranks), choice)
    assert values["gt_known_loc"] == 100
    assert values["top1_loc"] == 50
    assert values["top5_loc"] == pytest.approx(400 / 6)
    assert transferred(count_centred(rows, RULE), choice)["top1_loc"] == 100
    assert values.keys() <= oracle(count_centred(rows, RULE), choice).keys()
