"""Top-k against the plain mean over the k best classes, CAM by hand, MsCAM scale by scale, and what readouts refuse."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

import wsol_models
from wsol_models._layers import Output
from wsol_models.readouts import readout
from wsol_models.readouts.cam import class_activation_maps
from wsol_models.readouts.pyramid import scaled
from wsol_models.readouts.suppression import Judge
from wsol_models.readouts.topk import by_score

CLASSES = torch.tensor([3, 0, 5])


@pytest.fixture(scope="module")
def bas():
    torch.manual_seed(0)
    return wsol_models.build("bas", backbone="tiny", num_classes=6, head_width=8).eval()


@pytest.fixture(scope="module")
def cam():
    torch.manual_seed(0)
    return wsol_models.build("cam", backbone="tiny", num_classes=6).eval()


def output_of(logits: torch.Tensor) -> Output:
    maps = torch.rand(*logits.shape, 5, 4, generator=torch.Generator().manual_seed(2))
    return Output(logits, torch.zeros(len(logits), 1, 1, 1), maps)


def mean_of_best(output: Output, k: int) -> torch.Tensor:
    """The oracle: each image alone, Python's stable sort."""
    means = []
    for logits, maps in zip(output.logits_BK.tolist(), output.maps_BKHW, strict=True):
        best = sorted(range(len(logits)), key=lambda c, logits=logits: -logits[c])[:k]
        means.append(sum(maps[c] for c in best) / k)
    return torch.stack(means)


RANDOM = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
TIED = torch.tensor([[1.0, 1, 1, 1, 1, 1], [2, 0, 2, 0, 2, 0], [0, 3, 3, -1, -1, 0]])


@pytest.mark.parametrize("logits", [RANDOM, TIED], ids=["random", "tied"])
def test_every_k_is_the_mean_of_the_best(bas, logits):
    output = output_of(logits)
    found = dict(readout("topk").search(bas, None, CLASSES, output))
    assert list(found) == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(found[1], output.maps_BKHW[[0, 1, 2], CLASSES], rtol=0, atol=0)
    for k in range(2, 7):
        torch.testing.assert_close(found[k], mean_of_best(output, k))


def test_single_read_equals_the_search(bas):
    output = output_of(RANDOM)
    topk = readout("topk")
    for k, maps in topk.search(bas, None, CLASSES, output):
        assert torch.equal(topk.maps(bas, None, CLASSES, k, output), maps)


def test_topk_by_hand(bas):
    """Maps of constants 1, 2, 4, ...; logits put classes 2 (4), 0 (1), 1 (2) first: means 4, 2.5, 7/3."""
    maps = torch.tensor([1.0, 2, 4, 8, 16, 32]).reshape(1, 6, 1, 1)
    output = Output(torch.tensor([[5.0, 4, 9, 3, 2, 1]]), maps, maps)
    found = dict(readout("topk", ks=(3, 2, 1)).search(bas, None, torch.tensor([5]), output))
    assert {k: m.item() for k, m in found.items()} == pytest.approx({1: 32, 2: 2.5, 3: 7 / 3})


def test_search_runs_one_forward_and_holds_nothing_back(bas):
    forwards = []
    handle = bas.register_forward_hook(lambda *_: forwards.append(1))
    stream = readout("topk").search(bas, torch.randn(3, 3, 32, 32), CLASSES)
    assert not forwards
    assert next(stream)[0] == 1
    assert len(list(stream)) == 5
    assert len(forwards) == 1
    handle.remove()


def test_order_of_equal_scores_is_by_index():
    assert by_score(TIED).tolist() == [[0, 1, 2, 3, 4, 5], [0, 2, 4, 1, 3, 5], [1, 2, 0, 5, 3, 4]]


def test_cam_by_hand():
    """Two channels (1, 2) and (3, 4), weights of class 1 (10, -1): (10 - 3, 20 - 4) / 2 = (3.5, 8)."""
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    maps = class_activation_maps(features, torch.tensor([[0.0, 0.0], [10.0, -1.0]]), torch.tensor([1]))
    torch.testing.assert_close(maps, torch.tensor([[[3.5, 8.0]]]))


def test_mean_of_the_cam_is_the_logit_without_bias(cam):
    images = torch.randn(3, 3, 32, 32)
    maps = readout("cam").maps(cam, images, CLASSES, "cam")
    logits = cam(images).logits_BK[[0, 1, 2], CLASSES] - cam.fc.bias[CLASSES]
    torch.testing.assert_close(maps.mean((1, 2)) * 64, logits)


