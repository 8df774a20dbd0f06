"""A trained backbone is the starting point of another method, layout or position of the generator."""

import pytest
import torch
from safetensors.torch import save_file

from wsol_models import build, network_state


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
