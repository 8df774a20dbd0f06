"""B-CAM's maps: the rules by hand, every setting against plain autograd, what a search costs and refuses."""

import copy
import gc

import pytest
import torch
from torch.nn import functional as F

import wsol_models
from wsol_models import bcam
from wsol_models.readouts import readout
from wsol_models.readouts.bcam import READINGS, Passes, weigh

CLASSES = torch.tensor([2, 0])
STAGES = {  # backbone -> default stage and one below
    "tiny": ("block4", "block2"),
    "resnet18": ("layer4", "layer3"),
    "vgg16": ("conv6", "relu4_3"),
    "inception_v3": ("SPG_A3_1b", "Mixed_6e"),
}
CASES = [(backbone, stage) for backbone, stages in STAGES.items() for stage in stages]


def make(backbone: str) -> bcam.Method:
    torch.manual_seed(0)
    options = {"heads": 3, "aggregator_init": "xavier", "large": False}
    method = wsol_models.build("bcam", backbone=backbone, num_classes=4, **options).double().eval()
    attended = method(images(), taps=(method.attention_stage,)).taps[method.attention_stage]
    with torch.no_grad():
        method.classifier_B.bias.normal_()
        for aggregator in (method.aggregator_A, method.aggregator_B):
            aggregator.weight /= aggregator(
                attended
            ).std()  # no attention that an untrained network leaves all but flat
    return method


def images(size: int = 48) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture(scope="module")
def tiny() -> bcam.Method:
    return make("tiny")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("grad_x_meangrad", [6.0, 4.0]), ("grad_x_relu_meangrad", [2.0, 6.0]), ("feat_x_meangrad", [-3.0, -7.0])],
)
def test_rules_by_hand(rule, expected):
    """G = (1, 3), (-4, 2) has means 2 and -1; Z = (1, 0), (5, 7)."""
    gradients = torch.tensor([[[[1.0, 3.0]], [[-4.0, 2.0]]]])
    features = torch.tensor([[[[1.0, 0.0]], [[5.0, 7.0]]]])
    assert weigh(features, gradients, rule).tolist() == [[expected]]


def test_a_mask_is_told_by_the_maps_of_object_and_background():
    over = {"object": torch.tensor([[[0.0, 2.0]]]), "background": torch.tensor([[[1.0, 1.0]]])}
    assert readout("bcam").read(Passes({}, {}, over), CLASSES, "plain/mask").tolist() == [[[[0, 2]], [[1, 1]]]]


def large(maps: torch.Tensor) -> torch.Tensor:
    return F.interpolate(maps[:, None], (48, 48), mode="bilinear", align_corners=False)[:, 0]


def literal(method: bcam.Method, image: torch.Tensor, k: int, stage: str, reading: str, mode: str) -> torch.Tensor:
    """One image, plain autograd with live parameters, loops over channels."""
    output = method(image[None], taps=(stage,))
    if reading == "plain":
        classifier = method.classifier_A if mode == "object" else method.classifier_B
        return classifier(output.features_BCHW)[0, k].detach()
    rule, difference = reading.split("/")
    s_o, s_b, b_o, b_b = output.logits_BK[0, k], output.s_b_BK[0, k], output.b_o_BK[0, k], output.b_b_BK[0, k]
    if rule == "feat_x_meangrad" and difference == "code":
        score = s_o if mode == "object" else b_b
    elif difference == "code":
        score = s_o - b_o if mode == "object" else b_b - s_b
    else:
        score = s_o - s_b if mode == "object" else b_b - b_o
    G = torch.autograd.grad(score, output.taps[stage], materialize_grads=True)[0][0]
    Z = output.taps[stage][0].detach()
    if rule == "grad_x_meangrad":
        return sum(g * g.mean() for g in G)
    if rule == "grad_x_relu_meangrad":
        return sum(g * max(g.mean(), 0) for g in G)
    return sum(z * g.mean() for z, g in zip(Z, G, strict=True))


