"""A node of a cluster that is switched off while its head stays: its trial goes on elsewhere."""

import random
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.nodes import Cluster, Node, running_cluster
from tests.reliability import trace
from tests.reliability.exits import import_data, in_a_process
from tests.reliability.row import Injection, Row
from tests.reliability.studies import INTERVAL, environment_of, recovered, study

NODES, TRIALS = 3, 2  # of one CPU each, so a node is free


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """One study of two trials at once; after each kill another node joins, as an autoscaler would add one."""
    assert in_a_process(import_data, folder / "data", 96, 24) == 0
    (folder / "trace").mkdir()
    environment = environment_of(folder)
    added = {name: environment[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS", trace.FOLDER)}
    draw = random.Random(0)
    with running_cluster((1,) * NODES, environment=added) as cluster:
        options = f"--trials {TRIALS} --concurrent {TRIALS} --epochs {20 + 30 * times} --storage-is-shared"
        with study(folder, folder / "data", options, cluster.environment) as running:
            for _ in range(times):
                began = len(running.lines())
                batches = draw.randrange(5, 15)
                lines = running.wait(lambda lines, last=began + batches: len(lines) >= last)
                victim = lines[-1]
                node_of(cluster, victim.pid).kill()
                yield recovered(running, victim, f"node at batch {len(lines)}")
                cluster.add_node(1)
            wrong = running.finish()
            if not wrong and running.states() != ["COMPLETE"] * TRIALS:
                wrong = f"trials are {running.states()}"
            if wrong:
                yield Injection("after all kills", wrong=wrong)


def node_of(cluster: Cluster, pid: int) -> Node:
    """The node that process `pid` belongs to."""
    return next(node for node in cluster.nodes if psutil.Process(pid) in node.processes())


ROW = Row("node-kill", "a node switched off, the head stays", 5, "batches", INTERVAL, 180, inject)
