"""Backbones: layouts, stages against their networks, weights, taps, frozen batch norm, the detached call."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision import models

import wsol_models
from wsol_models._backbones import BACKBONES, backbone, densenet, inception, network_state
from wsol_models._layers import FrozenBatchNorm2d, detached_call, freeze_batch_norm

RESNET = {
    "large": [4, 4, 8, 8, 8],
    "small": [4, 4, 8, 16, 16],
    "late": [4, 4, 8, 8, 16],
    "transition": [4, 4, 8, 16, 16],
}
VGG = {
    "large": [1, 2, 2, 4, 4, 8, 8, 8, 8, 8],
    "small": [1, 2, 2, 4, 4, 8, 8, 16, 16, 16, 16],
    "late": [1, 2, 2, 4, 4, 8, 8, 16, 16],
    "transition": [1, 2, 2, 4, 4, 8, 8, 16, 16, 16],
}
STEM = [2, 2, 2, 4, 4, 4, 8, 8, 8, 8]  # of InceptionV3, up to Mixed_5d
STRIDES = {
    "resnet18": RESNET,
    "resnet50": RESNET,
    "vgg16": VGG,
    "vgg16_bn": VGG,
    "inception_v3": {
        "large": STEM + [8] * 8,
        "small": STEM + [16] * 8,
        "late": STEM + [8] * 5 + [16] * 3,
        "transition": STEM + [16] * 8,
    },
    "googlenet": {"transition": [2] + [4] * 3 + [8] * 3 + [16] * 10},
    "densenet161": {"transition": [4, 4, 8, 8, 16, 16, 16, 16, 16]},
    "mobilenet_v1": {
        "large": [2] * 2 + [4] * 2 + [8] * 10,
        "small": [2] * 2 + [4] * 2 + [8] * 2 + [16] * 8,
        "late": [2] * 2 + [4] * 2 + [8] * 8 + [16] * 2,
    },
    "mobilenet_v2": {
        "large": [2] * 2 + [4] * 2 + [8] * 15,
        "small": [2] * 2 + [4] * 2 + [8] * 3 + [16] * 12,
        "late": [2] * 2 + [4] * 2 + [8] * 10 + [16] * 5,
        "transition": [2] * 2 + [4] * 2 + [8] * 3 + [16] * 12,
    },
    "tiny": {"large": [2, 4, 4, 4], "small": [2, 4, 8, 8], "late": [2, 4, 4, 8], "transition": [2, 4, 8, 8]},
}


def meta(name: str, layout: str) -> wsol_models._backbones.Backbone:
    with torch.device("meta"):
        return backbone(name, layout)


@pytest.mark.parametrize("name", BACKBONES)
def test_layouts(name):
    assert set(STRIDES[name]) == set(BACKBONES[name].layouts)
    for layout, strides in STRIDES[name].items():
        assert [stage.stride for stage in meta(name, layout).stages.values()] == strides, layout


def test_a_layout_that_a_network_lacks():
    with pytest.raises(ValueError, match="densenet161 has no layout 'large'; it has: transition."):
        wsol_models.build("cam", backbone="densenet161", num_classes=3)


@pytest.mark.parametrize(
    ("name", "size", "map_size", "channels"),
    [
        ("vgg16_bn", 224, 14, 1024),
        ("resnet50", 224, 14, 2048),
        ("inception_v3", 299, 17, 2048),
        ("inception_v3", 224, 12, 2048),
        ("densenet161", 224, 14, 2208),
        ("googlenet", 224, 14, 1024),
        ("mobilenet_v2", 224, 14, 1280),
    ],
)
def test_maps_of_the_transition_layout(name, size, map_size, channels):
    features, _ = meta(name, "transition")(torch.empty(1, 3, size, size, device="meta"))
    assert features.shape == (1, channels, map_size, map_size)


# --- stages against the networks they are cut from --------------------------------------------------------------------


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def twin(name: str, layout: str) -> tuple[nn.Module, wsol_models._backbones.Backbone]:
    """A network before it is cut, and a backbone with the same tensors; in eval mode."""
    torch.manual_seed(0)
    entry = BACKBONES[name]
    network = entry.network()
    original = copy.deepcopy(network).eval()
    state = network.state_dict()
    ours = backbone(name, layout)
    ours.load_state_dict({key: state[origin] for key, origin in ours.origin.items()}, strict=False)
    return original, ours.eval()


def test_mobilenet_v2_is_torchvisions():
    """With its own strides put back, a stage after the other computes what torchvision computes."""
    network, ours = twin("mobilenet_v2", "late")
    ours.get_submodule("features7").conv[1][0].stride = (2, 2)
    torch.testing.assert_close(ours(images())[0], network.features(images()))


def test_mobilenet_v1_is_its_own_plain_network():
    network, ours = twin("mobilenet_v1", "late")
    ours.get_submodule("block6")[0].stride = (2, 2)
    torch.testing.assert_close(ours(images())[0], network.model(images()))
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_231_976  # the paper's 4.2 million


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg_is_torchvisions_up_to_pool5(name):
    network, ours = twin(name, "late")
    last_pool = len(network.features) - 1
    torch.testing.assert_close(ours(images())[0], network.features[:last_pool](images()))
    relu4_3 = {"vgg16": 23, "vgg16_bn": 33}[name]
    torch.testing.assert_close(ours.until("relu4_3")(images())[0], network.features[:relu4_3](images()))


def test_vgg_without_pools_three_and_four_is_larger_and_ends_in_conv6():
    network, ours = twin("vgg16", "large")
    _, taps = ours(images(), ("relu5_3", "conv6", "relu6"))
    plain = nn.Sequential(*(layer for i, layer in enumerate(network.features) if i not in (23, 30)))
    torch.testing.assert_close(taps["relu5_3"], plain(images()))
    assert taps["conv6"].shape == (2, 1024, 8, 8)
    assert taps["conv6"].min() < 0  # before the ReLU, which has not written into it
    assert torch.equal(taps["relu6"], taps["conv6"].relu())


def test_inception_with_torchvisions_stem():
    """`transition` is torchvision's network up to Mixed_6e, and its last two blocks after the new one."""
    network, ours = twin("inception_v3", "transition")
    expected, image = images(96), images(96)
    for name in ours.until("Mixed_6e").names:
        expected = network.get_submodule(name)(expected)
    torch.testing.assert_close(ours.until("Mixed_6e")(image)[0], expected)
    assert ours.names[-3:] == ("transition", "Mixed_7b", "Mixed_7c")


