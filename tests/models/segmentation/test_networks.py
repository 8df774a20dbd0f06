"""Segmentation networks: sizes, losses by hand, weights that have seen masks."""

import pytest
import torch
from torchvision import models

from wsol_models.segmentation import build, deeplabv2
from wsol_models.segmentation.losses import maximum, nearest, pixel_cross_entropy
from wsol_models.segmentation.networks import NETWORKS, total


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def v2():
    torch.manual_seed(0)
    return deeplabv2.Network(21)


def test_deeplabv2_has_the_published_size(v2):
    with_norm = parameters(v2) + sum(b.numel() for n, b in v2.named_buffers() if n.endswith(("weight", "bias")))
    assert round(with_norm / 1e6, 2) == 44.05
    with torch.no_grad():
        assert v2.at_one_scale(torch.zeros(1, 3, 321, 321)).shape == (1, 21, 41, 41)


def test_deeplabv2_dilates_every_block_of_its_last_stages(v2):
    for number, dilation in ((3, 2), (4, 4)):
        layer = v2.body.get_submodule(f"layer{number}")
        assert {block.conv2.dilation for block in layer} == {(dilation, dilation)}
        assert {block.conv2.padding for block in layer} == {(dilation, dilation)}
    assert v2.body.layer2[0].conv1.stride == (2, 2)
    assert v2.body.layer2[0].conv2.stride == (1, 1)


def test_deeplabv2_trains_no_batch_norm(v2):
    groups = deeplabv2.groups(v2, 2.5e-4)
    assert [group["lr"] for group in groups] == [2.5e-4, 2.5e-3, 5e-3]
    assert [group["weight_decay"] for group in groups] == [5e-4, 5e-4, 0]
    assert all(p.ndim == 4 for p in groups[0]["params"])
    assert len(groups[0]["params"]) == 104


def test_deeplabv2_reads_bgr_less_its_mean():
    pixels = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (deeplabv2.IMAGENET_MEAN, deeplabv2.IMAGENET_STD))
    seen = deeplabv2.prepare((pixels / 255 - mean) / std)
    expected = torch.tensor([30 - 104.008, 20 - 116.669, 10 - 122.675])
    assert torch.allclose(seen.flatten(), expected, atol=1e-4)


def test_names_of_the_papers_files(v2):
    ours = v2.state_dict()
    theirs = {}
    back = {ours_name: name for name, ours_name in ((n, deeplabv2.renamed({n: None})) for n in caffe_names())
            for ours_name in ours_name}  # fmt: skip
    for name, tensor in ours.items():
        if not name.startswith("aspp."):
            theirs[f"base.{back[name]}"] = tensor
    missing = deeplabv2.load(deeplabv2.Network(21), theirs, "a file")
    assert sorted(missing) == sorted(name for name in ours if name.startswith("aspp."))
    del theirs["base.layer3.block1.conv3x3.conv.weight"]
    with pytest.raises(ValueError, match="not of a ResNet101"):
        deeplabv2.load(deeplabv2.Network(21), theirs, "a file")


def caffe_names():
    """The names of deeplab-pytorch."""
    places = ["layer1.conv1"]
    for stage, blocks in ((2, 3), (3, 4), (4, 23), (5, 3)):
        for block in range(1, blocks + 1):
            parts = ("reduce", "conv3x3", "increase", *(("shortcut",) if block == 1 else ()))
            places += [f"layer{stage}.block{block}.{part}" for part in parts]
    for place in places:
        yield f"{place}.conv.weight"
        yield from (f"{place}.bn.{name}" for name in ("weight", "bias", "running_mean", "running_var"))


def test_the_loss_over_scales():
    logits = [torch.tensor(v, dtype=torch.float64).view(1, 2, 1, 1) for v in ((1.0, 0.0), (0.0, 3.0))]
    labels = torch.tensor([[[1]]])
    scales = [*logits, maximum(logits)]
    values = [float(pixel_cross_entropy(part, labels)[0]) for part in scales]
    assert values == pytest.approx([1.31326, 0.04859, 0.12693], abs=5e-6)
    assert sum(values) == pytest.approx(1.48878, abs=5e-6)


def test_labels_shrink_by_the_middle_of_their_cells():
    assert nearest(torch.tensor([[[0, 1, 2, 3]]]), (1, 2)).tolist() == [[[1, 3]]]
    big = torch.arange(512).view(1, 1, 512)
    assert nearest(big, (1, 128))[0, 0, :3].tolist() == [2, 6, 10]


def test_a_crop_without_labels_costs_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = total({"out": pixel_cross_entropy(logits, torch.full((1, 4, 4), 255))}, False)
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(("name", "millions"), [("lraspp_mobilenet_v3_large", 3.2), ("deeplabv3_resnet50", 39.6)])
def test_torchvisions_networks(name, millions):
    network = build(name, 20)
    main = {key: value for key, value in network.net.named_parameters() if not key.startswith("aux")}
    assert round(sum(p.numel() for p in main.values()) / 1e6, 1) == millions
    slow, fast = network.groups(0.02, 1e-4)
    assert (slow["lr"], fast["lr"]) == (0.02, 0.2)
    assert len(slow["params"]) + len(fast["params"]) == len(list(network.parameters()))


def test_lraspp_on_mobilenet_v2_reads_a_classifiers_file(tmp_path):
    torch.manual_seed(0)
    theirs = models.mobilenet_v2()
    torch.save(theirs.state_dict(), tmp_path / "mobilenet_v2.pth")
    network = build("lraspp_mobilenet_v2", 3, str(tmp_path / "mobilenet_v2.pth"))
    assert torch.equal(network.net.backbone["18"][0].weight, theirs.features[18][0].weight)
    assert network.scores(torch.zeros(1, 3, 40, 50)).shape == (1, 4, 40, 50)
    assert network.net.backbone(torch.zeros(1, 3, 64, 64))["high"].shape == (1, 1280, 4, 4)


def test_weights_that_saw_masks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="trained on masks of pixels.*--supervision full"):
        build("lraspp_mobilenet_v3_large", 20, "COCO_WITH_VOC_LABELS_V1")
    whole = build("lraspp_mobilenet_v3_large", 20)
    torch.save(whole.net.state_dict(), tmp_path / "some.pth")
    with pytest.raises(ValueError, match="trained on masks of pixels"):
        build("lraspp_mobilenet_v3_large", 20, str(tmp_path / "some.pth"))
    full = build("lraspp_mobilenet_v3_large", 20, str(tmp_path / "some.pth"), supervision="full")
    assert torch.equal(next(full.net.backbone.parameters()), next(whole.net.backbone.parameters()))


def test_faults_name_what_is_known(tmp_path):
    with pytest.raises(ValueError, match="Unknown network 'deeplabv3'.*deeplabv3_resnet50"):
        build("deeplabv3", 20)
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="are not of lraspp_mobilenet_v2: 260 tensors missing"):
        build("lraspp_mobilenet_v2", 20, str(tmp_path / "w.pth"))
    assert set(NETWORKS) >= {"lraspp_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv2_resnet101"}
