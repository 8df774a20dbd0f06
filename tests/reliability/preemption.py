"""A node that is told to leave, as clouds tell spot machines: its trial writes a checkpoint before it is gone."""

import random
from collections.abc import Iterator
from pathlib import Path

from cluster.nodes import Cluster, running_cluster
from tests.reliability import trace
from tests.reliability.exits import import_data, in_a_process
from tests.reliability.node_kill import NODES, TRIALS, node_of
from tests.reliability.row import Injection, Row
from tests.reliability.studies import Study, environment_of, study
from wsol_pipeline.training.pulse import LEAVING_SECONDS

NOTICE = 15  # seconds that a node has; clouds give 30 to 120
BATCHES = 600  # an epoch, after which alone checkpoints are written without a notice: half a minute of training


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """One study of two trials at once; in place of each node that has left another joins."""
    assert in_a_process(import_data, folder / "data", 8 * BATCHES, 24) == 0
    (folder / "trace").mkdir()
    environment = environment_of(folder)
    added = {name: environment[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS", trace.FOLDER)}
    draw = random.Random(0)
    with running_cluster(
        (1,) * NODES, environment=added | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(NOTICE)}
    ) as cluster:
        options = f"--trials {TRIALS} --concurrent {TRIALS} --epochs {times + 2} --storage-is-shared"
        own = " --batch-size 8 --checkpoint-batches 0"
        with study(folder, folder / "data", options + own, cluster.environment) as running:
            for _ in range(times):
                yield taken_back(running, cluster, draw.randrange(20, 200))
                cluster.add_node(1)
            wrong = running.finish()
            if not wrong and running.states() != ["COMPLETE"] * TRIALS:
                wrong = f"trials are {running.states()}"
            if wrong:
                yield Injection("after all notices", wrong=wrong)


def taken_back(running: Study, cluster: Cluster, batches: int) -> Injection:
    """Give the node that trained the newest batch its notice, and end it; what was lost, in seconds of training."""
    began = len(running.lines())
    victim = running.wait(lambda lines: len(lines) >= began + batches)[-1]
    node_of(cluster, victim.pid).end()

    def heirs(lines: list[trace.Line]) -> list[trace.Line]:
        return [
            line for line in lines if line.trial == victim.trial and line.time > victim.time and line.pid != victim.pid
        ]

    lines = running.wait(lambda lines: bool(heirs(lines)))
    first, own = heirs(lines)[0], [line for line in lines if line.pid == victim.pid and line.trial == victim.trial]
    again = [line.time for line in own if line.place >= first.place]
    lost = own[-1].time - again[0] if again else 0.0
    wrong = "" if first.samples else "it began an epoch anew: no checkpoint was written within it"
    return Injection(f"node at {victim.place}", round(lost, 1), first.time - own[-1].time, wrong)


ROW = Row(
    "preemption",
    f"a node that leaves with a notice of {NOTICE} s",
    5,
    "s of training",
    LEAVING_SECONDS + 3,
    180,
    inject,
)