@pytest.mark.parametrize(("name", "channels", "stride"), [("Mixed_6a", 288, 1), ("Mixed_7a", 768, 2)])
def test_padded_reductions_of_inception(name, channels, stride):
    """The oracle: torchvision's own branches with edited convolutions, and the pooling written out."""
    torch.manual_seed(0)
    block = BACKBONES["inception_v3"].network().eval().get_submodule(name)
    plain = copy.deepcopy(block)
    for layer in plain.children():
        if layer.conv.stride == (2, 2):
            layer.conv.stride, layer.conv.padding = (stride, stride), (1, 1)
    features = torch.randn(2, channels, 7, 7)
    *branches, _ = plain._forward(features)
    expected = torch.cat([*branches, F.max_pool2d(features, 3, stride, padding=1)], 1)
    torch.testing.assert_close(inception.Reduction(block, stride)(features), expected)


def test_inception_of_the_benchmark():
    """28x28 and 14x14 at 224 px, dropout before each new convolution and before the head, all with the stem padded."""
    for layout, size in (("large", 28), ("small", 14)):
        ours = meta("inception_v3", layout)
        _, taps = ours(torch.empty(1, 3, 224, 224, device="meta"), ours.names)
        assert {taps[name].shape[-1] for name in ("Mixed_6a", "Mixed_6e", "SPG_A3_1b", "SPG_A3_2b")} == {size}
        assert taps["Mixed_5d"].shape[-1] == 28
        assert ours.names[-3:] == ("SPG_A3_1b", "SPG_A3_2b", "dropout")
        assert [m.p for m in ours.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5, 0.5]


