"""A Ray cluster of several nodes on this machine: a rehearsal, and what dies in tests of recovery.

Each node is a process of its own (`ray start --block`), with its own ports, logs and object store; all listen on
loopback and want the cluster's token. Nodes are ended by their own process ids: `ray stop` would end every other Ray of
the machine too.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

OBJECT_STORE_BYTES = 300_000_000  # of each node
START_SECONDS = 180
LEFT = "left.json"  # in the folder of a cluster that outlives who started it: its nodes' processes
OWN_PORTS = ("dashboard-agent-listen-port", "metrics-export-port")  # else two nodes of one machine want the same


@dataclass(frozen=True)
class Node:
    """One node: `ray start --block`, whose descendants are all its processes."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def processes(self) -> list[psutil.Process]:
        """The node's processes, Ray's and its workers'."""
        try:
            root = psutil.Process(self.process.pid)
            return [*root.children(recursive=True), root]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """End it as a machine that is switched off: at once, without a word to anybody."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def end(self) -> None:
        """End it as a machine that is shut down: Ray leaves the cluster; what is left after 30 s is killed."""
        _end(self.processes())
        self.process.wait()


@dataclass(frozen=True)
class Cluster:
    """A cluster on loopback. `dashboard` is where jobs are submitted, `environment` that of its users."""

    folder: Path
    address: str
    dashboard: str
    environment: dict[str, str]
    nodes: list[Node] = field(default_factory=list)  # the head first

    def add_node(self, cpus: int) -> Node:
        """Start a node of `cpus` logical CPUs that joins the head, and wait until the cluster knows it."""
        before = self.alive()  # one of them may be dead: the head learns that late
        self._start(f"node-{len(self.nodes)}", [f"--address={self.address}", f"--num-cpus={cpus}"])
        self._wait(lambda: not self.alive() <= before, "its head does not know it")
        return self.nodes[-1]

    def alive(self) -> set[bytes]:
        """Ray's ids of the nodes that the head counts as alive, its own included."""
        rows = self.ask("/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE")
        return set(re.findall(rb'"node_id": *"(\w+)"', rows))

    def ask(self, path: str, token: bool = True) -> bytes:
        """What the dashboard answers to GET `path`. Raises `urllib.error.HTTPError`: 401 without the `token`."""
        request = urllib.request.Request(self.dashboard + path)
        if token:
            request.add_header("Authorization", f"Bearer {(self.folder / 'token').read_text()}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def submission(self, *entrypoint: str, options: Sequence[str] = ()) -> list[str]:
        """The command line that submits `entrypoint` as a job and waits for it; to be run in `environment`."""
        return [_ray(), "job", "submit", "--address", self.dashboard, *options, "--", *entrypoint]

    def end(self) -> None:
        """End all nodes, the head last."""
        for node in reversed(self.nodes):
            node.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def leave(self) -> None:
        """Let the cluster outlive this process: its folder says which processes are its nodes, for `end_left`."""
        roots = [psutil.Process(node.process.pid) for node in self.nodes]
        (self.folder / LEFT).write_text(json.dumps([[root.pid, root.create_time()] for root in roots]))

    def _start(self, name: str, options: list[str]) -> None:
        log = self.folder / f"{name}.log"
        ports = [f"--{port}={free_port()}" for port in OWN_PORTS]
        command = [_ray(), "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", *options, *ports]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)
        self.nodes.append(Node(process, log))

    def _start_head(self, cpus: int) -> None:
        host, port = self.address.split(":")
        web = self.dashboard.rsplit(":", 1)[1]
        options = ["--head", f"--port={port}", f"--dashboard-host={host}", f"--dashboard-port={web}"]
        options += [f"--num-cpus={cpus}", f"--ray-client-server-port={free_port()}"]
        self._start("head", options)
        self._wait(lambda: len(self.alive()) == 1, "its dashboard does not answer")

    def _wait(self, ready: Callable[[], bool], reason: str) -> None:
        node, deadline = self.nodes[-1], time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and node.process.poll() is None:
            with contextlib.suppress(OSError):  # HTTPError too: the dashboard is up before what it asks
                if ready():
                    return
            time.sleep(0.5)
        why = reason if node.process.poll() is None else "it ended"
        raise RuntimeError(f"A Ray node did not start ({why}):\n{node.log.read_text()[-2000:]}")


@contextlib.contextmanager
def running_cluster(
    cpus: tuple[int, ...], head_cpus: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A head of `head_cpus` logical CPUs and a node for each of `cpus`, alive within the block.

    Nodes start in the current folder, so a submitted command is run there. `environment` is added to theirs.
    """
    folder = Path(tempfile.mkdtemp(prefix="wsol-"))  # short: Ray's socket paths have a limit of 107 bytes
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(secrets.token_hex(32))
    address = f"127.0.0.1:{free_port()}"
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ADDRESS": address,  # Ray's state API would else take any Ray it finds on this machine
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    cluster = Cluster(folder, address, f"http://127.0.0.1:{free_port()}", theirs | own | dict(environment or {}))
    try:
        cluster._start_head(head_cpus)
        for count in cpus:
            cluster.add_node(count)
        yield cluster
    finally:
        if not (folder / LEFT).exists():
            cluster.end()


def end_left(folder: Path) -> list[psutil.Process]:
    """End the cluster that was left with this `folder`; what was its processes. Raises `ValueError` if none was."""
    if not (folder / LEFT).is_file():
        raise ValueError(f"{folder} is not the folder of a cluster that was left.")
    ended = []
    for pid, created in reversed(json.loads((folder / LEFT).read_text())):
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            if root.create_time() == created:  # no other has got its number
                ended += [*root.children(recursive=True), root]
                _end([*root.children(recursive=True), root])
    shutil.rmtree(folder, ignore_errors=True)
    return ended


def _end(processes: list[psutil.Process]) -> None:
    """End a node, the last of its `processes`; what is left of them after 30 s is killed."""
    for process in processes[-1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=30)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def free_port() -> int:
    """A free port above 20000: Ray's workers take those below."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) > 20000:
                return port


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))
