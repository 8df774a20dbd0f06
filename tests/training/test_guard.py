"""No step on a gradient that is not finite: looked at before the step, or on the device and told one step late."""

import pytest
import torch
from torch import nn

from wsol_pipeline.training.guard import Guard, NonFiniteError


def guarded(fused: bool, momentum: float = 0.9) -> tuple[nn.Parameter, Guard]:
    parameter = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD(
        [parameter], lr=0.1, momentum=momentum, nesterov=momentum > 0, weight_decay=0.1, fused=fused
    )
    return parameter, Guard(optimizer)


def step(parameter: nn.Parameter, guard: Guard, gradient: float, name: str = "") -> None:
    parameter.grad = torch.full((4,), gradient)
    guard.step(parameter.grad.norm(), lambda: name)


@pytest.mark.parametrize("fused", [False, True])
def test_the_very_first_step_is_looked_at_before_momentum_exists(fused):
    parameter, guard = guarded(fused)
    with pytest.raises(NonFiniteError, match="first"):
        step(parameter, guard, float("nan"), "first")
    assert torch.equal(parameter.data, torch.ones(4))
    assert not guard.optimizer.state


def test_a_step_that_is_looked_at_raises_before_it_moves():
    parameter, guard = guarded(fused=False)
    step(parameter, guard, 1.0)
    before = parameter.detach().clone()
    with pytest.raises(NonFiniteError, match="second"):
        step(parameter, guard, float("inf"), "second")
    assert torch.equal(parameter.data, before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_flag_is_told_one_step_late_and_nothing_moves_meanwhile(momentum):
    parameter, guard = guarded(True, momentum)
    step(parameter, guard, 1.0)
    before = parameter.detach().clone()
    step(parameter, guard, float("nan"), "second")
    with pytest.raises(NonFiniteError, match="second"):
        step(parameter, guard, 1.0, "third")
    assert torch.equal(parameter.data, before)


def test_what_is_kept_is_kept_after_the_last_flag_was_read():
    parameter, guard = guarded(fused=True)
    step(parameter, guard, 1.0)
    guard.settle()
    step(parameter, guard, float("nan"), "second")
    with pytest.raises(NonFiniteError, match="second"):
        guard.settle()


def test_flags_change_no_step():
    (looked_at, seen), (flagged, flags) = guarded(False), guarded(True)
    for gradient in (1.0, -2.0, 0.5):
        step(looked_at, seen, gradient)
        step(flagged, flags, gradient)
    torch.testing.assert_close(flagged.data, looked_at.data, rtol=1e-6, atol=0)


def test_a_resumed_run_reads_flags_from_its_first_step():
    parameter, guard = guarded(fused=True)
    step(parameter, guard, 1.0)
    resumed = Guard(guard.optimizer)
    step(parameter, resumed, float("nan"), "resumed")
    with pytest.raises(NonFiniteError, match="resumed"):
        resumed.settle()
