"""ACoL: what is erased by hand and by loops, who is trained by what, maps and networks of the benchmark."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wsol_models
from wsol_models import acol
from wsol_models._layers import min_max
from wsol_models.readouts import readout

TARGETS = torch.tensor([2, 0])


def build(name: str = "tiny", **options) -> acol.Method:
    torch.manual_seed(0)
    return wsol_models.build("acol", backbone=name, num_classes=3, **options)


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def literal(method: acol.Method, features: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """B's logits and the fused maps, image by image."""
    logits, fused = [], []
    for feature, label in zip(features, classes.tolist(), strict=True):
        maps_a = method.classifier_A(feature[None])[1][0]
        attention = maps_a[label].detach().numpy()
        attention = (attention - attention.min()) / (attention.max() - attention.min())
        left = torch.from_numpy(np.where(attention >= method.config.threshold, 0, 1).astype(np.float32))
        maps_b = method.classifier_B((feature * left)[None])[1][0]
        logits.append(maps_b.mean((1, 2)))
        both = [(m - m.amin((1, 2), True)) / (m.amax((1, 2), True) - m.amin((1, 2), True)) for m in (maps_a, maps_b)]
        fused.append(torch.maximum(*both))
    return torch.stack(logits), torch.stack(fused)


def test_what_is_erased_by_hand():
    """The class's map 1, 3, 5, 4.5 is 0, .5, 1, .875 from 0 to 1: erased from .875 on. A constant map erases none."""
    maps = torch.tensor(
        [[[[9.0, 0.0], [0.0, 0.0]], [[1.0, 3.0], [5.0, 4.5]]], [[[1.0, 0.0], [0.0, 0.0]], [[2.0, 2.0]] * 2]]
    )
    left = acol.complement(maps, torch.tensor([1, 1]), 0.875)
    assert left[:, 0].tolist() == [[[1, 1], [0, 0]], [[1, 1], [1, 1]]]


def test_pass_against_loops():
    method = build().eval()
    features, _ = method.backbone(images())
    for targets, classes in ((TARGETS, TARGETS), (None, method(images()).logits_BK.argmax(1))):
        output = method(images(), targets)
        logits, fused = literal(method, features, classes)
        torch.testing.assert_close(output.logits_b_BK, logits)
        torch.testing.assert_close(output.maps_BKHW, fused)


def test_losses_by_hand():
    """Classes 0 of A's (1, 2) and B's (0, 0): log(e + e²) - 1 and log 2."""
    output = acol.ComplementaryOutput(
        torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1, 1, 1), targets=torch.tensor([0]), logits_b_BK=torch.zeros(1, 2)
    )
    terms = acol.losses(output, acol.Config())
    assert terms["a"].item() == pytest.approx(math.log(math.e + math.e**2) - 1)
    assert terms["b"].item() == pytest.approx(math.log(2))


def test_bs_loss_trains_b_and_the_network_but_never_a():
    method = build()
    acol.losses(method(images(), TARGETS), method.config)["b"].backward()
    trained = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"backbone", "classifier_B"}


def test_own_maps_are_of_the_class_that_was_erased():
    method, reader = build().eval(), readout("own")
    classes = torch.tensor([1, 2])
    shared = method(images())  # of the classes that A predicts
    assert not torch.equal(shared.logits_BK.argmax(1), classes)
    expected = method(images(), classes).maps_BKHW[torch.arange(2), classes]
    assert torch.equal(reader.maps(method, images(), classes, "own", shared), expected)
    assert not torch.equal(shared.maps_BKHW[torch.arange(2), classes], expected)


def test_linear_head_is_as():
    method = build().eval()
    output = method(images())
    maps = torch.einsum("kc,bchw->bkhw", method.head_weight_KC, output.features_BCHW)
    bias = method.classifier_A.get_parameter("maps.bias")
    torch.testing.assert_close(maps.mean((2, 3)) + bias, output.logits_BK)


def test_one_of_several_classes_erases():
    method = build()
    output = method(images(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    features, _ = method.backbone(images())
    both = [literal(method, features, torch.tensor([first, 1]))[0] for first in (0, 2)]
    assert any(torch.allclose(output.logits_b_BK, logits, atol=1e-6) for logits in both)
    expected = F.multilabel_soft_margin_loss(output.logits_b_BK, output.targets)
    assert torch.equal(acol.losses(output, method.config)["b"], expected)


@pytest.mark.parametrize(("large", "size"), [(True, 8), (False, 4)])
def test_vgg16_as_the_benchmark(large, size):
    """Windows of 3 in all poolings; pool5 (large: and pool4) without stride; then an average-pool."""
    method = build("vgg16", large=large, head_width=8).eval()
    expected = images(64)
    for name in ("relu1_2", "pool1", "relu2_2", "pool2", "relu3_3", "pool3", "relu4_3", "pool4", "relu5_3", "pool5"):
        if name.startswith("relu"):
            expected = method.backbone.get_submodule(name)(expected)
        else:
            stride = 1 if name == "pool5" or (name == "pool4" and large) else 2
            expected = F.max_pool2d(expected, 3, stride, 1)
    expected = F.avg_pool2d(expected, 3, 1, 1)
    output = method(images(64), taps=("relu5_3",))
    torch.testing.assert_close(output.taps["relu5_3"], expected)
    assert output.maps_BKHW.shape == (2, 3, size, size)


def test_initialisation():
    """He over the outputs on ResNets, Xavier elsewhere; no biases."""
    heads = {name: build(name, large=False).classifier_A for name in ("resnet18", "tiny")}
    for head in heads.values():
        assert not any(layer.bias.any() for layer in head if isinstance(layer, nn.Conv2d))
    weight = heads["resnet18"].get_parameter("hidden2.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 1024)), rel=0.01)
    limit = math.sqrt(6 / (2 * 9 * 64))
    assert 0.99 * limit < heads["tiny"].get_parameter("hidden2.weight").abs().max() <= limit


def test_learning_rates():
    with torch.device("meta"):
        methods = {name: build(name) for name in ("vgg16", "inception_v3", "resnet50")}
        tenfold = build("resnet50", head_lr_scale=10.0)
    scales = {name: {p: m.lr_scale(p) for p, _ in m.named_parameters()} for name, m in methods.items()}
    for name in ("vgg16", "inception_v3"):
        assert all(scale == (10 if p.startswith("classifier") else 1) for p, scale in scales[name].items())
    assert all(scale == (10 if ".layer4." in p else 1) for p, scale in scales["resnet50"].items())
    assert tenfold.lr_scale("classifier_A.maps.weight") == 10


def test_constant_maps_are_zero():
    assert min_max(torch.full((1, 2, 2), 3.0)).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="threshold must be between 0 and 1 but is 2"):
        acol.Config(threshold=2)
    with pytest.raises(ValueError, match="head_width must be at least 1 but is 0"):
        acol.Config(head_width=0)
