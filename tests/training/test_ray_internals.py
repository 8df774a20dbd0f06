"""What we use of Ray without a public name still is there, and does what it did.

A failure here after an upgrade of Ray says which use of `wsol_pipeline/training/ray_internals.py` to look at; nothing
else of the project touches `ray._private` or `ray.experimental`.
"""

import ast
import inspect
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray._private import ray_constants, services, worker

from wsol_pipeline.training import ray_internals

ROOT = Path(__file__).parents[2]
OURS = ("rayjobs", "wsol_pipeline", "wsol_models", "search_spaces", "cluster", "benchmarks")


def private_names(path: Path) -> list[str]:
    """Ray's modules without a public name that a file imports, and attributes `ray._private`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.startswith(("ray._", "ray.experimental"))]
        found += [ast.unparse(node)] if isinstance(node, ast.Attribute) and ast.unparse(node) == "ray._private" else []
    return found


def test_one_file_holds_all_uses():
    files = [path for room in OURS for path in (ROOT / room).rglob("*.py") if path.name != "ray_internals.py"]
    assert {str(path.relative_to(ROOT)): names for path in files if (names := private_names(path))} == {}
    assert private_names(ROOT / "wsol_pipeline/training/ray_internals.py")


def test_the_version_is_the_one_that_was_looked_at():
    told = inspect.getdoc(ray_internals)
    assert f"Ray {'.'.join(ray.__version__.split('.')[:2])}" in told, "read Ray's source of each use, then change this"


def test_the_store_of_a_cluster_keeps_what_driver_and_workers_tell_each_other(local_ray):
    assert ray_internals.get("a trial") is None, "_internal_kv_get said something else of a key that nobody put"
    ray_internals.put("a trial", "[1, 96]")
    ray_internals.put("a trial", "[1, 112]")
    assert ray_internals.get("a trial") == "[1, 112]", "_internal_kv_put no longer overwrites, or get no longer reads"
    assert ray_internals.exists("a trial")
    ray_internals.delete("a trial")
    assert not ray_internals.exists("a trial"), "_internal_kv_del left the key: a study would leave two for each trial"


def test_no_node_of_a_new_cluster_is_about_to_leave(local_ray):
    assert ray_internals.leaving_nodes() == set(), (
        "get_draining_nodes changed: trials would save all the time, or never"
    )


def test_auto_is_a_cluster_of_this_machine(local_ray, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    host, _, port = ray_internals.any_cluster().rpartition(":")
    assert host
    assert port.isdigit()


def test_the_processes_of_a_new_cluster_live(local_ray):
    node = worker._global_node
    assert node is not None, "ray._private.worker._global_node moved: the end of a local Ray would not be noticed"
    assert {"raylet", "gcs_server"} <= set(node.all_processes), "processes of a node have other names"
    assert ray_internals.ended_process() == ""


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_process_that_has_ended_is_named(monkeypatch, name):
    node = SimpleNamespace(dead_processes=lambda: [("dashboard", None), (name, None)])
    monkeypatch.setattr(worker, "_global_node", node)
    assert ray_internals.ended_process() == name


def test_ray_reads_where_to_listen_from_the_constant(monkeypatch):
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "x")  # so that both are as before afterwards
    ray_internals.stay_on_loopback()
    assert ray_constants.ENABLE_RAY_CLUSTER is False
    assert "ray_constants.ENABLE_RAY_CLUSTER" in inspect.getsource(services), "Ray asks another name where to listen"


@ray.remote
class Sleeper:
    def who(self):
        return os.getpid(), ray_internals.own_actor()

    def sleep(self):
        time.sleep(3600)


def test_an_actor_that_was_stopped_is_ended_by_its_id(local_ray):
    """SIGSTOP: it answers nothing, and none of its threads runs."""
    actor = Sleeper.remote()
    pid, name = ray.get(actor.who.remote())
    sleeping = actor.sleep.remote()
    os.kill(pid, signal.SIGSTOP)
    ray_internals.kill_actor(name)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(sleeping, timeout=600)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=600)
    assert not psutil.pid_exists(pid), "core_worker.kill_actor no longer ends a process that does not answer"


def test_a_replica_of_serve_binds_loopback_alone(monkeypatch):
    from ray.serve._private import replica

    bound = []
    monkeypatch.setattr(replica, "add_port_to_grpc_server", lambda server, address: bound.append(address))
    ray_internals.serve_on_loopback()
    replica.add_port_to_grpc_server(None, "[::]:0")
    assert bound == ["127.0.0.1:0"]
    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in inspect.getsource(replica)
