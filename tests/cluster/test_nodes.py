"""The rehearsal cluster: nodes come, die and leave; nobody gets in without its token; nothing of it stays."""

import subprocess
import time
import urllib.error

import psutil
import pytest

from cluster.nodes import Cluster, running_cluster


def wait_for_alive(cluster: Cluster, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while len(cluster.alive()) != count:
        assert time.monotonic() < deadline, f"{len(cluster.alive())} nodes are alive, not {count}"
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nodes_die_leave_and_come_and_all_are_ended():
    with running_cluster((1, 1), environment={"RAY_health_check_timeout_ms": "2000"}) as cluster:
        first, second = cluster.nodes[1:]
        with pytest.raises(urllib.error.HTTPError) as refused:
            cluster.ask("/api/jobs/", token=False)
        assert refused.value.code == 401
        assert oct((cluster.folder / "token").stat().st_mode & 0o777) == "0o600"
        first.kill()
        wait_for_alive(cluster, 2, 120)
        second.end()
        wait_for_alive(cluster, 1, 120)
        cluster.add_node(2)
        entrypoint = ["python", "-c", "import ray; ray.init(); print('CPUs:', ray.cluster_resources()['CPU'])"]
        ended = subprocess.run(cluster.submission(*entrypoint), env=cluster.environment, text=True, capture_output=True)
        assert "CPUs: 2.0" in ended.stdout, ended.stdout + ended.stderr
        strangers = cluster.environment | {"RAY_AUTH_TOKEN": "0" * 64}
        refused_job = subprocess.run(
            cluster.submission("true"), env=strangers, text=True, capture_output=True, timeout=300
        )
        assert refused_job.returncode != 0
        processes = [process for node in cluster.nodes for process in node.processes()]
        assert len(processes) > 5
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not cluster.folder.exists()
