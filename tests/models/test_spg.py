"""SPG: pseudo masks and losses by loops and by hand, what teaches what, places of the branches."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import wsol_models
from wsol_models import spg

TARGETS = torch.tensor([2, 0])


def build(name: str = "tiny", **options) -> spg.Method:
    torch.manual_seed(0)
    return wsol_models.build("spg", backbone=name, num_classes=3, **options)


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def mask_by_loops(attention_BHW: np.ndarray, high: float, low: float) -> np.ndarray:
    masks = np.full(attention_BHW.shape, 255)
    for attention, mask in zip(attention_BHW, masks, strict=True):
        limit = high if (attention > high).sum() >= 30 else 0.7 * attention.max()
        for row in range(attention.shape[0]):
            for column in range(attention.shape[1]):
                if attention[row, column] > limit:
                    mask[row, column] = 1
                if attention[row, column] < low:
                    mask[row, column] = 0
    return masks


@pytest.mark.parametrize(("high", "low"), [(0.7, 0.01), (0.5, 0.5), (0.97, 0.1), (0.95, 0.9)])
def test_pseudo_masks_against_loops(high, low):
    """20 x 20 pixels: above .97 there are fewer than 30, so .7 of the maximum counts, from which .9 takes some back."""
    attention = torch.rand(5, 20, 20, generator=torch.Generator().manual_seed(3))
    expected = mask_by_loops(attention.numpy(), high, low)
    np.testing.assert_array_equal(spg.pseudo_mask(attention, high, low).numpy(), expected)
    if high == 0.97:
        assert ((expected == 1).sum((1, 2)) > 90).all()


@pytest.mark.parametrize(("pixels", "foreground"), [(30, 30), (29, 40)])
def test_foreground_of_fewer_than_30_pixels_is_widened(pixels, foreground):
    """Attention .9 on some pixels, .65 on 11 more (above .7·.9 = .63), .3 elsewhere."""
    attention = torch.full((1, 100), 0.3)
    attention[0, :pixels], attention[0, pixels : pixels + 11] = 0.9, 0.65
    mask = spg.pseudo_mask(attention.view(1, 10, 10), 0.7, 0.01)
    assert (mask == 1).sum() == foreground
    assert (mask == 255).sum() == 100 - foreground


def test_guidance_by_hand():
    """Logit 0 of foreground: log 2; logit 1 of background: log(1 + e). The third pixel is ignored."""
    logits = torch.tensor([[[0.0, 1.0, 7.0]]], requires_grad=True)
    loss = spg.guidance(logits, torch.tensor([[[1.0, 0.0, 255.0]]]))
    loss.backward()
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2)
    assert logits.grad.flatten().tolist() == pytest.approx([-0.25, 0.5 / (1 + math.exp(-1)), 0])


def test_losses_against_a_literal_pass():
    """Everything again at the images' size with dense class maps and torch's own means over kept pixels."""
    method = build()
    output = method(images(), TARGETS)
    tap: dict[str, torch.Tensor] = {}
    for place in ("block2", "block3"):
        method.backbone(images(), (), {place: lambda f, place=place: tap.update({place: f}) or f})
    features, _ = method.backbone(images())
    dense = F.conv2d(features, method.fc.weight[..., None, None], method.fc.bias)
    logits = {
        "b1": method.B_shared(method.B1(tap["block2"])),
        "b2": method.B_shared(method.B2(tap["block3"])),
        "c": method.C(features),
    }
    logits = {name: F.interpolate(value, (32, 32), mode="bilinear")[:, 0] for name, value in logits.items()}
    attention = F.interpolate(dense, (32, 32), mode="bilinear")[torch.arange(2), TARGETS].detach()
    attention = torch.stack([(a - a.min()) / (a.max() - a.min()) for a in attention])
    b1, b2 = logits["b1"].detach().sigmoid(), logits["b2"].detach().sigmoid()
    taught = {"b2": (attention, 0.7, 0.01), "b1": (b2, 0.5, 0.05), "c": ((b1 + b2) / 2, 0.7, 0.1)}
    terms = spg.losses(output, method.config)
    torch.testing.assert_close(terms["cls"], F.cross_entropy(dense.mean((2, 3)), TARGETS))
    for name, (teacher, high, low) in taught.items():
        mask = torch.from_numpy(mask_by_loops(teacher.numpy(), high, low)).float()
        kept = mask < 255
        expected = F.binary_cross_entropy_with_logits(logits[name][kept], mask[kept])
        torch.testing.assert_close(terms[name], expected)


TRAINED = {
    "cls": {"backbone.block4", "fc"},
    "b1": {"B1", "B_shared"},
    "b2": {"backbone.block3", "B2", "B_shared"},
    "c": {"backbone.block4", "C"},
}


@pytest.mark.parametrize("term", TRAINED)
def test_teachers_are_not_trained_by_pupils(term):
    """Of the last two stages and the heads, a term trains its own branch and what is in front of it."""
    method = build()
    spg.losses(method(images(), TARGETS), method.config)[term].backward()
    trained = {name.rpartition(".")[0] for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    parts = ("backbone.block3", "backbone.block4", "B1", "B2", "B_shared", "C", "fc")
    found = {part for part in parts if any(name.startswith(part) for name in trained)}
    assert found == TRAINED[term] | ({"backbone.block3"} if "backbone.block4" in TRAINED[term] else set())


PLACES = {
    ("vgg16", True): ("relu4_3", "relu5_3"),
    ("vgg16", False): ("pool4", "relu5_3"),
    ("resnet50", True): ("layer3.0", "layer3"),
    ("resnet50", False): ("layer3.0", "layer3"),
    ("inception_v3", True): ("Mixed_5d", "Mixed_6d"),
    ("inception_v3", False): ("Mixed_6a.0", "Mixed_6d"),
    ("mobilenet_v2", True): ("features16", "features17"),
}


@pytest.mark.parametrize(("name", "large"), PLACES)
def test_places_of_the_branches(name, large):
    """Both branches read features at the size of the last map."""
    with torch.device("meta"):
        method = build(name, large=large)
        sizes: list[torch.Size] = []
        for branch in (method.B1, method.B2):
            branch.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[2:]))
        output = method(images(64), TARGETS)
    assert method.places == PLACES[name, large]
    assert sizes == [output.features_BCHW.shape[2:]] * 2
    assert output.b1_BHW.shape == output.attention_BHW.shape == (2, 64, 64)


def test_vgg16_halves_the_map_by_windows_of_3():
    with torch.device("meta"):
        pool = build("vgg16", large=False).backbone.get_submodule("pool4")
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)


def test_learning_rates():
    with torch.device("meta"):
        methods = {name: build(name) for name in ("vgg16", "inception_v3", "resnet50")}
    scales = {name: {p: m.lr_scale(p) for p, _ in m.named_parameters()} for name, m in methods.items()}
    blocks = ("backbone.relu1", "backbone.relu2", "backbone.relu3")  # `features.` of the benchmark's network
    assert all(scale == (1 if p.startswith(blocks) else 10) for p, scale in scales["vgg16"].items())
    assert all(scale == (1 if "Mixed" in p or "Conv2d" in p else 10) for p, scale in scales["inception_v3"].items())
    assert all(scale == (10 if ".layer4." in p else 1) for p, scale in scales["resnet50"].items())


def test_branches_run_in_training_only():
    method = build().eval()
    assert not isinstance(method(images(), TARGETS), spg.GuidedOutput)
    with pytest.raises(ValueError, match="call method.train"):
        spg.losses(method(images(), TARGETS), method.config)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="b2_high must be between 0 and 1 but is 5"):
        spg.Config(b2_high=5)
    with pytest.raises(ValueError, match=r"fused_low must not be above fused_high \(0.7\) but is 0.8"):
        spg.Config(fused_low=0.8)
