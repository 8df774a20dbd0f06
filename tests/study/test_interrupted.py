"""A training that is asked to stop leaves a checkpoint at that batch, and goes on as if nothing had happened."""

import pytest
import torch

from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.loop import Order, World, train


@pytest.mark.parametrize(
    ("stop_at", "records"),
    [(Position(0, 42), 0), (Position(0, 64), 0), (Position(1, 14), 1)],
    ids=["within an epoch", "before validation", "in the last epoch"],
)
def test_a_stopped_training_goes_on_from_the_very_batch(
    dataset, reading, make_config, fit, outcome, tmp_path, stop_at, records
):
    config = make_config("cam")
    asked = []

    def orders(position):
        asked.append(position)
        return Order.STOP if position == stop_at else Order.GO_ON

    checkpoints = CheckpointStore(Store.at(tmp_path / "stopped"), 1)
    assert len(list(train(config, dataset, checkpoints, World(orders=orders), reading))) == records
    assert asked[-1] == checkpoints.position() == stop_at
    assert checkpoints.final() is None
    resumed, undisturbed = fit(config, "stopped", attempt=2), fit(config, "undisturbed")
    assert resumed.records == undisturbed.records
    for name, weights in undisturbed.weights.items():
        torch.testing.assert_close(resumed.weights[name], weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("save_at", "asked_before"),
    [(Position(0, 42), 0), (Position(0, 64), 1)],  # 64 are all of an epoch: asked again, it validates
    ids=["in an epoch", "in validation"],
)
def test_a_training_that_was_told_to_save_goes_on_from_there_once_it_died(
    dataset, reading, make_config, fit, tmp_path, save_at, asked_before
):
    class Died(Exception):
        pass

    asked = []

    def orders(position):
        asked.append(position)
        if asked.count(save_at) > asked_before + 1 or position > save_at:
            raise Died
        return Order.SAVE if asked.count(save_at) == asked_before + 1 else Order.GO_ON

    config, checkpoints = make_config("cam"), CheckpointStore(Store.at(tmp_path / "died"), 1)
    with pytest.raises(Died):
        list(train(config, dataset, checkpoints, World(orders=orders), reading))
    assert checkpoints.position() == save_at
    resumed, undisturbed = fit(config, "died", attempt=2), fit(config, "undisturbed")
    assert resumed.records == undisturbed.records
    for name, weights in undisturbed.weights.items():
        torch.testing.assert_close(resumed.weights[name], weights, rtol=0, atol=0)
