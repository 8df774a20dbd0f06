"""A cluster in small: three Ray nodes on this machine, and a study submitted to them as to a real one.

    make cluster-demo           (or: python cluster/demo.py)
    make cluster-demo KEEP=1    the cluster stays, to submit to; how to end it is said

The head has no CPUs, so trials run on the two other nodes, each with two workers; the working directory is on every
node already, as in the image. Everything listens on loopback and wants the token. In the end every process is gone; the
study's files stay.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
from pathlib import Path

import psutil
from nodes import Cluster, end_left, running_cluster

STUDY = "--trials 2 --epochs 2 --workers 2 --storage-is-shared"


def status_without_token(cluster: Cluster) -> int:
    """How the jobs API answers to somebody who has no token: an HTTP status."""
    try:
        cluster.ask("/api/jobs/", token=False)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def run(cluster: Cluster, storage: Path) -> int:
    """Submit the study, show what it prints; its exit code, or 1 if the cluster lets everybody in."""
    status = status_without_token(cluster)
    print(f"{len(cluster.alive())} nodes are alive at {cluster.address}; jobs at {cluster.dashboard}")
    print(f"without the token the jobs API answers {status}", flush=True)
    if status != 401:
        return 1
    entrypoint = ["python", "rayjobs/tune_bas.py", *STUDY.split(), "--storage", str(storage)]
    print(f"$ ray job submit --address {cluster.dashboard} -- {' '.join(entrypoint)}\n", flush=True)
    return subprocess.run(cluster.submission(*entrypoint), env=cluster.environment).returncode


def how_to_use(cluster: Cluster, storage: Path) -> str:
    """What a shell needs to submit to a cluster that stays, and to end it."""
    ray = Path(sys.executable).with_name("ray")
    study = f"python rayjobs/tune_bas.py {STUDY} --name again --storage {storage}"
    return f"""The cluster stays: {cluster.address}, jobs and dashboard at {cluster.dashboard}. In a shell, from here:

  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={(cluster.folder / "token").read_text()}
  {ray} job submit --address {cluster.dashboard} -- {study}

To end it:

  {sys.executable} {Path(__file__).resolve()} --end {cluster.folder}"""


def left(processes: list[psutil.Process]) -> int:
    """How many of `processes` still are."""
    return sum(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def rehearse(storage: Path, keep: bool) -> int:
    """Start the cluster and the study; its exit code, or 1 if a process is left that was not to stay."""
    started = time.monotonic()
    with running_cluster((2, 2)) as cluster:
        code = run(cluster, storage)
        processes = [process for node in cluster.nodes for process in node.processes()]
        if keep:
            cluster.leave()
            print(f"\n{how_to_use(cluster, storage)}")
    lost = 0 if keep else left(processes)
    print(f"cluster-demo: {time.monotonic() - started:.0f} s; of {len(processes)} processes {left(processes)} are left")
    print(f"The study's files are in {storage}")
    return code or (1 if lost else 0)


def end(folder: Path) -> int:
    """End a cluster that was kept; 1 if a process of it is left, 2 if there is none."""
    try:
        processes = end_left(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"of {len(processes)} processes {left(processes)} are left")
    return 1 if left(processes) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the cluster to submit to")
    parser.add_argument("--end", type=Path, metavar="FOLDER", help="end a cluster that was left")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="a folder for the study is made in here")
    options = parser.parse_args()
    if options.end:
        return end(options.end)
    os.chdir(Path(__file__).parents[1])  # where the nodes start, and so what is submitted to them
    options.storage.mkdir(parents=True, exist_ok=True)
    storage = tempfile.mkdtemp(prefix="cluster-demo-", dir=options.storage.resolve())
    return rehearse(Path(storage), options.keep)


if __name__ == "__main__":
    sys.exit(main())
