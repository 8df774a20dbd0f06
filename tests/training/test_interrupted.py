"""A training that is asked to stop leaves a checkpoint at that batch, and goes on as if nothing had happened."""

import pytest
import torch

from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.loop import World, train


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

    def pulse(position):
        asked.append(position)
        return position == stop_at

    checkpoints = CheckpointStore(Store.at(tmp_path / "stopped"), 1)
    assert len(list(train(config, dataset, checkpoints, World(pulse=pulse), reading))) == records
    assert asked[-1] == checkpoints.position() == stop_at
    assert checkpoints.final() is None
    resumed, undisturbed = fit(config, "stopped", attempt=2), fit(config, "undisturbed")
    assert resumed.records == undisturbed.records
    for name, weights in undisturbed.weights.items():
        torch.testing.assert_close(resumed.weights[name], weights, rtol=0, atol=0)