def test_googlenet_is_torchvisions_up_to_the_transition():
    network, ours = twin("googlenet", "transition")
    expected = images()
    names = ours.until("inception4e").names
    for name in names:
        expected = network.get_submodule(name)(expected)
    torch.testing.assert_close(ours.until("inception4e")(images())[0], expected)
    assert ours.names[len(names) :] == ("transition", "inception5a", "inception5b", "dropout")


def test_densenet_is_torchvisions_but_for_one_pooling():
    network, ours = twin("densenet161", "transition")
    network.features.transition3.pool = nn.Identity()
    torch.testing.assert_close(ours(images())[0], F.relu(network.features(images())))


def test_resnet_in_the_transition_layout():
    layer4 = backbone("resnet18", "transition").get_submodule("layer4")
    for convolution in (layer4[0].conv1, layer4[0].downsample[0]):
        assert (convolution.kernel_size, convolution.stride) == ((1, 1), (1, 1))
        assert convolution.bias is not None


@pytest.mark.parametrize(
    ("name", "layout", "new"),
    [
        ("vgg16", "large", ["conv6"]),
        ("vgg16", "late", []),
        ("vgg16_bn", "transition", ["transition.0", "transition.1"]),
        ("inception_v3", "small", ["SPG_A3_1b.1", "SPG_A3_2b.1"]),
        ("inception_v3", "late", []),
        ("resnet50", "transition", ["layer4.0.conv2", "layer4.0.downsample.0"]),
        ("densenet161", "transition", []),
        ("tiny", "transition", ["block4.0"]),
    ],
)
def test_new_layers(name, layout, new):
    network = meta(name, layout)
    assert network.new_layers() == [network.get_submodule(layer) for layer in new]
    assert {key.rpartition(".")[0] for key in network.state_dict() if network.is_new(key)} == set(new)


# --- inserted modules -------------------------------------------------------------------------------------------------