def test_cam_of_bas_is_its_class_map(bas):
    """The last convolution of the classifier, without bias, over 8 hidden channels."""
    images = torch.randn(3, 3, 32, 32)
    deep, _ = bas.F2(bas.F1(images)[0])
    class_maps = bas.classifier_cls(deep)[1][[0, 1, 2], CLASSES]
    bias = bas.classifier_cls.get_parameter("maps.bias")[CLASSES, None, None]
    torch.testing.assert_close(readout("cam").maps(bas, images, CLASSES, "cam") * 8, class_maps - bias)


def test_refusals(bas, cam):
    images = torch.randn(3, 3, 32, 32)
    with pytest.raises(ValueError, match="'topk' needs own maps but 'cam' has none; methods that have: .*bas"):
        readout("topk").settings(cam)
    with pytest.raises(ValueError, match="k must be a whole number from 1 to the 6 classes but is 7"):
        readout("topk").maps(bas, images, CLASSES, 7)
    with pytest.raises(ValueError, match="from 1 to the 6 classes but is 200"):
        next(iter(readout("topk", ks=(1, 200)).search(bas, images, CLASSES)))
    with pytest.raises(ValueError, match=r"ks must be one or more numbers of classes >= 1 but is \(0,\)"):
        readout("topk", ks=(0,))
    with pytest.raises(ValueError, match=r"Unknown setting of readout 'cam' 'layer3'\. Known: cam\."):
        readout("cam").maps(cam, images, CLASSES, "layer3")
    with pytest.raises(ValueError, match=r"Unknown readout 'topp'\. Did you mean 'topk'\? Known: bagcams, "):
        readout("topp")
    with pytest.raises(ValueError, match=r"Unknown option of topk 'k'\. Did you mean 'ks'\?"):
        readout("topk", k=3)


def test_maps_are_read_in_eval_mode():
    method = wsol_models.build("bas", backbone="tiny", num_classes=6, head_width=8)
    with pytest.raises(ValueError, match="in eval mode: call method"):
        readout("topk").settings(method)


@pytest.fixture(scope="module")
def mldfr():
    """In float64, like the photographs it is shown."""
    torch.manual_seed(0)
    return wsol_models.build("mldfr", backbone="tiny", num_classes=6).double().eval()


