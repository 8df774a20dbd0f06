"""A cluster in small: three Ray nodes on this machine, and a study submitted to them as to a real one.

    make cluster-demo        (or: python cluster/demo.py)

The head has no CPUs, so trials run on the two other nodes, each with two workers; the working directory is on every
node already, as in the image. Everything listens on loopback and wants the token. In the end every process is gone.
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
from pathlib import Path

import psutil
from nodes import Cluster, running_cluster

STUDY = "--trials 2 --epochs 2 --workers 2 --storage-is-shared"


def status_without_token(cluster: Cluster) -> int:
    """How the jobs API answers to somebody who has no token: an HTTP status."""
    try:
        cluster.ask("/api/jobs/", token=False)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def run(cluster: Cluster, storage: str) -> int:
    """Submit the study, show what it prints; its exit code, or 1 if the cluster lets everybody in."""
    status = status_without_token(cluster)
    print(f"{len(cluster.alive())} nodes are alive at {cluster.address}; jobs at {cluster.dashboard}")
    print(f"without the token the jobs API answers {status}", flush=True)
    if status != 401:
        return 1
    entrypoint = ["python", "rayjobs/tune_bas.py", *STUDY.split(), "--storage", storage]
    print(f"$ ray job submit --address {cluster.dashboard} -- {' '.join(entrypoint)}\n", flush=True)
    return subprocess.run(cluster.submission(*entrypoint), env=cluster.environment).returncode


def main() -> int:
    started = time.monotonic()
    os.chdir(Path(__file__).parents[1])  # where the nodes start, and so what is submitted to them
    with tempfile.TemporaryDirectory() as storage, running_cluster((2, 2)) as cluster:
        code = run(cluster, storage)
        processes = [process for node in cluster.nodes for process in node.processes()]
    left = sum(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    seconds = time.monotonic() - started
    print(f"cluster-demo: {seconds:.0f} s; of {len(processes)} processes {left} are left")
    return code or (1 if left else 0)


if __name__ == "__main__":
    sys.exit(main())