class Add(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + 1


def test_modules_are_inserted_after_stages_and_inside_them():
    network = backbone("resnet18", "large").eval()
    inserted = {"layer2": Add(), "layer4.0": Add()}
    ours, taps = network(images(), ("layer2",), inserted)
    expected = network.until("layer2")(images())[0] + 1
    torch.testing.assert_close(taps["layer2"], expected)
    layer3, layer4 = network.get_submodule("layer3"), network.get_submodule("layer4")
    torch.testing.assert_close(ours, layer4[1](layer4[0](layer3(expected)) + 1))
    torch.testing.assert_close(network.after("layer3")(layer3(expected), (), inserted)[0], ours)


def test_places():
    network = backbone("resnet18", "small")
    assert network.places[-6:] == ("layer3.0", "layer3.1", "layer3", "layer4.0", "layer4.1", "layer4")
    vgg = meta("vgg16", "large").places
    assert {"pool3", "relu4_3", "relu5_3"} <= set(vgg)
    assert {"Mixed_5d", "Mixed_6e", "SPG_A3_2b"} <= set(meta("inception_v3", "small").places)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_of_one_layout_are_those_of_another_that_needs_no_more(tmp_path):
    """`large` of Inception ends before Mixed_7a: its tensors are enough for itself, not for `late`."""
    torch.manual_seed(0)
    trained = backbone("inception_v3", "large")
    save_file(network_state(nn.ModuleList([trained])), tmp_path / "large.safetensors")
    loaded = backbone("inception_v3", "small", str(tmp_path / "large.safetensors"))
    assert torch.equal(loaded.get_parameter("Mixed_6a.1.branch3x3.conv.weight"), trained.Mixed_6a.branch3x3.conv.weight)
    assert not torch.equal(loaded.get_parameter("SPG_A3_1b.1.weight"), trained.SPG_A3_1b[1].weight)
    with pytest.raises(ValueError, match=r"not of a Inception3: .* tensors missing \['Mixed_7a"):
        backbone("inception_v3", "late", str(tmp_path / "large.safetensors"))


def test_weights_may_hold_auxiliary_classifiers(tmp_path):
    state = BACKBONES["googlenet"].network().state_dict() | {"aux1.fc1.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "weights.pth")
    loaded = backbone("googlenet", "transition", str(tmp_path / "weights.pth"))
    assert torch.equal(loaded.get_parameter("conv1.conv.weight"), state["conv1.conv.weight"])


def test_older_names_of_densenets_weights():
    assert densenet.rename("features.denseblock1.denselayer2.norm.1.weight") == (
        "features.denseblock1.denselayer2.norm1.weight"
    )
    for unchanged in ("features.denseblock1.denselayer2.norm1.weight", "features.transition1.conv.weight"):
        assert densenet.rename(unchanged) == unchanged


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return models.resnet18(num_classes=5).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, state, suffix):
    path = str(tmp_path / f"weights{suffix}")
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    loaded = backbone("resnet18", "large", path)
    assert torch.equal(loaded.get_parameter("layer4.1.conv2.weight"), state["layer4.1.conv2.weight"])
    method = wsol_models.build("cam", backbone="resnet18", num_classes=5, weights=path, pretrained_head=True)
    assert torch.equal(method.fc.weight, state["fc.weight"])
    assert torch.equal(method.fc.bias, state["fc.bias"])


@pytest.mark.parametrize("outer", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_weights_in_a_trainings_checkpoint(tmp_path, state, caplog, outer, prefix):
    """As DataParallel, torch.compile and the usual training scripts save them, with a head for other classes."""
    named = {prefix + key: tensor for key, tensor in state.items()}
    path = str(tmp_path / "weights.pth")
    torch.save({"epoch": 3, "arch": "resnet18", outer: named, "optimizer": {}} if outer else named, path)
    loaded = backbone("resnet18", "large", path)
    assert torch.equal(loaded.get_parameter("layer4.1.conv2.weight"), state["layer4.1.conv2.weight"])
    assert bool(caplog.messages) == bool(outer or prefix)
    assert all(f"{len(state)} tensors, read from" in message for message in caplog.messages)


def test_wrapped_weights_are_checked_as_others(tmp_path, state):
    path = tmp_path / "weights.pth"
    torch.save(
        {"state_dict": {f"module.{key}": tensor for key, tensor in state.items() if key != "conv1.weight"}}, path
    )
    with pytest.raises(ValueError, match=r"not of a ResNet: 1 tensors missing \['conv1.weight'\]"):
        backbone("resnet18", "large", str(path))
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()} | {"x": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match="not of a ResNet: 100 tensors missing"):
        backbone("resnet18", "large", str(path))


def test_weights_that_do_not_fit(tmp_path, state):
    def refuse(contents, message, name="resnet18"):
        path = tmp_path / "weights.pth"
        torch.save(contents, path)
        with pytest.raises(ValueError, match=message):
            backbone(name, "large", str(path))

    body = {key: value for key, value in state.items() if key != "conv1.weight"}
    refuse(body, r"not of a ResNet: 1 tensors missing \['conv1.weight'\]")
    refuse(state | {"extra": torch.zeros(1)}, r"1 unexpected \['extra'\]")
    refuse(state | {"conv1.weight": torch.zeros(1)}, "do not fit ResNet")
    refuse(state, "not of a MobileNetV2", name="mobilenet_v2")
    refuse(nn.Linear(1, 1), "is not a state dict of tensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="is not a state dict of tensors"):
        backbone("resnet18", "large", str(tmp_path / "broken.safetensors"))
    for contents, reason in ((b"", "it ends too early"), (b"half of it", "97")):  # as downloads that broke off
        (tmp_path / "broken.pth").write_bytes(contents)
        with pytest.raises(ValueError, match=f"is not a state dict of tensors: {reason}"):
            backbone("resnet18", "large", str(tmp_path / "broken.pth"))
    with pytest.raises(ValueError, match=r"an existing \.pth or \.safetensors file but are 'imagnet'"):
        backbone("resnet18", "large", "imagnet")
    with pytest.raises(ValueError, match="tiny has no 'imagenet' weights; networks that have: resnet18"):
        backbone("tiny", "large", "imagenet")


def test_pretrained_head_of_another_size(tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    options = {"backbone": "resnet18", "num_classes": 6, "pretrained_head": True}
    with pytest.raises(ValueError, match="needs a classifier of 6 classes over 512 channels; weights have one of 5"):
        wsol_models.build("cam", weights=str(tmp_path / "weights.pth"), **options)
    with pytest.raises(ValueError, match="needs a classifier of 6 classes over 512 channels; weights have none"):
        wsol_models.build("cam", **options)


def test_weights_that_come_later_need_no_classifier_now():
    options = {"backbone": "resnet18", "num_classes": 6, "pretrained_head": True}
    method = wsol_models.build("cam", weights=wsol_models.LATER, **options)
    other = wsol_models.build("cam", backbone="resnet18", num_classes=6)
    method.load_state_dict(other.state_dict())
    assert torch.equal(method.fc.weight, other.fc.weight)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"Unknown method 'bsa'\. Did you mean 'bas'\?"):
        wsol_models.build("bsa", backbone="tiny", num_classes=3)
    with pytest.raises(ValueError, match=r"Unknown backbone 'resnet5'\. Did you mean 'resnet50'\?"):
        wsol_models.build("bas", backbone="resnet5", num_classes=3)
    with pytest.raises(ValueError, match=r"Unknown option of bas 'lambda'\. Did you mean 'lambda_'\?"):
        wsol_models.build("bas", backbone="tiny", num_classes=3, **{"lambda": 1})
    with pytest.raises(ValueError, match="num_classes must be at least 2 but is 1"):
        wsol_models.build("bas", backbone="tiny", num_classes=1)


def test_slices_share_modules_and_make_the_whole():
    whole = backbone("tiny", "late")
    first, rest = whole.until("block2"), whole.after("block2")
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(rest(first(image)[0])[0], whole(image)[0])
    assert first.get_submodule("block1") is whole.get_submodule("block1")
    assert whole.after("block4")(image)[0] is image


def test_taps_are_the_features_of_the_forward():
    network = backbone("tiny", "large")
    image = torch.randn(1, 3, 32, 32)
    last, taps = network(image, ("block4", "block2"))
    assert set(taps) == {"block2", "block4"}
    assert taps["block4"] is last
    assert torch.equal(taps["block2"], network.until("block2")(image)[0])


def test_gradients_of_a_readout_stop_at_the_earliest_tap():
    method = wsol_models.build("cam", backbone="tiny", num_classes=3).eval()
    image = torch.randn(1, 3, 32, 32)
    output = detached_call(method, image, None)
    assert not output.logits_BK.requires_grad
    features, taps = detached_call(method.backbone, image, ("block2", "block3"))
    early, late = torch.autograd.grad(features.sum(), (taps["block2"], taps["block3"]))
    assert taps["block2"].is_leaf
    assert not taps["block3"].is_leaf
    assert early.any()
    assert late.any()
    attached, own = method.backbone(image, ("block2", "block3"))
    expected = torch.autograd.grad(attached.sum(), (own["block2"], own["block3"]))
    torch.testing.assert_close((early, late), expected)
    assert not own["block2"].is_leaf


def test_detached_call_leaves_the_module_alone():
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    features = torch.randn(4, 2, 5, 5, requires_grad=True)
    ours = detached_call(module, features)
    ours.square().sum().backward()
    assert features.grad is not None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(ours, module(features))  # batch statistics, as the module's own forward in training


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_scale():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    norm = network[0][1]
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 1, 2)
    image = torch.randn(2, 3, 8, 8)
    expected = network.eval()(image)
    freeze_batch_norm(network)
    torch.testing.assert_close(network.train()(image), expected)
    network(image).sum().backward()
    assert network[0][1].weight.grad is not None
    assert network[0][1].weight is norm.weight
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert isinstance(converted[0][1], FrozenBatchNorm2d)


def test_frozen_build_has_no_batch_norm_left_in_the_backbone():
    method = wsol_models.build("bas", backbone="mobilenet_v2", num_classes=3, head_width=8, frozen_batch_norm=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in method.modules())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in method.modules()) == 52
