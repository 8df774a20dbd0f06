"""The rehearsal cluster: nodes come, die and leave; nobody gets in without its token; nothing of it stays."""

import json
import subprocess
import sys
import time
import urllib.error

import psutil
import pytest

from cluster.nodes import Cluster, Node, end_left, running_cluster


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
            cluster.submission("true"), env=strangers, text=True, capture_output=True, timeout=800
        )
        assert refused_job.returncode != 0
        processes = [process for node in cluster.nodes for process in node.processes()]
        assert len(processes) > 5
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not cluster.folder.exists()


@pytest.mark.slow  # a minute
def test_a_cluster_that_is_left_is_ended_by_its_folder(tmp_path):
    sleeper = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '600'])"]
    cluster = Cluster(tmp_path / "cluster", "", "", {})
    cluster.folder.mkdir()
    cluster.nodes.extend(Node(subprocess.Popen(sleeper), tmp_path) for _ in range(2))
    while not all(len(node.processes()) == 2 for node in cluster.nodes):
        time.sleep(0.05)
    processes = [process for node in cluster.nodes for process in node.processes()]
    with pytest.raises(ValueError, match="is not the folder of a cluster that was left"):
        end_left(cluster.folder)
    cluster.leave()
    assert {process.pid for process in end_left(cluster.folder)} == {process.pid for process in processes}
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not cluster.folder.exists()
    for node in cluster.nodes:
        node.process.wait()


def test_a_process_that_has_got_an_old_node_s_number_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "600"]) as other:
        (tmp_path / "left.json").write_text(json.dumps([[other.pid, 1.0]]))
        assert end_left(tmp_path) == []
        assert other.poll() is None
        other.kill()
