"""What a driver and its trials' workers tell each other while a trial runs: where it stands, and that it should stop.

It goes through the key-value store that every Ray cluster has, about a millisecond a second for each trial. Nothing
depends on it: records and checkpoints are what counts.
"""

import json
import time

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_get, _internal_kv_put

from wsol_pipeline.training.checkpoint import CheckpointStore, Position

SECONDS = 1.0  # between two exchanges
_SPACE = "wsol"  # of keys in the store


class Pulse:
    """The worker's side. Called with the position after each batch; True once the driver wants the trial to stop."""

    def __init__(self, trial: CheckpointStore) -> None:
        self.key, self.said = trial.own.uri, 0.0

    def __call__(self, position: Position) -> bool:
        if time.monotonic() - self.said < SECONDS:
            return False
        self.said = time.monotonic()
        _internal_kv_put(self.key, json.dumps([position.epoch, position.samples]), namespace=_SPACE)
        return _internal_kv_exists(_stop(self.key), namespace=_SPACE)


def position(trial: CheckpointStore) -> Position | None:
    """Where the trial's workers said last that they are, None if they have not."""
    said = _internal_kv_get(trial.own.uri, namespace=_SPACE)
    return Position(*json.loads(said)) if said else None


def ask_to_stop(trial: CheckpointStore) -> None:
    """Let the trial's workers write a checkpoint after the batch they are at, and end."""
    _internal_kv_put(_stop(trial.own.uri), "now", namespace=_SPACE)


def forget(trial: CheckpointStore) -> None:
    """Remove what was said; a cluster may outlive thousands of trials."""
    for key in (trial.own.uri, _stop(trial.own.uri)):
        _internal_kv_del(key, namespace=_SPACE)


def _stop(key: str) -> str:
    return f"{key} stop"
