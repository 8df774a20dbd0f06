"""ADL: masks by hand and by loops, one draw per layer, positions on every network, the identity in evaluation."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import wsol_models
from wsol_models import adl


def build(name: str = "tiny", **options) -> adl.Method:
    torch.manual_seed(0)
    return wsol_models.build("adl", backbone=name, num_classes=3, **options)


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_drop_mask_by_hand():
    """Means over two channels 1, 2, 4, 3.6; dropped from .9·4 = 3.6 on. The second image has its own maximum."""
    first = torch.tensor([[[0.0, 4.0], [2.0, 3.6]], [[2.0, 0.0], [6.0, 3.6]]])
    mask = adl.drop_mask(torch.stack([first, first / 10]), 0.9)
    assert mask[:, 0].tolist() == [[[1, 1], [0, 0]]] * 2


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_masks_against_loops(threshold):
    features = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    for image, mask, weight in zip(
        features.numpy(), adl.drop_mask(features, threshold).numpy(), adl.importance(features).numpy(), strict=True
    ):
        attention = image.sum(0) / 4
        for row in range(5):
            for column in range(6):
                assert mask[0, row, column] == (attention[row, column] < threshold * attention.max())
                expected = 1 / (1 + math.exp(-attention[row, column]))
                np.testing.assert_allclose(weight[0, row, column], expected, rtol=1e-5)


def test_attention_is_part_of_the_gradient():
    """One channel: d/dx xσ(x) = σ(x) + xσ(x)(1 - σ(x)) at x = 2."""
    x = torch.full((1, 1, 1, 1), 2.0, requires_grad=True)
    adl.AttentionDropout(drop_rate=0.0, threshold=0.9)(x).backward()
    sigmoid = 1 / (1 + math.exp(-2))
    assert x.grad.item() == pytest.approx(sigmoid + 2 * sigmoid * (1 - sigmoid))


@pytest.mark.parametrize(("number", "drops"), [(0.26, True), (0.25, True), (0.24, False)])
def test_a_layer_drops_with_the_probability_drop_rate(monkeypatch, number, drops):
    """floor(U + .75) is 1 from U = .25 on; for the whole batch, and nothing is rescaled."""
    features = torch.rand(2, 3, 4, 4) + 1
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(number))
    weight = adl.drop_mask(features, 0.9) if drops else adl.importance(features)
    assert torch.equal(adl.AttentionDropout(0.75, 0.9)(features), features * weight)


def test_one_draw_per_layer_and_batch(monkeypatch):
    method, draws, draw = build(), [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **where: draws.append(size) or draw(*size, **where))
    method(images())
    assert draws == [((),)] * 3
    method.eval()(images())
    assert len(draws) == 3


def test_evaluation_is_cams():
    method = build().eval()
    plain = wsol_models.build("cam", backbone="tiny", num_classes=3).eval()
    plain.load_state_dict(method.state_dict())
    assert torch.equal(method(images()).logits_BK, plain(images()).logits_BK)


POSITIONS = {
    "vgg16": ("pool3", "relu4_3", "relu5_3"),  # before conv4_1, after conv4_3 and conv5_3
    "resnet50": ("layer3.0", "layer4.0", "layer4"),
    "inception_v3": ("Mixed_5d", "Mixed_6e", "SPG_A3_2b"),
    "tiny": ("block2", "block3", "block4"),
    "mobilenet_v2": ("features16", "features17", "features18"),
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("large", [True, False])
def test_positions(name, large):
    """The three layers are really met, in order, with the features of these places."""
    with torch.device("meta"):
        method, met = build(name, large=large), []
        method.dropout.register_forward_hook(lambda _, inputs, __: met.append(inputs[0].shape))
        kept: dict[str, torch.Size] = {}
        places = {place: (lambda f, place=place: kept.update({place: f.shape}) or f) for place in POSITIONS[name]}
        method.backbone(images(64).to("meta"), (), places)
        method(images(64).to("meta"))
    assert met == [kept[place] for place in POSITIONS[name]]
    assert set(POSITIONS[name]) <= set(method.backbone.places)


def test_last_position_of_a_resnet_is_after_its_last_block():
    """layer4[2] of ResNet50 is the end of layer4."""
    with torch.device("meta"):
        names = [name for name, _ in build("resnet50").backbone.get_submodule("layer4").named_children()]
    assert names == ["0", "1", "2"]


def test_no_other_dropout_on_inception():
    with torch.device("meta"):
        rates = [m.p for m in build("inception_v3").modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.0] * 3


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="drop_rate must be between 0 and 1 but is -1"):
        adl.Config(drop_rate=-1)
    with pytest.raises(ValueError, match="threshold must be between 0 and 1 but is nan"):
        adl.Config(threshold=float("nan"))
