"""The Ray cluster as a study sees it: connecting to it, and what can be placed on it."""

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import ray

from wsol_pipeline import interrupts
from wsol_pipeline.errors import ResourceError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.training import ray_internals
from wsol_pipeline.training.config import Job
from wsol_pipeline.training.run import resources_per_worker

# Paths of Unix sockets have 107 characters; below a session's folder Ray takes up to 66, ours `/wsol-`, 8 and `/ray`.
MOST_BASE = 23
ANSWER_SECONDS = 10  # that a cluster to be joined may take to answer
TUNE_ACTOR_CPU = 0.01  # what the trial's own small actor reserves when its workers are a group of their own


def connect(nested: bool) -> None:
    """Join the cluster of RAY_ADDRESS (which a submitted job has), else start one that lives as long as this process.

    Args:
        nested: trials have workers of their own; Ray then needs its dashboard's state API to clean up after them.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # a report waits for it; polling costs the workers
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # an autoscaler adds nodes meanwhile
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the study ends its trials itself
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the study prints its own lines
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _join(address)
    else:
        _start(nested)
    interrupts.listen()  # `ray.init` has taken SIGTERM


def _join(address: str) -> None:
    try:
        _check_somebody_listens(ray_internals.any_cluster() if address == "auto" else address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ResourceError(
            f"The Ray cluster at RAY_ADDRESS={address} cannot be joined: {reason}. Has it ended? Without that variable "
            "the same command starts a Ray of its own here."
        ) from error


def _check_somebody_listens(address: str) -> None:
    """Raise `OSError` if nobody does at "host:port" or "ray://host:port": Ray itself would ask on for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()


def _start(nested: bool) -> None:
    # Ray ends task workers that were idle for a second; one that streams rows imports for seconds when it is needed
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # glibc keeps freed images, a heap for each of Ray's threads
    _stay_private()
    place = private_folder()
    logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)  # it looks for logs of what did not start
    try:
        ray.init(
            address="local", _node_ip_address="127.0.0.1", logging_level=logging.ERROR, log_to_driver=False,
            include_dashboard=nested, object_store_memory=500_000_000,
            num_cpus=ray_internals.cores() + nested,  # else as many workers as cores lack TUNE_ACTOR_CPU
            _temp_dir=place,
        )  # fmt: skip
    except Exception as error:  # Ray raises Exception itself for a process of its own that was not up within 30 s
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ResourceError(
            f"Ray cannot be started on this machine: {reason} Is it very busy, or out of memory or room in /dev/shm? "
            f"Ray's logs are in {place}. The same command continues."
        ) from error


def private_folder() -> str:
    """A place for a local Ray's sockets and logs, in a new folder that is closed to others: Ray opens its own to all.

    Below RAY_TMPDIR, else where this system keeps such things; below /tmp where paths of sockets would be too long.
    """
    places = [os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "/tmp"]
    base = next((place for place in places if len(place) <= MOST_BASE), places[0])
    Path(base).mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix="wsol-", dir=base) + "/ray"  # the former is 0700, whatever the umask


def check_alive() -> None:
    """Raise `ResourceError` if a process of a cluster that `connect` started has ended: trials would wait for ever."""
    if ended := ray_internals.ended_process():
        place = Path("/dev/shm")
        left = f" {place} has {shutil.disk_usage(place).free / 1e6:.0f} MB left." if place.exists() else ""
        raise ResourceError(f"Ray's {ended} on this machine has ended.{left} The same command continues.")


def _stay_private() -> None:
    """Let a cluster of one process listen on loopback alone, and to nobody without a token that is its own."""
    ray_internals.stay_on_loopback()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def pick_device(wanted: str, may_grow: bool = False) -> Literal["cpu", "cuda"]:
    """ "cuda" if asked for, or if `wanted` is "auto" and the cluster has a GPU; else "cpu". Raises `ResourceError`.

    A cluster that `may_grow` may get its GPUs later: then "cuda" is believed, and "auto" without any a `UsageError`.
    """
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    if wanted == "cuda" and not (has_gpu or may_grow):
        raise ResourceError("--device cuda needs a GPU but the cluster has none (its nodes may still be starting).")
    if wanted == "auto" and may_grow and not has_gpu:
        raise UsageError("--device auto cannot know which nodes an autoscaler will add: say --device cuda or cpu.")
    return "cuda" if wanted == "cuda" or (wanted == "auto" and has_gpu) else "cpu"


