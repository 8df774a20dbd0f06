"""What a driver and its trials' workers tell each other while a trial runs: where it stands, and that it should stop;
and what the cluster tells workers: that their node is about to leave.

The former goes through the key-value store that every Ray cluster has; both take about a millisecond a second for each
trial. Nothing depends on it: records and checkpoints are what counts.
"""

import json
import logging
import os
import time
from collections.abc import Collection

from wsol_pipeline.training import ray_internals
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.loop import Order

logger = logging.getLogger(__name__)

SECONDS = 1.0  # between two exchanges
LEAVING_SECONDS = 10.0  # between checkpoints while a node is about to leave: what is lost when it does


class Signals:
    """The worker's side: called with the position after each batch, it says what to do there.

    A machine that a cloud takes back, or that is shut down, is *draining* for Ray before it is gone: its trial, on
    workers of the `nodes` named by Ray's ids, then writes checkpoints, and goes on for as long as it is left.
    """

    def __init__(self, trial: CheckpointStore, nodes: Collection[str] = ()) -> None:
        self.key, self.nodes, self.said, self.saved = trial.own.uri, set(nodes), 0.0, 0.0
        self.beats, self.beaten = 0, 0.0

    def __call__(self, position: Position) -> Order:
        now = time.monotonic()
        if now - self.said < SECONDS:
            return Order.GO_ON
        self.said = now
        ray_internals.put(self.key, json.dumps([position.epoch, position.samples]))
        if ray_internals.exists(_stop(self.key)):
            return Order.STOP
        leaving = self.nodes & ray_internals.leaving_nodes()
        if not leaving or now - self.saved < LEAVING_SECONDS:
            return Order.GO_ON
        logger.warning("node %s is about to leave: writing a checkpoint at %s", ", ".join(sorted(leaving)), position)
        self.saved = now
        return Order.SAVE

    def beat(self) -> None:
        """Say that the trial goes on, and in which actor: once a second at most."""
        self.beats += 1
        if time.monotonic() - self.beaten >= SECONDS:
            self.beaten = time.monotonic()
            said = [f"{os.getpid()} {self.beats}", ray_internals.own_actor()]
            ray_internals.put(_beat(self.key), json.dumps(said))


def heartbeat(trial: CheckpointStore) -> str | None:
    """What changes while the trial goes on; None before it has said anything."""
    said = ray_internals.get(_beat(trial.own.uri))
    return json.loads(said)[0] if said else None


def end(trial: CheckpointStore) -> None:
    """End the actor that beat last for the trial, as a machine that fails would; Ray starts another."""
    said = ray_internals.get(_beat(trial.own.uri))
    if said and (actor := json.loads(said)[1]):
        ray_internals.kill_actor(actor)
    hush(trial)


def hush(trial: CheckpointStore) -> None:
    """Forget the last beat: whoever beat is gone, and its successor takes its time to begin."""
    ray_internals.delete(_beat(trial.own.uri))


def position(trial: CheckpointStore) -> Position | None:
    """Where the trial's workers said last that they are, None if they have not."""
    said = ray_internals.get(trial.own.uri)
    return Position(*json.loads(said)) if said else None


def ask_to_stop(trial: CheckpointStore) -> None:
    """Let the trial's workers write a checkpoint after the batch they are at, and end."""
    ray_internals.put(_stop(trial.own.uri), "now")


def forget(trial: CheckpointStore) -> None:
    """Remove what was said; a cluster may outlive thousands of trials."""
    for key in (trial.own.uri, _stop(trial.own.uri), _beat(trial.own.uri)):
        ray_internals.delete(key)


def _stop(key: str) -> str:
    return f"{key} stop"


def _beat(key: str) -> str:
    return f"{key} beat"