def empty(stage: str, reading: str, mode: str) -> bool:
    """Whether a map is 0 for every image, but for rounding.

    What attention is a softmax of gets gradients from it that sum up to 0, so w is that of the pooled values: W/N from
    s^o and from s^b, W being the object classifier's weights. In s^o - s^b they cancel out, and b^o and b^b have none.
    conv6 is not attended: w of s^o - s^b is left there, and b^o and b^b have no gradient at all.
    """
    if reading == "plain" or stage not in ("block4", "layer4", "conv6"):
        return False
    if mode == "background":
        return reading.endswith("paper") or reading == "feat_x_meangrad/code"
    return reading.endswith("paper") and stage != "conv6"


@pytest.mark.parametrize(("backbone", "stage"), CASES)
def test_maps_are_plain_autograd_on_every_network(backbone, stage):
    method, oracle = make(backbone), make(backbone)
    readings = [reading for reading in READINGS if reading != "plain_relu"]
    reader = readout("bcam", stages=(stage,), readings=readings, modes=("object", "background", "mask"))
    found = dict(reader.search(method, images(), CLASSES))
    for reading in readings:
        prefix = reading if reading == "plain" else f"{stage}/{reading}"
        scale = found[prefix.replace("paper", "code") + "/object"].abs().max().item()
        maps = {}
        for mode in ("object", "background"):
            pairs = zip(images(), CLASSES, strict=True)
            maps[mode] = large(torch.stack([literal(oracle, image, k, stage, reading, mode) for image, k in pairs]))
            torch.testing.assert_close(found[f"{prefix}/{mode}"], maps[mode], rtol=1e-6, atol=1e-6 * scale)
            assert (maps[mode].abs().max().item() < 1e-9 * scale) == empty(stage, reading, mode)
        both = torch.stack([found[f"{prefix}/{mode}"] for mode in ("object", "background")], dim=1)
        torch.testing.assert_close(found[f"{prefix}/mask"], both, rtol=0, atol=0)


def test_conv6_is_tapped_before_its_relu():
    """Its features go below 0, its gradients are 0 there, and b^o and b^b, which it cannot reach, count as 0."""
    method = make("vgg16")
    passes = readout("bcam").passes(method, images(), CLASSES, ["conv6/grad_x_meangrad/code/mask"], None)
    features = passes.features["conv6"]
    assert features.min() < 0
    assert not passes.gradients["conv6", "s_o"][features < 0].any()
    assert not passes.gradients["conv6", "b_o"].any()
    assert not passes.gradients["conv6", "b_b"].any()


def test_settings(tiny):
    assert readout("bcam").settings(tiny) == [
        *(
            f"block4/{rule}/code/{mode}"
            for rule in ("grad_x_meangrad", "grad_x_relu_meangrad", "feat_x_meangrad")
            for mode in ("object", "mask")
        ),
        "plain/object",
        "plain/mask",
    ]
    only = readout("bcam", stages=("block2", "block3"), readings=("feat_x_meangrad/paper",), modes=("background",))
    assert only.settings(tiny) == ["block2/feat_x_meangrad/paper/background", "block3/feat_x_meangrad/paper/background"]
    for backbone, (default, _) in STAGES.items():
        assert str(readout("bcam").settings(make(backbone))[0]).startswith(f"{default}/")


def test_single_images_give_the_same_maps(tiny):
    for setting, maps in readout("bcam").search(tiny, images(), CLASSES):
        for i in (0, 1):
            alone = readout("bcam").maps(tiny, images()[i : i + 1], CLASSES[i : i + 1], setting)
            torch.testing.assert_close(
                alone.float(), maps[i : i + 1].float(), rtol=1e-5, atol=1e-6 * maps.float().abs().max().item()
            )


def test_class_agnostic_maps_are_of_the_sum_of_all_scores(tiny):
    found = dict(readout("bcam", class_agnostic=True).search(tiny, images(), CLASSES))
    output = copy.deepcopy(tiny)(images(), taps=("block4",))
    G = torch.autograd.grad((output.logits_BK - output.b_o_BK).sum(), output.taps["block4"])[0]
    expected = large(weigh(output.taps["block4"], G, "grad_x_meangrad"))
    torch.testing.assert_close(found["block4/grad_x_meangrad/code/object"], expected, rtol=1e-5, atol=1e-9)
    plain = large(tiny.classifier_A(output.features_BCHW).sum(1))
    torch.testing.assert_close(found["plain/object"], plain)


