"""A node that is told to leave, as clouds tell spot machines: its trial writes a checkpoint before it is gone."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.nodes import Cluster, Node, running_cluster
from tests.reliability import trace
from tests.reliability.exits import import_data, in_a_process
from tests.reliability.node_kill import NODES, TRIALS, node_of
from tests.reliability.row import Injection, Row
from tests.reliability.studies import Study, environment_of, study
from wsol_pipeline.training.signals import LEAVING_SECONDS

NOTICE = 15  # seconds that a node has; clouds give 30 to 120
BATCHES = 600  # an epoch, after which alone checkpoints are written without a notice: half a minute of training


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """Two of three meet trials of one worker, two at once; the others one of two workers, on two nodes."""
    assert in_a_process(import_data, folder / "data", 8 * BATCHES, 24) == 0
    in_groups, draw = times // 3, random.Random(0)
    for workers, notices in ((1, times - in_groups), (2, in_groups)):
        if notices:
            yield from given(notices, workers, folder / str(workers), folder / "data", draw)


def given(notices: int, workers: int, folder: Path, data: Path, draw: random.Random) -> Iterator[Injection]:
    """A study on three nodes; in place of each that has left another joins."""
    (folder / "trace").mkdir(parents=True)
    environment, trials = environment_of(folder), TRIALS // workers
    added = {name: environment[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS", trace.FOLDER)}
    added["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = str(NOTICE)
    options = f"--trials {trials} --concurrent {trials} --workers {workers} --epochs {notices + 2} --storage-is-shared"
    own = " --batch-size 8 --checkpoint-batches 0"
    with (
        running_cluster((1,) * NODES, environment=added) as cluster,
        study(folder, data, options + own, cluster.environment) as running,
    ):
        for number in range(notices):
            chosen = controllers_node if workers > 1 and number % 2 else workers_node
            yield taken_back(running, cluster, draw.randrange(20, 200), chosen)
        wrong = running.finish()
        if not wrong and running.states() != ["COMPLETE"] * trials:
            wrong = f"trials are {running.states()}"
        if wrong:
            yield Injection(f"after all notices of {workers} worker(s)", wrong=wrong)


def workers_node(cluster: Cluster, pid: int) -> Node:
    """The node of the worker that is process `pid`."""
    return node_of(cluster, pid)


def controllers_node(cluster: Cluster, pid: int) -> Node:
    """The node of the process that drives the only group of workers, none of which lies there."""

    def drives(node: Node) -> bool:
        return any("ImplicitFunc" in " ".join(process.cmdline()) for process in node.processes())

    return next(node for node in cluster.nodes if drives(node))


def taken_back(running: Study, cluster: Cluster, batches: int, chosen: Callable[[Cluster, int], Node]) -> Injection:
    """Give the `chosen` node its notice, and end it; what the newest batch's trial lost, in seconds of training."""
    began = len(running.lines())
    lines = running.wait(lambda lines: len(lines) >= began + batches)
    victim, before = lines[-1], {line.pid for line in lines}
    chosen(cluster, victim.pid).end()
    cluster.add_node(1)

    def heirs(lines: list[trace.Line]) -> list[trace.Line]:
        return [line for line in lines if line.trial == victim.trial and line.pid not in before]

    lines = running.wait(lambda lines: bool(heirs(lines)))
    first, own = heirs(lines)[0], [line for line in lines if line.trial == victim.trial and line.pid in before]
    again = [line.time for line in own if line.place >= first.place]
    lost = own[-1].time - again[0] if again else 0.0
    within = first.samples or first.epoch > victim.epoch
    wrong = "" if within else "it began the epoch anew: no checkpoint was written within it"
    return Injection(f"{chosen.__name__} at {victim.place}", round(lost, 1), first.time - own[-1].time, wrong)


ROW = Row(
    "preemption",
    f"a node that leaves with a notice of {NOTICE} s",
    6,
    "s of training",
    LEAVING_SECONDS + 3,
    180,
    inject,
)
