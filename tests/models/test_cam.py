"""CAM: its losses by hand, the benchmark's initialisation and learning rates on every network."""

import math

import pytest
import torch
from torch import nn

import wsol_models
from wsol_models import cam
from wsol_models._layers import Output, scored


def build(name: str, **options) -> cam.Method:
    torch.manual_seed(0)
    return wsol_models.build("cam", backbone=name, num_classes=3, **options)


def output_of(logits: list[float], targets: torch.Tensor) -> Output:
    return Output(torch.tensor([logits]), torch.zeros(1, 1, 1, 1), targets=targets)


def test_loss_of_one_class():
    """Logits 1, 2, 3 and class 2: log(e + e^2 + e^3) - 3."""
    terms = cam.losses(output_of([1.0, 2.0, 3.0], torch.tensor([2])), cam.Config())
    assert terms["cls"].item() == pytest.approx(math.log(math.e + math.e**2 + math.e**3) - 3)


def test_loss_of_several_classes():
    """Logits 0, 0, 1 of which the first and the last are present: (log 2 + log 2 + log(1 + 1/e)) / 3."""
    terms = cam.losses(output_of([0.0, 0.0, 1.0], torch.tensor([[1.0, 0.0, 1.0]])), cam.Config())
    assert terms["cls"].item() == pytest.approx((2 * math.log(2) + math.log(1 + 1 / math.e)) / 3)


def test_rows_of_targets_reach_the_loss():
    method, targets = build("tiny"), torch.tensor([[1.0, 0.0, 1.0]])
    output = method(torch.randn(1, 3, 32, 32), targets)
    assert output.targets is targets
    with pytest.raises(ValueError, match=r"or float multi-hot rows, shape \(1, 3\), but are torch.float32 of shape"):
        method(torch.randn(1, 3, 32, 32), targets[:, :2])


@pytest.mark.parametrize("name", ["vgg16", "inception_v3", "mobilenet_v1", "mobilenet_v2"])
def test_a_step_on_a_real_network(name):
    method = build(name, large=False)
    output = method(torch.randn(2, 3, 64, 64), torch.tensor([0, 2]))
    cam.losses(output, method.config)["cls"].backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in method.parameters())


def test_dropout_is_before_the_mean_in_training_only():
    """InceptionV3: what the head reads is then not what the last convolution gave."""
    method, image = build("inception_v3", large=False), torch.randn(2, 3, 64, 64)
    output = method(image, taps=("SPG_A3_2b",))
    zeroed = (output.features_BCHW == 0) & (output.taps["SPG_A3_2b"] > 0)
    assert zeroed.any()
    output = method.eval()(image, taps=("SPG_A3_2b",))
    assert torch.equal(output.features_BCHW, output.taps["SPG_A3_2b"])
    dense = nn.functional.conv2d(output.features_BCHW, method.fc.weight[..., None, None], method.fc.bias)
    torch.testing.assert_close(output.logits_BK, dense.mean((2, 3)))  # the 1x1 convolution of the benchmark


def scales(name: str, **options) -> dict[str, float]:
    with torch.device("meta"):
        method = build(name, **options)
    return {parameter: method.lr_scale(parameter) for parameter, _ in method.named_parameters()}


def test_learning_rates():
    """VGG16: all but `features` x10. InceptionV3: all but Mixed and Conv2d x10. ResNet: layer4 and fc x10."""
    vgg, inception, resnet = scales("vgg16"), scales("inception_v3"), scales("resnet50")
    assert {name for name, scale in vgg.items() if scale == 10} == {
        f"{layer}.{tensor}" for layer in ("backbone.conv6", "fc") for tensor in ("weight", "bias")
    }
    assert {name.split(".")[-3] for name, scale in inception.items() if scale == 10 and not name.startswith("fc")} == {
        "SPG_A3_1b",
        "SPG_A3_2b",
    }
    assert all(scale == (1 if "Mixed" in name or "Conv2d" in name else 10) for name, scale in inception.items())
    assert all(scale == (10 if "layer4" in name or "fc" in name else 1) for name, scale in resnet.items())
    bagcams = scales("resnet50", layer4_lr_scale=1.0)
    assert {name for name, scale in bagcams.items() if scale == 10} == {"fc.weight", "fc.bias"}


def test_new_layers_of_vgg_start_as_in_the_benchmark():
    method = build("vgg16")
    conv6 = method.backbone.get_submodule("conv6")
    assert conv6.weight.std().item() == pytest.approx(math.sqrt(2 / (1024 * 9)), rel=0.01)  # He, over the outputs
    assert not conv6.bias.any()
    assert method.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_new_layers_of_inception_start_as_in_the_benchmark():
    method = build("inception_v3")
    weight = method.backbone.get_parameter("SPG_A3_1b.1.weight")
    limit = math.sqrt(6 / ((768 + 1024) * 9))  # Xavier-uniform
    assert 0.999 * limit < weight.abs().max() <= limit
    assert 0.99 * math.sqrt(6 / 1027) < method.fc.weight.abs().max() <= math.sqrt(6 / 1027)


def test_logits_are_scored_without_memory_too():
    """A study's plan builds its method on "meta", which knows no autocast."""
    with torch.device("meta"):
        assert scored(nn.Linear(3, 2), torch.zeros(1, 3)).shape == (1, 2)
