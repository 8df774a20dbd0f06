"""IRN: sizes, worked losses, and that nothing frozen learns."""

import math

import pytest
import torch

from wsol_models.segmentation import irn
from wsol_models.segmentation.losses import poly


def trainable(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return irn.build("resnet50", displacement=True)


def test_branches_have_the_published_number_of_parameters(network):
    assert trainable(network.boundary) == 125_409
    assert trainable(network.displacement) == 1_269_120
    assert trainable(network.backbone) == 0


def test_the_boundary_map_has_a_cell_for_four_pixels(network):
    e = irn.boundary_map(network, torch.rand(3, 37, 50))
    assert e.shape == (10, 13)
    assert ((e >= 0) & (e <= 1)).all()


def test_the_backbone_is_frozen_in_training(network):
    network.train()
    assert not network.backbone.training
    logits, moves = network(torch.rand(2, 3, 64, 64))
    assert logits.shape == (2, 16, 16)
    assert moves.shape == (2, 2, 16, 16)
    (logits.sum() + moves.sum()).backward()
    assert all(p.grad is None for p in network.backbone.parameters())


def test_a_backbone_of_many_stages_is_tapped_once_for_each_stride():
    network = irn.build("mobilenet_v2")
    assert [network.backbone.stages[name].stride for name in network.taps] == [4, 8, 16]


def test_pairs_of_the_papers_grid():
    source, end = irn.inner(torch.zeros(1, 128, 128), (3, -9), 10)
    assert source.shape == end.shape == (1, 119, 110)


def test_pairs_are_alike_different_or_none():
    row = torch.zeros(1, 2, 4, dtype=torch.long)
    row[0, 0] = torch.tensor([0, 0, 1, 255])  # R = 2: sources are columns 1 and 2 of row 0; a margin column each side
    wide = torch.cat([torch.full((1, 2, 1), 255), row, torch.full((1, 2, 1), 255)], 2)
    masks = irn.pair_masks(wide, (0, 1), 2)
    assert masks["background"][0, 0].tolist() == [True, False, False, False]
    assert masks["negative"][0, 0].tolist() == [False, True, False, False]
    assert not masks["foreground"].any()


def test_affinities_of_inner_pairs_are_those_of_their_paths():
    rng = torch.Generator().manual_seed(0)
    e = torch.rand((1, 9, 12), generator=rng)
    for direction in irn.directions(4):
        found = irn._inner_affinity(e, direction, 4)
        source, _ = irn.inner(e, direction, 4)
        assert found.shape == source.shape
        expected = 1 - max(e[0, y, 3 + x] for y, x in irn_path(direction))
        assert float(found[0, 0, 0]) == pytest.approx(float(expected))


def irn_path(direction):
    from wsol_models.segmentation.walk import path

    return path(direction)


def worked(positive, negative):
    """Sums of pairs with these affinities, as `boundary_sums` has them."""
    zero = torch.zeros((), dtype=torch.float64)
    logs = lambda values, sign: sum(-math.log(a + 1e-5 if sign else 1 + 1e-5 - a) for a in values)  # noqa: E731
    return {
        "background": (zero + logs(positive, True), zero + len(positive)),
        "foreground": (zero, zero),
        "negative": (zero + logs(negative, False), zero + len(negative)),
    }


def test_the_worked_pair_losses():
    sums = worked([0.9, 0.5], [0.5])
    assert float(sums["background"][0] / 2) == pytest.approx(0.39924, abs=5e-6)
    assert float(sums["negative"][0]) == pytest.approx(0.69313, abs=5e-6)
    assert float(irn.boundary_loss(sums)) == pytest.approx(0.44637, abs=1e-5)
    assert float(irn.boundary_loss(worked([], []))) == 0


def test_the_sums_of_a_grid_are_those_of_its_affinities():
    """One direction of length 1, one row of sources: the very numbers of the example."""
    edge = torch.full((1, 2, 4), -40.0, dtype=torch.float64)  # R = 2: sources (0, 1), (0, 2)
    labels = torch.zeros(1, 2, 4, dtype=torch.long)
    sums = irn.boundary_sums(edge, labels, radius=2)
    assert int(sums["background"][1]) == 2 * 4
    assert float(sums["background"][0]) == pytest.approx(8 * -math.log(1 + 1e-5), rel=1e-6)
    blocked = irn.boundary_sums(edge + 80, labels, radius=2)
    assert float(blocked["background"][0]) == pytest.approx(8 * 11.5129, rel=1e-4)


def test_displacements_that_point_to_the_middle_cost_nothing():
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    moves = -torch.stack([rows, columns])[None]
    sums = irn.displacement_sums(moves, torch.ones(1, 6, 9, dtype=torch.long), radius=3)
    assert float(sums["fg"][0]) == 0
    assert int(sums["fg"][1]) == 2 * 12 * 4 * 5
    assert float(irn.displacement_loss(sums)) == 0


def test_schedules():
    assert poly(0.1, 495, 990) == pytest.approx(0.05359, abs=5e-6)
    deeplab = [poly(2.5e-4, step, 20_000, every=10) for step in (0, 9, 10, 19, 10_000, 20_000)]
    assert deeplab[:2] == [2.5e-4, 2.5e-4]
    assert deeplab[2] == deeplab[3] == pytest.approx(2.49887e-4, abs=5e-10)
    assert deeplab[4] == pytest.approx(1.33972e-4, abs=5e-10)
    assert deeplab[5] == 0


@pytest.mark.parametrize("pad", [0, 64, 512])
def test_padding_stands_beside_the_image_alone(network, pad):
    assert irn.boundary_map(network, torch.rand(3, 40, 50), pad).shape == (10, 13)
