"""Grad-CAM, Grad-CAM++, PCS and BagCAMs: by hand, and against each paper's formula on a copy with real hooks."""

import copy
import gc
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wsol_models
from wsol_models._backbones import Backbone
from wsol_models.readouts import readout
from wsol_models.readouts._gradients import GuidedReLU, guided_relus, score_of
from wsol_models.readouts.bagcams import FORMULAS, WEIGHTINGS, bag
from wsol_models.readouts.gradcam import grad_cam
from wsol_models.readouts.gradcampp import grad_cam_pp, position_weights
from wsol_models.readouts.pcs import position_scores

CLASSES = torch.tensor([3, 0])
NAMES = ("gradcam", "gradcampp", "pcs", "bagcams")
STAGES = {
    "tiny": ("block1", "block3"),
    "resnet18": ("layer1", "layer4"),
    "resnet50": ("layer3", "layer4"),
    "mobilenet_v2": ("features13", "features17"),
    "vgg16": ("relu4_3", "conv6"),
    "inception_v3": ("Mixed_6e", "SPG_A3_1b"),
}
LARGE = [pytest.param("cam", name, marks=pytest.mark.slow) for name in ("vgg16", "inception_v3")]
CASES = [("cam", name) for name in list(STAGES)[:4]] + [("bas", "tiny"), ("bas", "resnet18")] + LARGE


def make(name: str, backbone: str) -> nn.Module:
    """In float64, with a head whose logits have both signs and are far from 0."""
    torch.manual_seed(0)
    options = {"head_width": 8} if name == "bas" else {}
    method = wsol_models.build(name, backbone=backbone, num_classes=5, **options).eval().double()
    if name == "cam":
        with torch.no_grad():
            method.fc.bias.copy_(torch.tensor([-0.7, 0.4, 0.3, 0.9, -0.2]))
    return method


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def tiny():
    return make("cam", "tiny")


# Two channels on 2x2 positions. Mean gradients are 1/4 and -1; the terms G·Z are ((2, 0), (0, -1)) and
# ((-3, 0), (2, 0)), whose sums over channels are ((-1, 0), (2, -1)).
Z = torch.tensor([[[[1.0, 2], [0, 1]], [[3, 0], [1, 0]]]])
G = torch.tensor([[[[2.0, 0], [0, -1]], [[-1, 1], [2, -6]]]])
Z1, Z2 = Z[0]


def same(maps: torch.Tensor, expected: torch.Tensor | list) -> None:
    torch.testing.assert_close(maps, torch.as_tensor(expected, dtype=maps.dtype)[None], rtol=1e-5, atol=1e-6)


def test_grad_cam_by_hand():
    """Z1/4 - Z2 = ((-2.75, .5), (-1, .25)), without its negative part."""
    same(grad_cam(Z, G), [[0, 0.5], [0, 0.25]])


def test_pcs_by_hand():
    same(position_scores(Z, G), [[0, 0], [2, 0]])


def test_grad_cam_pp_by_hand():
    """ΣZG³ = 8 - 1 = 7 and -3 + 8 = 5; α = ((4/15, 0/7), (0/7, 1/9)) and ((1/7, 1/7), (4/13, 36/77)); with e^s = 2 the
    weights are 4/15·4 = 16/15 and 1/7·2 + 4/13·4 = 138/91."""
    alphas = torch.tensor([[[4 / 15, 0], [0, 1 / 9]], [[1 / 7, 1 / 7], [4 / 13, 36 / 77]]])
    same(position_weights(Z, G), alphas)
    same(grad_cam_pp(Z, G, torch.tensor([math.log(2)])), 16 / 15 * Z1 + 138 / 91 * Z2)


def test_a_denominator_of_zero_counts_as_one():
    """2·1² + (-2)·1³ = 0, hence α = 1/1; where G is 0 too α is 0."""
    features, gradients = torch.tensor([[[[-2.0, 5]]]]), torch.tensor([[[[1.0, 0]]]])
    same(position_weights(features, gradients)[0], [[1.0, 0.0]])


def test_grad_cam_pp_stays_finite_for_any_score():
    assert grad_cam_pp(Z, G, torch.tensor([1e4])).isfinite().all()