def test_negative_scores_can_be_left_out_before_maps_are_added_up(tiny):
    found = dict(readout("bcam", readings=("plain", "plain_relu"), modes=("object",)).search(tiny, images(), CLASSES))
    assert found["plain/object"].min() < 0
    coarse = dict(readout("bcam", readings=("plain",), modes=("object",)).coarse_search(tiny, images(), CLASSES))
    torch.testing.assert_close(found["plain_relu/object"], large(coarse["plain/object"].clamp(min=0)))


def test_a_mask_of_several_scales_and_mirror_images_compares_the_sums_of_both_maps(tiny):
    """As the object's map is summed up, so is the background's: no mask is made of a single view."""
    settings = {"readings": ("plain",), "modes": ("object", "background", "mask")}
    pyramid = readout("pyramid", scales=(1.0, 1.5), mirror=True, over="bcam", options=settings)
    found = dict(pyramid.search(tiny, images(), CLASSES, stored_BCHW=images()))
    mask, sums = found["1+1.5/plain/mask"], [found[f"1+1.5/plain/{mode}"] for mode in ("object", "background")]
    torch.testing.assert_close(mask, torch.stack(sums, dim=1))
    coarse = dict(readout("bcam", **settings).coarse_search(tiny, images(), CLASSES))
    mirrored = dict(readout("bcam", **settings).coarse_search(tiny, images().flip(-1), CLASSES))
    one = large(coarse["plain/background"]) + large(mirrored["plain/background"]).flip(-1)
    torch.testing.assert_close(found["1/plain/mask"][:, 1], one)
    torch.testing.assert_close(pyramid.maps(tiny, images(), CLASSES, "1+1.5/plain/mask", stored_BCHW=images()), mask)


def test_a_search_costs_one_forward_and_one_backward_per_score(tiny, monkeypatch):
    calls, forwards, grad = [], [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    handle = tiny.classifier_A.register_forward_hook(lambda *_: forwards.append(1))
    reader = readout("bcam", stages="all", readings=READINGS)
    assert len(list(reader.search(tiny, images(), CLASSES))) == 4 * 12 + 2 * 2
    assert (len(forwards), len(calls)) == (1, 4)
    readout("bcam").maps(tiny, images(), CLASSES, "block4/grad_x_meangrad/code/object")
    assert len(calls) == 4 + 2
    readout("bcam").maps(tiny, images(), CLASSES, "plain/object", tiny(images()))
    assert len(calls) == 4 + 2
    handle.remove()


def test_nothing_is_left_behind(tiny):
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())

    before = tensors()
    for _ in range(3):
        for _ in readout("bcam").search(tiny, images(), CLASSES):
            pass
    del _
    assert tensors() == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in tiny.parameters())


def test_under_inference_mode(tiny):
    expected = dict(readout("bcam").search(tiny, images(), CLASSES))
    with torch.inference_mode():
        for setting, maps in readout("bcam").search(tiny, images(), CLASSES):
            assert torch.equal(maps, expected[setting])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readings": ("grad_x_meangrad",)}, "Unknown reading 'grad_x_meangrad'. Did you mean 'grad_x_meangrad/"),
        ({"modes": ("p",)}, "Unknown mode 'p'. Known: background, mask, object."),
        ({"modes": ()}, "modes must be one or more names in a list but is"),
        ({"readings": "plain"}, "readings must be one or more names in a list but is 'plain'"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        readout("bcam", **options)


def test_refusals(tiny):
    cam = wsol_models.build("cam", backbone="tiny", num_classes=4).eval()
    with pytest.raises(ValueError, match="'bcam' needs staggered scores but 'cam' has none; methods that have: bcam"):
        readout("bcam").settings(cam)
    with pytest.raises(ValueError, match="Unknown stage 'layer4'"):
        readout("bcam", stages=("layer4",)).settings(tiny)
    with pytest.raises(ValueError, match="Unknown setting of readout 'bcam' 'plain'"):
        readout("bcam").maps(tiny, images(), CLASSES, "plain")
