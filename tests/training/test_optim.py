"""The optimizer: learning rates by epoch and by parameter, SGD's step by hand."""

import pytest
import torch

from wsol_models import build
from wsol_pipeline.training.config import Recipe
from wsol_pipeline.training.optim import build_optimizer, learning_rate, set_learning_rate


@pytest.mark.parametrize(
    ("counts_from", "expected"),
    [(0, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]), (1, [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])],
)
def test_the_rate_decays_every_third_epoch_counted_from_zero_or_one(counts_from, expected):
    recipe = Recipe(learning_rate=1.0, decay_every=3, decay_counts_from=counts_from)
    assert [learning_rate(recipe, epoch) for epoch in range(8)] == pytest.approx(expected)


def test_counted_from_zero_the_rate_is_that_of_step_lr():
    recipe = Recipe(learning_rate=0.3, decay_every=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    for epoch in range(10):
        assert learning_rate(recipe, epoch) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_without_decay_the_rate_stays():
    assert {learning_rate(Recipe(learning_rate=0.3), epoch) for epoch in range(100)} == {0.3}


def records_of(values: list[float], kind: str) -> list[dict]:
    return [{"val": {"cls_top1": value}} if kind == "top1" else {"train": {"loss": value}} for value in values]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        # Better, equal, worse, worse: three epochs without improvement are more than two, so the fifth has a tenth.
        ("top1", [50, 50, 49, 49.9, 60, 60, 60, 60], [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01]),
        # A ten-thousandth of 50 is .005: 50.004 is no improvement, 50.006 is one.
        ("top1", [50, 50.004, 50.004, 50.006, 50.006], [1, 1, 1, 1, 1, 1]),
        ("loss", [2.0, 1.0, 1.5, 1.2, 1.0, 0.5], [1, 1, 1, 1, 1, 0.1, 0.1]),
    ],
)
def test_the_rate_falls_on_a_plateau(kind, values, expected):
    recipe = Recipe(learning_rate=1.0, schedule=f"plateau_{kind}")
    records = records_of(values, kind)
    found = [learning_rate(recipe, epoch, records[:epoch]) for epoch in range(len(values) + 1)]
    assert found == pytest.approx(expected)
    assert [learning_rate(recipe, epoch, records) for epoch in range(len(values) + 1)] == found


@pytest.mark.parametrize("patience", [0, 2, 3])
@pytest.mark.parametrize(("kind", "mode"), [("top1", "max"), ("loss", "min")])
def test_a_plateau_is_that_of_torch(patience, kind, mode):
    values = torch.randint(0, 12, (60,), generator=torch.Generator().manual_seed(patience)).double().tolist()
    recipe = Recipe(learning_rate=1e6, schedule=f"plateau_{kind}", plateau_patience=patience)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1e6)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, factor=0.1, patience=patience, eps=0)
    for epoch in range(len(values)):
        rate = learning_rate(recipe, epoch, records_of(values, kind))
        assert rate == pytest.approx(schedule.get_last_lr()[0])
        schedule.step(values[epoch])
    assert rate < 1e4


def test_poly_falls_from_step_to_step_to_nothing():
    """Four epochs: after half of the second, 3/8 of all steps."""
    recipe = Recipe(learning_rate=2.0, epochs=4, schedule="poly")
    assert learning_rate(recipe, 0) == 2.0
    assert learning_rate(recipe, 1, done=0.5) == pytest.approx(2 * 0.625**0.9)
    assert learning_rate(recipe, 3, done=1.0) == 0


def rates(method, recipe: Recipe, base: float) -> dict[str, float]:
    """The learning rate of every parameter, by name; asserts that each is in one group."""
    optimizer = build_optimizer(method, recipe)
    set_learning_rate(optimizer, base)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    found = [(names[id(p)], group["lr"]) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    assert all(group["weight_decay"] == recipe.weight_decay for group in optimizer.param_groups)
    return dict(found)


def test_bas_trains_biases_twice_and_its_heads_ten_times_as_fast():
    found = rates(build("bas", backbone="tiny", num_classes=3), Recipe(weight_decay=0.125), base=0.5)
    for name, rate in found.items():
        scale = {(False, False): 1, (False, True): 2, (True, False): 10, (True, True): 20}
        assert rate == 0.5 * scale["classifier" in name, name.endswith("bias")], name
    assert {0.5, 1.0, 5.0, 10.0} == set(found.values())


def test_cam_trains_its_classifier_and_a_resnets_last_layer_ten_times_as_fast():
    found = rates(build("cam", backbone="resnet18", num_classes=3), Recipe(), base=1.0)
    assert found["fc.weight"] == found["fc.bias"] == 10
    assert {rate for name, rate in found.items() if ".layer4." in name} == {10}
    assert {rate for name, rate in found.items() if ".layer4." not in name and "fc." not in name} == {1}


def test_a_frozen_parameter_is_in_no_group():
    method = build("cam", backbone="tiny", num_classes=3)
    method.fc.bias.requires_grad_(False)
    optimizer = build_optimizer(method, Recipe())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(list(method.parameters())) - 1
    assert all(p is not method.fc.bias for p in held)


class OneWeight(torch.nn.Module):
    """A method of one weight, 2, that learns ten times as fast as the base rate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))

    def lr_scale(self, name: str) -> float:
        return 10.0


@pytest.mark.parametrize(
    ("momentum", "nesterov", "expected"),
    [
        # step 1: g = 1 + 0.5·2 = 2, v = 2, w = 2 - (2 + 0.5·2) = -1
        # step 2: g = 1 + 0.5·(-1) = 0.5, v = 0.5·2 + 0.5 = 1.5, w = -1 - (0.5 + 0.5·1.5) = -2.25
        (0.5, True, (-1.0, -2.25)),
        (0.5, False, (0.0, -2.0)),  # w = 2 - 2; then g = 1, v = 0.5·2 + 1 = 2
        (0.0, True, (0.0, -1.0)),  # no momentum, nothing to look ahead with: w = 2 - 2; then g = 1
    ],
)
def test_two_steps_by_hand(momentum, nesterov, expected):
    """Rate 0.1 x 10 = 1, decay 0.5, gradient 1."""
    method = OneWeight()
    optimizer = build_optimizer(method, Recipe(momentum=momentum, weight_decay=0.5, nesterov=nesterov))
    set_learning_rate(optimizer, 0.1)
    for weight in expected:
        method.weight.grad = torch.ones(1)
        optimizer.step()
        assert method.weight.item() == pytest.approx(weight)