BY_HAND = {
    # t = 1 + (1/4, -1/4): ReLU(5/4·terms of channel 1) + ReLU(3/4·terms of channel 2)
    ("ours3", "code"): torch.tensor([[2.5, 0], [1.5, 0]]),
    # s = 2: 2·(8 + 1 - 1) = 16 times the summed terms
    ("ours3", "paper"): torch.tensor([[-16.0, 0], [32, -16]]),
    # (1 + terms)·G = ((6, 0), (0, 0)) and ((2, 1), (6, -6)), means 3/2 and 3/4
    ("ours1", "code"): 1.5 * Z1 + 0.75 * Z2,
    # t = ((1, 2), (4, 1)); t·G = ((2, 0), (0, -1)) and ((-1, 2), (8, -6)), means 1/4 and 3/4
    ("ours1", "paper"): 0.25 * Z1 + 0.75 * Z2,
    # α-weighted sums 4/15·6 = 8/5 and 2/7 + 1/7 + 24/13 - 216/77 < 0, which is dropped
    ("ours2", "code"): 1.6 * Z1,
    # 8/15 - 1/9 = 19/45 and -1/7 + 2/7 + 32/13 - 216/77 = -201/1001
    ("ours2", "paper"): 19 / 45 * Z1 - 201 / 1001 * Z2,
}


@pytest.mark.parametrize(("weighting", "formula"), BY_HAND)
def test_bagcams_by_hand(weighting, formula):
    same(bag(Z, G, torch.tensor([2.0]), weighting, formula), BY_HAND[weighting, formula])


def test_score_gradients_by_hand():
    """1 for the logit, 1/s for its logarithm, 1 - p for that of the probability: logits (-2, 0) give p = 1/(1 + e²)."""
    logits = torch.tensor([[-2.0, 0.0]], requires_grad=True)
    for score, expected in (("logit", 1.0), ("log_logit", -0.5), ("log_softmax", 1 - 1 / (1 + math.exp(2)))):
        values, objective = score_of(logits, torch.tensor([0]), score)
        assert values.item() == pytest.approx(-2 if score != "log_softmax" else 1 / (1 + math.exp(2)))
        gradient = torch.autograd.grad(objective.sum(), logits)[0]
        assert gradient[0, 0].item() == pytest.approx(expected)
        assert gradient[0, 1].item() == pytest.approx(0.0 if score != "log_softmax" else -1 / (1 + math.exp(-2)))


def test_logits_of_zero_are_guarded():
    """log of a logit of 0 has slope 1/ε, a 0 beside it changes nothing; log_softmax of a tie of two is log(1/2)."""
    logits = torch.zeros(1, 2, requires_grad=True)
    gradient = torch.autograd.grad(score_of(logits, torch.tensor([1]), "log_logit")[1].sum(), logits)[0]
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 1e8]]))
    assert score_of(logits, torch.tensor([1]), "log_softmax")[1].item() == pytest.approx(-math.log(2))


def test_guided_relu_by_hand():
    """Inputs below 0 and gradients below 0 both give 0."""
    features = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0], requires_grad=True)
    rectified = GuidedReLU.apply(features)
    assert rectified.tolist() == [1, 1, 0, 0, 0]
    gradient = torch.autograd.grad(rectified, features, torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0]))[0]
    assert gradient.tolist() == [2, 0, 0, 0, 0]


def guided_copy(method: nn.Module) -> nn.Module:
    """As the released code: backward hooks clamp the gradient that leaves each ReLU module of the extractor."""
    hooked = copy.deepcopy(method)
    for part in [part for part in hooked.modules() if isinstance(part, Backbone)]:
        for relu in [module for module in part.modules() if isinstance(module, nn.ReLU)]:
            relu.inplace = False
            relu.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0].clamp(min=0),))
    return hooked