PHOTOGRAPHS = torch.randn(3, 3, 75, 110, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NETWORKS = torch.zeros(3, 3, 32, 46, dtype=torch.float64)  # only their size counts


def of_photographs(seen, maps_of, size=(75, 110)):
    """The oracle's last step: maps of what was seen, enlarged once."""
    return F.interpolate(maps_of(seen)[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def by_interpolation(size, mode="bilinear"):
    return F.interpolate(PHOTOGRAPHS, size, mode=mode, align_corners=False, antialias=True)


def own_maps(method):
    return lambda images: method(images).maps_BKHW.detach()[[0, 1, 2], CLASSES]


def test_pyramid_is_of_the_photograph_resized_by_its_short_side(mldfr):
    """mLDFR's procedure in float64: short sides 32, 48, 64, maps enlarged once, raw sum."""
    pyramid = readout("pyramid", scales=(2, 1.0, 1.5), over="topk", options={"ks": (1,)})
    found = dict(pyramid.search(mldfr, NETWORKS, CLASSES, stored_BCHW=PHOTOGRAPHS))
    layers = {}
    for name, side, width in (("1", 32, 46), ("1.5", 48, 70), ("2", 64, 93)):
        layers[name] = of_photographs(by_interpolation([side, width]), own_maps(mldfr))
    assert len(found) == 7
    for setting, maps in found.items():
        expected = sum(layers[scale] for scale in setting.removesuffix("/1").split("+"))
        torch.testing.assert_close(maps, expected, rtol=1e-12, atol=1e-12)
    alone = pyramid.maps(mldfr, NETWORKS, CLASSES, "1+1.5+2/1", stored_BCHW=PHOTOGRAPHS)
    torch.testing.assert_close(alone, found["1+1.5+2/1"], rtol=0, atol=0)


def test_pyramid_of_segmentation_seeds(mldfr):
    """The photograph's own size times .5, 1, 1.5, 2 as Python rounds, bicubic; an image and its mirror image; maps on a
    canvas of 80 x 112, of which the photograph is the upper left."""
    pyramid = readout(
        "pyramid", scales=(0.5, 1.0, 1.5, 2.0), base="stored", mirror=True, resampling="bicubic", canvas=16,
        over="topk", options={"ks": (1,)},
    )  # fmt: skip
    expected = 0
    for size in ([38, 55], [75, 110], [112, 165], [150, 220]):
        seen = by_interpolation(size, "bicubic")
        expected = expected + of_photographs(seen, own_maps(mldfr), (80, 112))
        mirrored = lambda images: own_maps(mldfr)(images.flip(-1)).flip(-1)  # noqa: E731
        expected = expected + of_photographs(seen, mirrored, (80, 112))
    maps = pyramid.maps(mldfr, NETWORKS, CLASSES, "0.5+1+1.5+2/1", stored_BCHW=PHOTOGRAPHS)
    torch.testing.assert_close(maps, expected[:, :75, :110], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("resampling", "base"), [("bilinear", "network"), ("bicubic", "stored")])
def test_bytes_are_resized_as_pil_does_and_prepared_then(mldfr, resampling, base):
    """The authors' networks see what PIL has rounded to bytes; here to two levels, and nearly always the same."""
    seen = []
    handle = mldfr.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    photograph = torch.randint(0, 256, (1, 3, 75, 110), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pyramid = readout("pyramid", scales=(0.5, 1.5), base=base, resampling=resampling, over="topk")
    prepare = lambda images: images.double() / 255  # noqa: E731
    pyramid.maps(mldfr, NETWORKS, CLASSES[:1], "0.5+1.5/1", stored_BCHW=photograph, prepare=prepare)
    handle.remove()
    picture = Image.fromarray(photograph[0].permute(1, 2, 0).numpy())
    assert [tuple(image.shape[2:]) for image in seen] == (
        [(16, 23), (48, 70)] if base == "network" else [(38, 55), (112, 165)]
    )
    for image in seen:
        expected = picture.resize(image.shape[:1:-1], Image.Resampling[resampling.upper()])
        apart = (image[0] * 255 - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs()
        assert apart.max() < 2.5
        assert apart.mean() < 0.05


@pytest.mark.parametrize(
    ("size", "scale", "side", "expected"),
    [
        ((375, 500), 1.5, 224, [336, 448]),
        ((500, 375), 2, 224, [597, 448]),  # 597.33
        ((500, 375), 1.5, 299, [597, 448]),  # 448.5
        ((400, 400), 597 / 299, 299, [597, 597]),
        ((375, 500), 0.5, None, [188, 250]),  # 187.5
        ((375, 500), 1.5, None, [562, 750]),  # 562.5
        ((1, 900), 0.5, None, [1, 450]),
    ],
)
def test_sizes_of_a_photograph_at_a_scale(size, scale, side, expected):
    assert scaled(size, scale, side) == expected


@pytest.mark.parametrize(("over", "setting"), [("cam", "cam"), ("topk", 3), ("bagcams", "block2/ours3")])
def test_pyramid_is_the_sum_of_raw_maps_over_scales(bas, over, setting):
    photographs, networks = PHOTOGRAPHS.float(), NETWORKS.float()
    pyramid = readout("pyramid", scales=(2, 0.5, 1.0), over=over)
    found = dict(pyramid.search(bas, networks, CLASSES, stored_BCHW=photographs))
    layers = {}
    for scale in (0.5, 1, 2):
        seen = functional.resize(photographs, [int(32 * scale)], antialias=True)
        layers[scale] = of_photographs(seen, lambda images: readout(over).coarse_maps(bas, images, CLASSES, setting))
    for scales in ((0.5,), (1,), (2,), (0.5, 1), (0.5, 2), (1, 2), (0.5, 1, 2)):
        maps = found.pop("+".join(f"{s:g}" for s in scales) + f"/{setting}")
        assert maps.shape == (3, 75, 110)
        torch.testing.assert_close(maps, sum(layers[s] for s in scales))
    assert len(found) == (35 if over == "topk" else 0)  # the other five k


def test_pyramid_runs_one_forward_per_scale(cam):
    sizes = []
    handle = cam.register_forward_hook(lambda module, args, output: sizes.append(args[0].shape[2]))
    photographs, networks = PHOTOGRAPHS.float(), NETWORKS.float()
    pyramid = readout("pyramid")
    stream = pyramid.search(cam, networks, CLASSES, stored_BCHW=photographs)
    assert not sizes
    assert len(list(stream)) == 7
    assert sizes == [32, 48, 64]
    pyramid.maps(cam, networks, CLASSES, "1+2/cam", stored_BCHW=photographs)
    assert sizes[3:] == [32, 64]
    handle.remove()


def test_pyramid_refuses(cam):
    for scales in ((), (0,), (1, -1), (float("nan"),), (float("inf"), 1)):
        with pytest.raises(ValueError, match="scales must be one or more finite numbers > 0"):
            readout("pyramid", scales=scales)
    with pytest.raises(ValueError, match="Unknown readout 'bagcam'. Did you mean 'bagcams'"):
        readout("pyramid", over="bagcam")
    with pytest.raises(ValueError, match="over a readout of one image but over is 'pyramid'"):
        readout("pyramid", over="pyramid")
    with pytest.raises(ValueError, match="Unknown option of bagcams 'stage'. Did you mean 'stages'"):
        readout("pyramid", over="bagcams", options={"stage": "all"})
    with pytest.raises(ValueError, match="Unknown base 'store'. Did you mean 'stored'"):
        readout("pyramid", base="store")
    with pytest.raises(ValueError, match="canvas must be at least 1 pixel but is 0"):
        readout("pyramid", canvas=0)
    with pytest.raises(ValueError, match="'topk' needs own maps but 'cam' has none"):
        readout("pyramid", over="topk").settings(cam)
    images = torch.randn(3, 3, 32, 32)
    with pytest.raises(ValueError, match=r"Unknown setting of readout 'pyramid' '3/cam'."):
        readout("pyramid").maps(cam, images, CLASSES, "3/cam", stored_BCHW=images)
    with pytest.raises(ValueError, match="reads photographs as they are stored: hand them in as stored_BCHW"):
        readout("pyramid").maps(cam, images, CLASSES, "1/cam")


def test_the_threshold_of_an_image_is_the_one_that_suppresses_best(bas):
    """Literally: each image alone, every threshold, S^b by hand of masked features."""
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = dict(readout("suppression", steps=8).search(bas, images, CLASSES))["own"]
    cuts = []
    for image, k, cut in zip(images[:, None], CLASSES.tolist(), found, strict=True):
        with torch.no_grad():
            output, features = bas(image), bas.F1(image, ())[0]
            map_HW = output.maps_BKHW[0, k] / output.maps_BKHW[0, k].max()
            sums = []
            for step in range(8):
                mask = (map_HW >= step / 8).float()
                left = bas.classifier_cls(bas.F2(features * (1 - mask), ())[0])[1].mean((2, 3))[0, k].clamp(min=0)
                whole = output.logits_BK[0, k].clamp(min=0)
                sums.append(float(mask.mean() + (1 if left > whole else left / (whole + 1e-8))))
        best = min(range(8), key=lambda step: sums[step]) / 8
        cuts.append(best)
        torch.testing.assert_close(cut, torch.where(map_HW >= best, map_HW, 0))
    assert max(cuts) > 0


@torch.no_grad()
def test_an_image_has_one_threshold_for_the_map_that_its_views_add_up_to(bas, monkeypatch):
    """Literally: masks of the summed map, brought to F's grid, in the place of M_f; one cut, whatever the views."""
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    below = {"scales": (0.5, 1.0), "mirror": True, "over": "own"}
    summed = readout("pyramid", **below).maps(bas, images, CLASSES, "0.5+1/own", stored_BCHW=images)
    reader = readout("suppression", steps=8, over="pyramid", options=below)
    assert reader.settings(bas) == ["0.5/own", "1/own", "0.5+1/own"]
    judged, background = [], bas.background_logits
    masks = lambda args: judged.extend(args[2].unflatten(0, (-1, 3)))  # noqa: E731
    monkeypatch.setattr(bas, "background_logits", lambda *args: masks(args) or background(*args))
    assert reader.needs_stored
    assert not readout("suppression").needs_stored
    found = reader.maps(bas, images, CLASSES, "0.5+1/own", stored_BCHW=images)
    assert len(judged) == 8
    torch.testing.assert_close(dict(reader.search(bas, images, CLASSES, stored_BCHW=images))["0.5+1/own"], found)
    for i in range(3):
        map_HW = summed[i] / summed[i].max()
        features = bas.F1(images[i : i + 1], ())[0]
        sums = []
        for step in range(8):
            mask = F.interpolate((map_HW >= step / 8)[None, None].float(), features.shape[2:], mode="nearest-exact")[0]
            torch.testing.assert_close(judged[step][i], mask[0])
            left = bas.classifier_cls(bas.F2(features * (1 - mask), ())[0])[1].mean((2, 3))[0, CLASSES[i]].clamp(min=0)
            whole = bas(images[i : i + 1]).logits_BK[0, CLASSES[i]].clamp(min=0)
            sums.append(float(mask.mean() + (1 if left > whole else left / (whole + 1e-8))))
        best = min(range(8), key=lambda step: sums[step]) / 8
        torch.testing.assert_close(found[i], torch.where(map_HW >= best, map_HW, 0))


def test_a_map_that_is_nowhere_positive_has_no_pixel_of_an_object(bas):
    judge = Judge.of(bas, torch.zeros(1, 3, 64, 64), CLASSES[:1], None)
    assert not judge.cut(-torch.rand(1, 5, 7), 4).any()


def test_a_threshold_of_an_image_needs_what_bas_has(cam):
    with pytest.raises(ValueError, match="'suppression' needs background suppression but 'cam' has none; .* bas"):
        readout("suppression").settings(cam)
    with pytest.raises(ValueError, match="steps must be at least 1 threshold but is 0"):
        readout("suppression", steps=0)
