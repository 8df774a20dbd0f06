"""A trained backbone is the starting point of another method, layout or position of the generator."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from wsol_models import backbone_names, build, network_state


@pytest.mark.parametrize("backbone", ["tiny", "resnet18", "vgg16", "mobilenet_v1", "mobilenet_v2"])
def test_a_backbone_travels_from_method_to_method(backbone, tmp_path):
    torch.manual_seed(0)
    trained = build("cam", backbone=backbone, num_classes=3)
    path = tmp_path / "backbone.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network_state(trained).items()}, path)
    fresh = build("bas", backbone=backbone, num_classes=5, weights=str(path), frozen_batch_norm=True)
    moved, origin = network_state(fresh), network_state(trained)
    assert set(moved) == {name for name in origin if not name.endswith("num_batches_tracked")}
    for name, tensor in moved.items():
        assert torch.equal(tensor, origin[name]), name


@pytest.mark.parametrize("method", ["cam", "bas", "mldfr"])
def test_a_foreign_checkpoint_loads_by_the_networks_own_names(method):
    """All of torchvision's tensors but the classifier's, each in one place, wherever a method cuts the network."""
    torch.manual_seed(0)
    foreign = models.resnet18(weights=None).state_dict()
    built = build(method, backbone="resnet18", num_classes=3)
    names = backbone_names(built)
    replaced = {"layer4.0.conv1.weight", "layer4.0.downsample.0.weight"} if method == "mldfr" else set()
    assert sorted(names.values()) == sorted(set(foreign) - {"fc.weight", "fc.bias"} - replaced)
    built.load_state_dict({mine: foreign[theirs] for mine, theirs in names.items()}, strict=False)
    state = network_state(built)
    assert all(torch.equal(state[theirs], foreign[theirs]) for theirs in names.values())
    assert all(torch.equal(built.state_dict()[mine], foreign[theirs]) for mine, theirs in names.items())


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [("vgg16_bn", ("transition.0", "transition.1")), ("resnet18", ("layer4.0.conv1", "layer4.0.downsample.0"))],
)
def test_layers_that_a_layout_added_travel_on_demand(backbone, layers, tmp_path):
    """mLDFR trains a changed network on ILSVRC first: its new layers are part of what the next data set starts from."""
    torch.manual_seed(0)
    trained = build("mldfr", backbone=backbone, num_classes=3)
    path, whole = tmp_path / "changed.safetensors", network_state(trained, added=True)
    new = set(whole) - set(network_state(trained))
    assert {name.rsplit(".", 1)[0] for name in new} == {f"added.{layer}" for layer in layers}
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, path)
    fresh = build("mldfr", backbone=backbone, num_classes=5, weights=str(path))
    for name, tensor in network_state(fresh, added=True).items():
        assert torch.equal(tensor, whole[name]), name
    with pytest.raises(ValueError, match=f"{len(new)} unexpected"):
        build("cam", backbone=backbone, num_classes=5, weights=str(path))
    save_file({name: tensor for name, tensor in whole.items() if name != sorted(new)[0]}, path)
    with pytest.raises(ValueError, match="1 tensors missing"):
        build("mldfr", backbone=backbone, num_classes=5, weights=str(path))