def literal(
    name: str, method: nn.Module, image: torch.Tensor, k: int, stage: str, log: str, setting: tuple
) -> torch.Tensor:
    """One image, plain autograd with live parameters, the formulas over positions n of flat C×N features."""
    output = method(image[None], taps=(stage,))
    logit = output.logits_BK[0, k]
    score = {"logit": logit, "log_logit": logit.log(), "log_softmax": F.log_softmax(output.logits_BK[0], 0)[k]}[log]
    gradient = torch.autograd.grad(score, output.taps[stage])[0]
    size, s = gradient.shape[2:], score.exp().item() if log == "log_softmax" else logit.item()
    z, g = output.taps[stage][0].detach().flatten(1), gradient[0].flatten(1)
    cube = 2 * g**2 + (z * g**3).sum(1, keepdim=True)
    alpha = g**2 / (torch.where(cube == 0, 1, cube) + 1e-7)
    a, count = g * z, z.shape[1]
    weighting, formula = setting
    diagonal = {"ours1": torch.full_like(g, 1 / count), "ours2": alpha, "ours3": None}[weighting]
    if name == "gradcam":
        flat = F.relu(torch.einsum("c,ci->i", g.sum(1) / count, z))
    elif name == "gradcampp":
        flat = F.relu(torch.einsum("cn,ci->i", alpha * F.relu(math.exp(s) * g), z))
    elif name == "pcs":
        flat = F.relu(torch.einsum("ci,ci->i", g, z))
    elif weighting == "ours3" and formula == "code":
        flat = sum(F.relu((a[c].sum() / count + 1) * a[c]) for c in range(len(a)))
    elif weighting == "ours3":
        flat = s * sum(1 + a[c, m] for c in range(len(a)) for m in range(count)) * a.sum(0)
    elif formula == "code":
        flat = sum(F.relu(z[c] * (diagonal[c] * (1 + a[c]) * g[c]).sum()) for c in range(len(a)))
    else:
        flat = torch.einsum("ci,cn,n,cn->i", z, diagonal, (1 + a).sum(0), g)
    whole = F.interpolate(flat.reshape(1, 1, *size), image.shape[1:], mode="bilinear", align_corners=False)
    return whole[0, 0]


