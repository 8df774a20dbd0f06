"""mLDFR: self-attention written out and by hand, its places, initialisations, batch norm whole, virtual and gone."""

import copy
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import wsol_models
from wsol_models import mldfr
from wsol_models._backbones import BACKBONES
from wsol_models._layers import FrozenBatchNorm2d, Output

TARGETS = torch.tensor([1, 0])
PLACES = {  # of the paper's table: stage -> channels
    "vgg16_bn": {"pool2": 128, "pool3": 256, "pool4": 512},
    "resnet50": {"stem": 64, "layer2": 512, "layer3": 1024},
    "inception_v3": {"maxpool1": 64, "maxpool2": 192, "Mixed_6a": 768},
    "densenet161": {"pool0": 96, "transition1": 192, "transition3": 1056},
    "googlenet": {"maxpool1": 64, "maxpool2": 192, "maxpool3": 480},
    "mobilenet_v2": {"features2": 24, "features4": 32, "features7": 64},
}


def build(name: str = "tiny", **options) -> mldfr.Method:
    torch.manual_seed(0)
    return wsol_models.build("mldfr", backbone=name, num_classes=3, **options)


def images(number: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d | mldfr.GhostBatchNorm2d)]


# --- self-attention ---------------------------------------------------------------------------------------------------


