"""The class-agnostic head of BAS: its loss by hand, and that nothing else notices it."""

import pytest
import torch

from wsol_models import bas, build
from wsol_models.bas import Config, TrainingOutput, objects_loss


def network(**options):
    torch.manual_seed(3)
    return build("bas", backbone="tiny", num_classes=3, segmentation=True, **options)


def step(method):
    torch.manual_seed(5)
    images, targets = torch.rand(4, 3, 32, 32), torch.tensor([[1.0, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]])
    output = method(images, targets)
    terms = bas.losses(output, method.config)
    torch.stack(list(terms.values())).sum().backward()
    return output, terms


def test_the_rest_of_the_network_is_bit_for_bit_what_it_is_without():
    plain, headed = network(), network(foreground_head=True)
    (_, terms), (output, more) = step(plain), step(headed)
    assert set(more) - set(terms) == {"objects"}
    assert all(torch.equal(more[name], terms[name]) for name in terms)
    theirs = dict(headed.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, theirs[name])
        assert torch.equal(parameter.grad, theirs[name].grad), name
    assert theirs["generator_fg.weight"].grad.abs().sum() > 0
    assert output.objects_BHW.shape == output.foreground_BHW.shape


def test_it_draws_nothing():
    network()
    after = torch.rand(3)
    network(foreground_head=True)
    assert torch.equal(torch.rand(3), after)


def test_attached_it_reaches_the_features():
    method = network(foreground_head=True, foreground_attached=True)
    step(method)
    other = network(foreground_head=True)
    step(other)
    first = next(iter(method.F1.parameters())).grad
    assert not torch.equal(first, next(iter(other.F1.parameters())).grad)


def test_the_worked_loss():
    """Two classes with L_bas .2 and .5, area .4: λ .7 + β .48."""
    output = TrainingOutput(
        torch.tensor([[1.0, 2.0, 9.0]]), torch.zeros(1, 1, 1, 1), targets=torch.tensor([[1.0, 1.0, 0.0]]),
        classes_B=torch.tensor([0]), class_maps_BKHW=torch.zeros(1, 3, 2, 2), foreground_BHW=torch.zeros(1, 2, 2),
        background_logits_BK=torch.zeros(1, 3), objects_BHW=torch.full((1, 2, 2), 0.4),
        without_objects_BK=torch.tensor([[0.2, 1.0, 9.0]]),
    )  # fmt: skip
    config = Config(segmentation=True, foreground_head=True, lambda_=1, beta=1.2, alpha=0)
    assert float(objects_loss(output, config)) == pytest.approx(1.18)


def test_it_learns_ten_times_as_fast_and_needs_segmentation():
    method = network(foreground_head=True)
    assert method.lr_scale("generator_fg.weight") == 10
    assert method.eval().objects(torch.rand(2, 3, 32, 32)).shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="foreground_head is of the network for segmentation"):
        Config(foreground_head=True)