def check(method, name, stage, setting=("ours3", "code"), **options):
    reader = readout(name, stages=(stage,), **options)
    found = reader.maps(method, images(), CLASSES, f"{stage}/{setting[0]}" if name == "bagcams" else stage)
    oracle = guided_copy(method) if reader.guided_relu else copy.deepcopy(method)
    expected = torch.stack(
        [
            literal(name, oracle, image, k, stage, reader.score, setting)
            for image, k in zip(images(), CLASSES, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
    return found


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_readouts_are_the_papers_formulas_on_every_network(name, backbone):
    method = make(name, backbone)
    for stage in STAGES[backbone]:
        for rule in NAMES:
            assert check(method, rule, stage).any() or rule != "bagcams"


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(("score", "guided"), [("log_logit", True), ("log_softmax", False)])
def test_bagcams_in_every_form(tiny, weighting, formula, score, guided):
    options = {"weightings": (weighting,), "formula": formula, "score": score, "guided_relu": guided}
    check(tiny, "bagcams", "block3", (weighting, formula), **options)


def test_a_negative_logit_turns_no_map_over_where_the_probability_is_meant(tiny):
    """Eq. 12 has s_k in front: the logit of class 0 is negative, its probability never is."""
    reader = readout("bagcams", stages=("block3",), formula="paper", score="log_softmax", guided_relu=False)
    passes = reader.passes(tiny, images(), torch.tensor([0, 0]), ["block3/ours3"], None)
    logits = tiny(images()).logits_BK
    assert (logits[:, 0] < 0).all()
    torch.testing.assert_close(passes.scores_B, logits.softmax(1)[:, 0])
    terms = passes.features["block3"] * passes.gradients["block3"]
    bracket = (logits.softmax(1)[:, 0] * (1 + terms).sum((1, 2, 3)))[:, None, None]
    found = reader.coarse_maps(tiny, images(), torch.tensor([0, 0]), "block3/ours3")
    torch.testing.assert_close(found, bracket * terms.sum(1))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_enlarged_bilinearly_to_the_image(tiny, name):
    """By hand, from what each cell says: between two cells' middles the map is a straight line, and flat beyond."""
    reader = readout(name, stages=("block3",))
    (setting,) = reader.settings(tiny)
    coarse, maps = (read(tiny, images(), CLASSES, setting) for read in (reader.coarse_maps, reader.maps))
    side, size = coarse.shape[1], 64
    at = [min(max((i + 0.5) * side / size - 0.5, 0), side - 1) for i in range(size)]
    weights = torch.tensor([[max(0, 1 - abs(x - cell)) for cell in range(side)] for x in at], dtype=torch.float64)
    assert maps.shape == (2, size, size)
    torch.testing.assert_close(maps, weights @ coarse @ weights.T)
    assert not readout("cam").enlarges
    assert readout("cam").maps(tiny, images(), CLASSES, "cam").shape[1] < size


def test_guidance_starts_below_the_tap():
    """No ReLU of the backbone comes after layer4, so there guided gradients are plain ones; at layer3 they differ."""
    method = make("cam", "resnet18")
    maps = [
        dict(readout("bagcams", stages=("layer3", "layer4"), guided_relu=guided).search(method, images(), CLASSES))
        for guided in (True, False)
    ]
    torch.testing.assert_close(maps[0]["layer4/ours3"], maps[1]["layer4/ours3"], rtol=0, atol=0)
    assert not torch.allclose(maps[0]["layer3/ours3"], maps[1]["layer3/ours3"], rtol=0.1)


def test_equation_12_is_pcs_without_relu(tiny):
    """After min-max, up to the sign of s_k and of the bracket, as `readouts/bagcams.py` says."""
    equation = readout("bagcams", stages=("block3",), formula="paper", guided_relu=False)
    found = equation.maps(tiny, images(), CLASSES, "block3/ours3")
    output = tiny(images(), taps=("block3",))
    gradients = torch.autograd.grad(output.logits_BK.gather(1, CLASSES[:, None]).sum(), output.taps["block3"])[0]
    scores = F.interpolate((gradients * output.taps["block3"]).sum(1)[None], (64, 64), mode="bilinear")[0]
    for map_HW, scores_HW in zip(found, scores, strict=True):
        candidates = [min_max(scores_HW), min_max(-scores_HW)]
        assert any(torch.allclose(min_max(map_HW), candidate, atol=1e-5) for candidate in candidates)


def min_max(map_HW: torch.Tensor) -> torch.Tensor:
    return (map_HW - map_HW.min()) / (map_HW.max() - map_HW.min())


def test_at_the_input_of_a_linear_head_grad_cam_is_cam(tiny):
    """Mean gradients are weights over positions, and CAM takes the mean over channels: equal up to a factor."""
    expected = readout("cam").maps(tiny, images(), CLASSES, "cam")
    maps = readout("gradcam").coarse_maps(tiny, images(), CLASSES, "block4")
    channels, positions = 64, maps[0].numel()
    torch.testing.assert_close(maps * positions, F.relu(expected * channels))


@pytest.mark.parametrize("name", NAMES)
def test_one_forward_and_one_backward_serve_every_setting(tiny, name, monkeypatch):
    calls = []
    differentiate = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args: calls.append(args[1]) or differentiate(*args))
    handle = tiny.register_forward_hook(lambda *_: calls.append("forward"))
    options = {"weightings": WEIGHTINGS} if name == "bagcams" else {}
    stream = readout(name, stages=("block4", "block2", "block3"), **options).search(tiny, images(), CLASSES)
    assert not calls
    first = next(stream)[0]
    assert first.startswith("block4")
    found = [first, *(setting for setting, _ in stream)]
    handle.remove()
    assert len(found) == 3 * (3 if options else 1)
    assert calls[0] == "forward"
    assert [tensor.is_leaf for tensor in calls[1]] == [False, True, False]  # the earliest stage ends the backward
    assert len(calls) == 2


@pytest.mark.parametrize("name", NAMES)
def test_search_single_reads_and_single_images_agree(tiny, name):
    options = {"weightings": WEIGHTINGS} if name == "bagcams" else {}
    reader = readout(name, stages="all", **options)
    for setting, maps in reader.search(tiny, images(), CLASSES):
        assert maps.dtype == torch.float64
        assert torch.equal(maps, reader.maps(tiny, images(), CLASSES, setting))
        for i in range(2):
            alone = reader.maps(tiny, images()[i : i + 1], CLASSES[i : i + 1], setting)
            torch.testing.assert_close(alone[0], maps[i], rtol=1e-5, atol=1e-7 * maps.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_the_method_is_left_as_it_was(name):
    method = make("cam", "resnet18")
    before = {key: value.clone() for key, value in method.state_dict().items()}
    reader = readout(name, stages=("layer2", "layer3"))
    list(reader.search(method, images(), CLASSES))
    alive = tensors_alive()
    for _ in range(3):
        list(reader.search(method, images(), CLASSES))
    assert tensors_alive() == alive
    assert all(parameter.grad is None and parameter.requires_grad for parameter in method.parameters())
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert not [module for module in method.modules() if "forward" in vars(module) or module._backward_hooks]


def tensors_alive() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def test_relus_are_put_back_after_an_error():
    method = make("cam", "resnet18")
    with pytest.raises(RuntimeError):
        readout("bagcams").maps(method, images()[:, :1], CLASSES, "layer3/ours3")
    assert not [module for module in method.modules() if "forward" in vars(module)]
    readout("bagcams").maps(method, images(), CLASSES, "layer3/ours3")  # and the next caller has its turn


def test_only_relu_modules_of_the_backbone_are_guided():
    method = make("bas", "tiny")
    with guided_relus(method):
        guided = {name for name, module in method.named_modules() if "forward" in vars(module)}
    relus = {name for name, module in method.named_modules() if isinstance(module, nn.ReLU)}
    assert guided == {name for name in relus if not name.startswith("classifier_cls")}
    assert relus - guided == {"classifier_cls.relu1", "classifier_cls.relu2"}


def test_maps_under_inference_mode_and_in_half_precision():
    method = make("cam", "tiny").float()
    batch = images().float()
    expected = readout("bagcams").maps(method, batch, CLASSES, "block2/ours3")
    with torch.inference_mode():
        assert torch.equal(readout("bagcams").maps(method, batch, CLASSES, "block2/ours3"), expected)
    with torch.autocast("cpu", torch.bfloat16):
        maps = readout("bagcams").maps(method, batch, CLASSES, "block2/ours3")
    assert maps.dtype == torch.float32
    assert (maps - expected).abs().mean() < 0.15 * expected.mean()


def test_default_stages(tiny):
    """Of BagCAMs the last one before the network's last widening, of the others the last one."""
    assert readout("bagcams").settings(tiny) == ["block2/ours3"]
    assert readout("gradcam").settings(tiny) == ["block4"]
    assert readout("pcs", stages="all").settings(tiny) == ["block1", "block2", "block3", "block4"]
    assert readout("bagcams").settings(make("bas", "resnet18")) == ["layer3/ours3"]


def test_refusals(tiny):
    with pytest.raises(ValueError, match=r"Unknown stage 'layer3'\. Known: block1, block2, block3, block4\."):
        readout("gradcam", stages=("layer3",)).settings(tiny)
    for stages in ("layer3", (), ""):
        with pytest.raises(ValueError, match=f"stages must be 'all' or one or more names in a list but is {stages!r}"):
            readout("pcs", stages=stages)
    with pytest.raises(ValueError, match=r"weighting 'ours4'\. Did you mean 'ours3'\? Known: ours1, ours2, ours3\."):
        readout("bagcams", weightings=("ours4",))
    with pytest.raises(ValueError, match="weightings must be one or more names in a list but is 'ours1'"):
        readout("bagcams", weightings="ours1")
    with pytest.raises(ValueError, match=r"Unknown formula 'text'\. Known: code, paper\."):
        readout("bagcams", formula="text")
    with pytest.raises(ValueError, match=r"Unknown score 'logit'\. Did you mean 'log_logit'\?"):
        readout("bagcams", score="logit")
    with pytest.raises(ValueError, match=r"Unknown option of gradcam 'guided_relu'\. Known: stages\."):
        readout("gradcam", guided_relu=True)
    with pytest.raises(ValueError, match=r"Unknown setting of readout 'bagcams' 'block3/ours3'\."):
        readout("bagcams").maps(tiny, images(), CLASSES, "block3/ours3")
    with pytest.raises(ValueError, match="in eval mode"):
        readout("gradcam").settings(copy.deepcopy(tiny).train())