def literal_attention(attention: mldfr.SelfAttention, features_BCHW: torch.Tensor) -> torch.Tensor:
    """SA in training, number by number: no layer of torch but the padded convolution."""
    weight = attention.channel[0].weight[:, :, 0, 0]
    pooled_BC = features_BCHW.sum((2, 3)) / features_BCHW[0, 0].numel()
    scores_BC = torch.stack([weight @ pooled for pooled in pooled_BC])
    spread_C = ((scores_BC - scores_BC.mean(0)) ** 2).mean(0)
    normed_BC = (scores_BC - scores_BC.mean(0)) / (spread_C + 1e-5).sqrt()
    features_BCHW = features_BCHW / (1 + torch.exp(-normed_BC))[:, :, None, None]
    over_channels = torch.stack([features_BCHW.amax(1), features_BCHW.mean(1)], dim=1)
    kernel = attention.spatial[0].weight
    scores_B1HW = F.conv2d(over_channels, kernel, padding=kernel.shape[-1] // 2)
    spread = ((scores_B1HW - scores_B1HW.mean()) ** 2).mean()
    return features_BCHW / (1 + torch.exp((scores_B1HW.mean() - scores_B1HW) / (spread + 1e-5).sqrt()))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_attention_equals_a_literal_one(kernel_size):
    torch.manual_seed(2)
    attention, features = mldfr.SelfAttention(4, kernel_size), torch.randn(3, 4, 6, 5)
    torch.testing.assert_close(attention(features), literal_attention(attention, features))


def test_attention_by_hand():
    """Evaluated, so batch norm with mean 0 and variance 1 is a division by √(1 + 1e-5), taken as 1 here. Two channels,
    (0, 0, 0, 4) and (2, 2, 2, 2): means 1, 2. W = [[ln 3, 0], [0, 0]], so a = (σ(ln 3), σ(0)) = (3/4, 1/2), X' = (0, 0,
    0, 3), (1, 1, 1, 1). Over channels: max (1, 1, 1, 3), mean (.5, .5, .5, 2). A 1x1 kernel of (ln 3, -2 ln 3) for max
    and mean: 0, 0, 0 and -ln 3, so b = (1/2, 1/2, 1/2, 1/4). With mean first it would be another.
    """
    attention = mldfr.SelfAttention(2, 1).eval()
    for norm in batch_norms(attention):
        norm.eps = 0
    with torch.no_grad():
        attention.channel[0].weight.copy_(torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])[..., None, None])
        attention.spatial[0].weight.copy_(math.log(3) * torch.tensor([[[[1.0]], [[-2.0]]]]))
    features = torch.tensor([[[[0.0, 0.0], [0.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    expected = torch.tensor([[[[0.0, 0.0], [0.0, 0.75]], [[0.5, 0.5], [0.5, 0.25]]]])
    torch.testing.assert_close(attention(features), expected)


def test_attention_normalises_as_the_authors():
    norms = batch_norms(mldfr.SelfAttention(4, 3))
    assert [(norm.num_features, norm.eps, norm.momentum) for norm in norms] == [(4, 1e-5, 0.01), (1, 1e-5, 0.01)]


@pytest.mark.parametrize("name", PLACES)
def test_places_and_kernels_of_the_papers_table(name):
    with torch.device("meta"):
        method = build(name)
    assert {place: attention.channel[0].in_channels for place, attention in method.sa.items()} == PLACES[name]
    assert [attention.spatial[0].kernel_size for attention in method.sa.values()] == [(7, 7), (5, 5), (3, 3)]
    assert all(layer.bias is None for attention in method.sa.values() for layer in mldfr.convolutions(attention))


def test_forward_is_the_network_with_attention_after_its_places():
    method = build(kernel3=9).double()
    features = images().double()
    for name in method.backbone.names:
        features = method.backbone.get_submodule(name)(features)
        if name in ("block1", "block2", "block3"):
            features = literal_attention(method.sa[name], features)
    maps = torch.einsum("bchw,kc->bkhw", features, method.fc.weight[:, :, 0, 0]) + method.fc.bias[:, None, None]
    output = method(images().double(), TARGETS)
    torch.testing.assert_close(output.maps_BKHW, maps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.logits_BK, maps.mean((2, 3)), rtol=1e-9, atol=1e-9)
    assert method.sa["block3"].spatial[0].kernel_size == (9, 9)


def test_a_tap_comes_after_its_attention():
    method = build().eval()
    after = method(images(), taps=("block1",)).taps["block1"]
    before = method.backbone.get_submodule("block1")(images())
    torch.testing.assert_close(after, method.sa["block1"](before))


# --- losses -----------------------------------------------------------------------------------------------------------


def test_losses_by_hand():
    """Of (0, ln 3): class 1 has 3/4; binary, σ(0) = 1/2 absent and σ(ln 3) = 3/4 present."""
    logits, features = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 1, 1, 1)
    one = mldfr.losses(Output(logits, features, targets=torch.tensor([1])), mldfr.Config())
    several = mldfr.losses(Output(logits, features, targets=torch.tensor([[0.0, 1.0]])), mldfr.Config())
    assert {name: term.item() for name, term in one.items()} == pytest.approx({"cls": math.log(4 / 3)})
    assert several["cls"].item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_images_of_several_classes():
    method = build()
    output = method(images(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    mldfr.losses(output, method.config)["cls"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


# --- switches ---------------------------------------------------------------------------------------------------------


def test_without_attention_the_plain_network_is_left():
    method = build("resnet18", sa=False).eval()
    assert not method.sa
    features, _ = method.backbone(images())
    torch.testing.assert_close(method(images()).logits_BK, method.fc(features).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
def test_without_batch_norm_none_is_left_anywhere(frozen):
    method = build("resnet18", bn=False, frozen_batch_norm=frozen)
    assert not batch_norms(method)
    assert len(method.sa) == 3
    block, features = method.backbone.get_submodule("layer1.0"), torch.randn(1, 64, 4, 4).relu()
    expected = (block.conv2(block.conv1(features).relu()) + features).relu()
    torch.testing.assert_close(block(features), expected)
    mldfr.losses(method(images(1), TARGETS[:1]), method.config)["cls"].backward()  # one image is enough


def test_a_frozen_network_leaves_the_new_batch_norms_of_attention_training():
    method = build("resnet18", frozen_batch_norm=True)
    assert {type(norm) for norm in batch_norms(method.backbone)} == {FrozenBatchNorm2d}
    assert {type(norm) for norm in batch_norms(method.sa)} == {nn.BatchNorm2d}


def test_a_single_image_is_refused_in_training_only():
    method = build()
    with pytest.raises(ValueError, match="at least 2 .* but got 1"):
        method(images(1), TARGETS[:1])
    method.eval()(images(1))
    build(sa=False)(images(1), TARGETS[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel1": 4}, "kernel1 must be odd and at least 1 but is 4"),
        ({"kernel3": -1}, "kernel3 must be odd and at least 1 but is -1"),
        ({"bn_virtual_batch": 1}, "at least 2 images, or 0 for all, but is 1"),
        ({"bn_virtual_batch": -2}, "at least 2 images, or 0 for all, but is -2"),
        ({"kernel": 3}, "Unknown option of mldfr 'kernel'. Did you mean 'kernel"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# --- virtual batches --------------------------------------------------------------------------------------------------


def whole_batch_norm() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(2, momentum=0.3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def test_each_virtual_batch_has_its_own_statistics():
    torch.manual_seed(3)
    whole, features = whole_batch_norm(), torch.randn(6, 2, 4, 3)
    ghost = mldfr.GhostBatchNorm2d(copy.deepcopy(whole), 3)
    expected = torch.cat([whole(features[:3]), whole(features[3:])])  # which moves `whole`'s running statistics twice
    torch.testing.assert_close(ghost(features), expected)
    torch.testing.assert_close(ghost.running_mean, whole.running_mean)
    torch.testing.assert_close(ghost.running_var, whole.running_var)
    torch.testing.assert_close(ghost.eval()(features), whole.eval()(features))


@pytest.mark.parametrize(
    ("number", "size", "parts"),
    [
        (256, 64, [64] * 4),
        (256, 85, [86, 85, 85]),
        (128, 26, [26, 26, 26, 25, 25]),
        (7, 2, [3, 2, 2]),  # never one alone
        (3, 8, [3]),
    ],
)
def test_virtual_batches_are_near_the_size_asked_for(number, size, parts):
    """Every image is constant; batch norm brings each part's mean to 0."""
    ghost = mldfr.GhostBatchNorm2d(nn.BatchNorm2d(1), size)
    normed = ghost(torch.arange(number).float().view(-1, 1, 1, 1) ** 2).flatten()
    ends = torch.tensor(parts).cumsum(0).tolist()
    for begin, end in zip([0, *ends], ends, strict=False):
        assert normed[begin:end].mean().item() == pytest.approx(0, abs=1e-3)
        assert normed[begin:end].std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_all_batch_norms_become_virtual():
    method = build("resnet18", bn_virtual_batch=2)
    assert {type(norm) for norm in batch_norms(method)} == {mldfr.GhostBatchNorm2d}
    assert method.state_dict().keys() == {
        name for name in build("resnet18").state_dict() if not name.endswith("num_batches_tracked")
    }
    method, batch = method.double(), images(4).double()
    alone = [method(batch[part]).logits_BK for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(method(batch).logits_BK, torch.cat(alone), rtol=1e-9, atol=1e-9)


# --- initialisation ---------------------------------------------------------------------------------------------------


def xavier_std(layer: nn.Conv2d) -> float:
    area = layer.kernel_size[0] * layer.kernel_size[1]
    return math.sqrt(2 / (area * (layer.in_channels + layer.out_channels)))


def assert_spread(layer: nn.Conv2d, std: float) -> None:
    """Mean and deviation of the weights, within four standard errors."""
    weights = layer.weight.detach().flatten()
    assert weights.mean().item() == pytest.approx(0, abs=4 * std / math.sqrt(len(weights)))
    assert weights.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * len(weights)))


TRUNCATED_STD = 0.8796  # of a standard normal cut at ±2


def test_attention_and_head_start_from_xavier_normal():
    method = build("resnet18")
    assert_spread(method.fc, xavier_std(method.fc))
    assert not method.fc.bias.any()
    for attention in method.sa.values():
        for layer in mldfr.convolutions(attention):
            assert_spread(layer, xavier_std(layer))


def test_a_resnets_new_layers_start_anew_with_the_batch_norm_behind_them(tmp_path):
    """Of the loaded batch norms the running statistics stay."""
    network = BACKBONES["resnet18"].network()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 2, 3)
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    block = build("resnet18", weights=str(tmp_path / "resnet18.safetensors")).backbone.get_submodule("layer4.0")
    old = network.layer4[0]
    for layer in (block.conv1, block.downsample[0]):
        assert layer.kernel_size == (1, 1)
        assert_spread(layer, xavier_std(layer))
        assert not layer.bias.any()
    for layer, before in ((block.bn1, old.bn1), (block.downsample[1], old.downsample[1])):
        assert (layer.weight == 1).all()
        assert not layer.bias.any()
        assert torch.equal(layer.running_mean, before.running_mean)
        assert torch.equal(layer.running_var, before.running_var)
    assert torch.equal(block.bn2.weight, old.bn2.weight)


def test_a_bottleneck_starts_anew_at_its_strided_convolution():
    block = build("resnet50").backbone.get_submodule("layer4.0")
    names = [name for name, layer in block.named_modules() if layer in mldfr.normalising(block)]
    assert names == ["bn2", "downsample.1"]
    assert_spread(block.conv2, xavier_std(block.conv2))


def test_googlenet_starts_from_a_cut_normal():
    method = build("googlenet")
    transition = method.backbone.get_submodule("transition.0")
    for layer in (method.fc, transition, *mldfr.convolutions(method.sa)):
        assert layer.weight.abs().max() <= 0.02
        assert_spread(layer, 0.01 * TRUNCATED_STD)
    for layer in (method.fc, transition):  # torch's own: uniform up to 1/√fan_in
        assert 0 < layer.bias.abs().max() <= 1 / math.sqrt(layer.in_channels)


def test_inceptions_transition_starts_from_a_cut_normal():
    method = build("inception_v3")
    transition = method.backbone.get_submodule("transition.0")
    assert transition.weight.abs().max() <= 0.2
    assert_spread(transition, 0.1 * TRUNCATED_STD)
    assert transition.bias.any()
    assert_spread(method.fc, xavier_std(method.fc))


def test_vggs_additional_layer_stays_torchs():
    """Uniform up to 1/√fan_in, a deviation of a √3rd of it."""
    layer = build("vgg16_bn").backbone.get_submodule("transition.0")
    bound = 1 / math.sqrt(9 * 512)
    assert layer.weight.abs().max() <= bound
    assert_spread(layer, bound / math.sqrt(3))


def test_one_learning_rate():
    method = build("resnet18")
    assert {method.lr_scale(name) for name, _ in method.named_parameters()} == {1.0}