def is_one_machine() -> bool:
    """Whether workers run where this process does, as far as is known today."""
    return sum(node["Alive"] for node in ray.nodes()) == 1


def gpu_share(streams: bool = False, gpus: float = 1.0) -> int:
    """Cores of a worker with a GPU, unless told: the GPU's share of its node's, the poorest node's; 1 without a node.

    One that has a part of a GPU (`gpus`) has that part of them. A core stays free for Ray's own; of those that stream,
    half, for the processes that decode.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [(node["CPU"] - 1) / node["GPU"] for node in alive if node.get("GPU", 0) >= 1 and "CPU" in node]
    return max(1, int(gpus * min(shares, default=1) / (2 if streams else 1)))


def check_placement(job: Job, concurrent: int | None, may_grow: bool, streams: bool = False) -> int:
    """How many trials shaped like `job` run at once: at most `concurrent`, and what the cluster holds.

    Of CPUs one is left to those that stream, to decode images: trials that hold all of them would wait for it for ever.
    Raises `ResourceError` for a trial that can never be placed. A cluster that `may_grow` holds `concurrent` (or one).
    """
    need, have = resources_per_worker(job), ray.cluster_resources()
    if may_grow:
        return concurrent or 1
    overhead = TUNE_ACTOR_CPU if job.workers > 1 else 0
    on_nodes = sum(_workers_on(node["Resources"], need) for node in ray.nodes() if node["Alive"])
    by_cpu = (have.get("CPU", 0) - streams + 1e-9) // (need["CPU"] * job.workers + overhead)
    fits = min(on_nodes // job.workers, int(by_cpu))
    if fits < 1:
        whole = {name: amount * job.workers + overhead * (name == "CPU") for name, amount in need.items()}
        asked = ", ".join(f"{amount:g} {name}" for name, amount in whole.items())
        asked += " and 1 CPU for streamed images" * streams
        total = ", ".join(f"{have.get(name, 0):g} {name}" for name in need)
        raise ResourceError(
            f"A trial of {job.workers} workers needs {asked} but the whole cluster has {total}: it could never start. "
            "Use fewer --workers, or --cluster-may-grow if an autoscaler adds nodes."
        )
    return min(fits, concurrent or fits)


def _workers_on(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    """How many workers that `need` these resources one node holds: a worker lies on one node, a share on one GPU."""
    held = {name: node.get(name, 0) / amount for name, amount in need.items()}
    if 0 < need.get("GPU", 0) < 1:
        held["GPU"] = node.get("GPU", 0) * ((1 + 1e-9) // need["GPU"])
    return int(min(held.values()) + 1e-9)


def check_storage_stays(place: Path, option: str) -> None:
    """Raise `UsageError` if `place`, the value of `option`, vanishes with the job that writes there."""
    if {"runtime_resources", "working_dir_files"} <= set(place.absolute().parts):
        raise UsageError(
            f"{place.absolute()} lies in the submitted job's temporary copy of the working directory and vanishes with "
            f"it: give {option} an absolute path or a service."
        )


def check_storage_reaches_all(store: Store, shared: bool, may_grow: bool = False) -> None:
    """Raise `UsageError` for a local path that other nodes would not see, those of a cluster that `may_grow` too."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    if store.is_local and (nodes > 1 or may_grow) and not shared:
        raise UsageError(
            f"{nodes} nodes are alive{' and more may come' if may_grow else ''} but {store.uri} is a local path, which "
            "only one of them sees: use s3://, or say --storage-is-shared if every node mounts it there."
        )
