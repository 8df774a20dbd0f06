"""What is asked of a cluster to which an autoscaler adds nodes: it can't be seen yet, so it has to be said."""

import pytest
import ray

from wsol_pipeline.errors import ResourceError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.training import cluster
from wsol_pipeline.training.config import Job, TrainConfig


@pytest.fixture
def head_alone(monkeypatch):
    """A cluster of a head without GPUs."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])


@pytest.mark.usefixtures("head_alone")
def test_gpus_that_are_not_there_yet_are_believed_in_a_growing_cluster_alone():
    assert cluster.pick_device("cuda", may_grow=True) == "cuda"
    assert cluster.pick_device("cpu", may_grow=True) == "cpu"
    assert cluster.pick_device("auto") == "cpu"
    with pytest.raises(ResourceError, match="the cluster has none"):
        cluster.pick_device("cuda")
    with pytest.raises(UsageError, match="say --device cuda or cpu"):
        cluster.pick_device("auto", may_grow=True)


@pytest.mark.usefixtures("head_alone")
def test_nodes_that_will_come_need_storage_that_they_see(tmp_path):
    local = Store.at(tmp_path)
    cluster.check_storage_reaches_all(local, shared=False)
    cluster.check_storage_reaches_all(local, shared=True, may_grow=True)
    cluster.check_storage_reaches_all(Store.at("s3://bucket/runs"), shared=False, may_grow=True)
    with pytest.raises(UsageError, match="more may come"):
        cluster.check_storage_reaches_all(local, shared=False, may_grow=True)


@pytest.mark.parametrize(
    ("nodes", "share", "streaming"),
    [
        ([{"CPU": 64.0, "GPU": 8.0}], 7, 3),
        ([{"CPU": 16.0, "GPU": 1.0}], 15, 7),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], 3, 1),  # the poorest with a GPU
        ([{"CPU": 4.0, "GPU": 4.0}], 1, 1),
        ([{"GPU": 4.0}], 1, 1),
        ([], 1, 1),
    ],
)
def test_a_worker_with_a_gpu_has_its_share_of_the_nodes_cores(monkeypatch, nodes, share, streaming):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    assert (cluster.gpu_share(), cluster.gpu_share(streams=True)) == (share, streaming)
    assert cluster.gpu_share(gpus=0.5) == max(1, share // 2)


@pytest.mark.parametrize(("gpus", "fits"), [(1.0, 2), (0.25, 8), (0.1, 20), (0.4, 4)])  # 0.4 of one and 0.4 of another
def test_trials_that_share_gpus_lie_on_one_each(monkeypatch, gpus, fits):
    node = {"CPU": 64.0, "GPU": 2.0}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: node)
    job = Job(TrainConfig(), "data", "trial", 1, device="cuda", gpus=gpus)
    assert cluster.check_placement(job, None, may_grow=False) == fits


@pytest.mark.parametrize(("streams", "fits"), [(False, 2), (True, 1)])
def test_trials_that_stream_leave_a_cpu_to_decode(monkeypatch, streams, fits):
    """Two that hold both of the machine's would wait for images for ever."""
    job = Job(TrainConfig(), "data", "trial", 1)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert cluster.check_placement(job, None, False, streams) == fits
    if streams:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
        with pytest.raises(ResourceError, match="1 CPU and 1 CPU for streamed images but the whole cluster has 1 CPU"):
            cluster.check_placement(job, None, False, streams)
