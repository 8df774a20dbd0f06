"""Every use of a part of Ray that has no public name, seen to work with Ray 2.60.

An upgrade of Ray that breaks one is told by `tests/training/test_ray_internals.py`, in words. pyproject.toml therefore
bounds Ray's version; `ray-project/ray` has the source of each name under the path that its import says.
"""

import os
import sys

import ray
import ray._private.state
import ray._private.worker
from ray._private import ray_constants
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import get_num_cpus
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_get, _internal_kv_put

_SPACE = "wsol"  # of our keys in the cluster's store


def put(key: str, value: str) -> None:
    """Note a value in the key-value store that every cluster has; a millisecond. (`ray.experimental`)"""
    _internal_kv_put(key, value, namespace=_SPACE)


def get(key: str) -> str | None:
    """What was noted under `key`, if anything."""
    said = _internal_kv_get(key, namespace=_SPACE)
    return None if said is None else said.decode()


def exists(key: str) -> bool:
    """Whether anything was noted under `key`."""
    return bool(_internal_kv_exists(key, namespace=_SPACE))


def delete(key: str) -> None:
    """Forget what was noted under `key`."""
    _internal_kv_del(key, namespace=_SPACE)


def leaving_nodes() -> set[str]:
    """Ray's ids of the nodes that are draining. Ray Train asks the same, and only for groups."""
    return set(ray._private.state.state.get_draining_nodes())


def own_actor() -> str | None:
    """Ray's id of the actor that this process is, if it is one."""
    return ray.get_runtime_context().get_actor_id()


def kill_actor(actor: str) -> None:
    """End the actor with this id by SIGKILL, as `ray.kill` does with a handle, which nobody here has."""
    core = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined]
    core.kill_actor(ray.ActorID.from_hex(actor), True)


def ended_process() -> str:
    """The name of a process that a cluster of this process cannot go on without and that has ended; "" if none has.

    A cluster that was joined has its processes elsewhere: "".
    """
    node = ray._private.worker._global_node
    ended: list[str] = [name for name, _ in node.dead_processes()] if node else []
    return next((name for name in ended if name in (PROCESS_TYPE_RAYLET, PROCESS_TYPE_GCS_SERVER)), "")


def any_cluster() -> str:
    """The "host:port" that Ray takes "auto" for: of a cluster on this machine. Raises `ConnectionError` without one."""
    return str(canonicalize_bootstrap_address("auto"))


def cores() -> int:
    """The cores that Ray would take: those of the container, where there is one."""
    return int(get_num_cpus())


def stay_on_loopback() -> None:
    """Let a cluster that is started next listen on this machine alone.

    Ray takes the machine's address for itself, and where it has one it listens on all interfaces. It reads the
    variable that says "one machine only" when it is imported, so its constant is set too.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")


def serve_on_loopback() -> None:
    """Let a replica of Ray Serve listen on this machine alone, for what its cluster's own processes ask of it.

    To be called by the replica's constructor. Ray binds that port to all interfaces, and unpickles what comes in
    there.
    """
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
