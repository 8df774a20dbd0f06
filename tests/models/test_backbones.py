"""Backbones: sizes against the reference figures, weights, taps, frozen batch norm, the detached call."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import wsol_models
from wsol_models._backbones import BACKBONES, LAYOUTS, backbone
from wsol_models._layers import FrozenBatchNorm2d, detached_call, freeze_batch_norm

# Counted on the reference implementations: (method, options, classes) -> parameters, map size at 224 px.
REFERENCE = [
    ("cam", {"large": True}, 200, 23_917_832, 28),
    ("cam", {"large": True}, 1000, 25_557_032, 28),
    ("cam", {"large": False}, 200, 23_917_832, 14),
    ("cam", {"large": False}, 1000, 25_557_032, 14),
    ("bas", {}, 100, 52_845_832, 28),
    ("bas", {}, 200, 53_870_032, 28),
    ("bas", {}, 1000, 62_063_632, 28),
]


@pytest.mark.parametrize(("name", "options", "classes", "parameters", "size"), REFERENCE)
def test_resnet50_has_the_reference_size(name, options, classes, parameters, size):
    with torch.device("meta"):
        method = wsol_models.build(name, backbone="resnet50", num_classes=classes, **options).eval()
        output = method(torch.zeros(1, 3, 224, 224))
    assert sum(p.numel() for p in method.parameters()) == parameters
    if name == "cam":
        assert output.features_BCHW.shape == (1, 2048, size, size)
    else:
        assert output.maps_BKHW.shape == (1, classes, size, size)
        assert output.features_BCHW.shape == (1, 1024, 14, 14)


RESNET = {"large": [4, 4, 8, 8, 8], "small": [4, 4, 8, 16, 16], "late": [4, 4, 8, 8, 16]}
STRIDES = {
    "resnet18": RESNET,
    "resnet50": RESNET,
    "mobilenet_v2": {
        "large": [2] * 2 + [4] * 2 + [8] * 15,
        "small": [2] * 2 + [4] * 2 + [8] * 3 + [16] * 12,
        "late": [2] * 2 + [4] * 2 + [8] * 10 + [16] * 5,
    },
    "tiny": {"large": [2, 4, 4, 4], "small": [2, 4, 8, 8], "late": [2, 4, 4, 8]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BACKBONES)
def test_layouts(name, layout):
    assert [stage.stride for stage in backbone(name, layout).stages.values()] == STRIDES[name][layout]


def test_stages_are_the_torchvision_network():
    """With its own strides put back, a stage after the other computes what torchvision computes."""
    torch.manual_seed(0)
    network = models.mobilenet_v2().eval()
    image = torch.randn(1, 3, 64, 64)
    expected = network.features(image)
    ours = backbone("mobilenet_v2", "late").eval()
    ours.load_state_dict({f"features{key[9:]}": value for key, value in network.state_dict().items() if "feat" in key})
    ours.get_submodule("features7").conv[1][0].stride = (2, 2)
    torch.testing.assert_close(ours(image)[0], expected)


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
    with pytest.raises(ValueError, match=r"an existing \.pth or \.safetensors file but are 'imagnet'"):
        backbone("resnet18", "large", "imagnet")
    with pytest.raises(ValueError, match="tiny has no 'imagenet' weights; networks that have: resnet18"):
        backbone("tiny", "large", "imagenet")


def test_pretrained_head_of_another_size(tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    options = {"backbone": "resnet18", "num_classes": 6, "pretrained_head": True}
    with pytest.raises(ValueError, match="needs a classifier of 6 classes; weights have one of 5"):
        wsol_models.build("cam", weights=str(tmp_path / "weights.pth"), **options)
    with pytest.raises(ValueError, match="needs a classifier of 6 classes; weights have none"):
        wsol_models.build("cam", **options)


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
