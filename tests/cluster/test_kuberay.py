"""The manifests for KubeRay: fields that its operator knows, and pods that may no more than they need."""

import copy
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rayjobs import tune_bas
from tests.cluster.manifests import check, dangers, load_all, pods
from wsol_pipeline.console import tried as tried_module
from wsol_pipeline.console.command_line import parse

ROOT = Path(__file__).parents[2]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


@pytest.fixture
def cluster() -> dict[str, Any]:
    return load_all("kuberay/raycluster.yaml")[0]


@pytest.fixture
def job() -> dict[str, Any]:
    return load_all("kuberay/rayjob.yaml")[0]


def test_the_operator_knows_every_field(cluster, job):
    check(cluster, "RayCluster")
    check(job, "RayJob")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("authOptions", {"mode": "tokens"}),
        ("workerGroupSpecs.0.idleTimeout", 5),
        ("headGroupSpec.template.spec.containers.0.resource", {}),
        ("headGroupSpec.template.spec.volumes.0.emptyDir.sizeLimits", "1Gi"),
        ("headGroupSpec.rayStartParams.num-cpus", 0),
    ],
)
def test_a_wrong_field_is_refused(cluster, path, value):
    *parents, last = path.split(".")
    place = cluster["spec"]
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check(cluster, "RayCluster")


def test_a_job_s_cluster_is_the_cluster(cluster, job):
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    images = {container["image"] for pod in pods(job) for container in pod["containers"]}
    assert len(images) == 1


def test_the_cluster_wants_a_token_stays_inside_and_grows_from_nothing(cluster):
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] >= 300
    head = spec["headGroupSpec"]
    assert (head["serviceType"], head["rayStartParams"]["num-cpus"], "enableIngress" in head) == (
        "ClusterIP",
        "0",
        False,
    )
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        shm = next(v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shm")
        assert shm["medium"] == "Memory"
        assert int(group["rayStartParams"]["object-store-memory"]) < int(shm["sizeLimit"].removesuffix("Gi")) * 2**30


def test_pods_may_no_more_than_they_need(job):
    found = list(pods(job))
    assert len(found) == 3  # submitter, head, nodes
    for pod in found:
        assert dangers(pod) == set()
    autoscaler = job["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]
    assert (autoscaler["runAsNonRoot"], autoscaler["allowPrivilegeEscalation"]) == (True, False)


@pytest.mark.parametrize(
    ("danger", "change"),
    [
        ("user", lambda pod: pod.pop("securityContext")),
        ("host", lambda pod: pod.update(hostNetwork=True)),
        ("account", lambda pod: pod.pop("serviceAccountName")),
        ("privileges", lambda pod: pod["containers"][0]["securityContext"].pop("capabilities")),
        ("root file system", lambda pod: pod["containers"][0]["securityContext"].pop("readOnlyRootFilesystem")),
        ("limits", lambda pod: pod["containers"][0]["resources"].pop("limits")),
        ("image", lambda pod: pod["containers"][0].update(image="REGISTRY/wsol:latest")),
        ("volumes", lambda pod: pod["volumes"].pop()),
        ("secret", lambda pod: pod["containers"][0]["env"].append({"name": "PGPASSWORD", "value": "x"})),
    ],
)
def test_what_would_be_unsafe_is_seen(cluster, danger, change):
    pod = copy.deepcopy(cluster["spec"]["headGroupSpec"]["template"]["spec"])  # the file's aliases, told apart
    change(pod)
    assert danger in dangers(pod)


def test_a_retried_job_continues_and_everything_ends(job):
    spec = job["spec"]
    assert spec["backoffLimit"] >= 1
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    *tried, python, script = shlex.split(spec["entrypoint"])[:5]
    assert (tried, python, (ROOT / script).exists()) == (["python", "-m", tried_module.__name__], "python", True)
    assert not set(spec["entrypoint"]) & set(";&|<>$`()\"'\\*?")  # the operator puts it into a shell's line
    arguments = shlex.split(spec["entrypoint"])[5:]
    options = parse(tune_bas.Options, arguments)
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    cores = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert options.cpus_per_worker < cores  # the rest reads
    assert (options.cluster_may_grow, options.concurrent, options.device) == (True, group["maxReplicas"], "cuda")
    assert options.storage.startswith("s3://")
    assert options.study_db == "postgresql+psycopg://wsol@postgres/studies"


def test_network_rules_name_the_pods_that_exist(job):
    (policy,) = load_all("kuberay/networkpolicy.yaml")
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert not [rule for rule in spec["ingress"] if not rule.get("from")]
    assert not [source for rule in spec["ingress"] for source in rule["from"] if "ipBlock" in source]
    for block in (target["ipBlock"] for rule in spec["egress"] for target in rule["to"] if "ipBlock" in target):
        assert "169.254.169.254/32" in block["except"]
    submitter = job["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": submitter}} in spec["ingress"][1]["from"]
    labels = [m["spec"]["template"]["metadata"]["labels"] for m in load_all("mlflow/kubernetes.yaml")
              if m["kind"] in ("Deployment", "StatefulSet")]  # fmt: skip
    for wanted in ({"app": "mlflow"}, {"app": "postgres"}):
        assert wanted in labels
        assert any({"podSelector": {"matchLabels": wanted}} in rule["to"] for rule in spec["egress"])


def test_the_accounts_of_the_pods_exist_and_nodes_hold_no_key_to_kubernetes(cluster):
    accounts = {account["metadata"]["name"]: account for account in load_all("kuberay/serviceaccounts.yaml")}
    assert {pod["serviceAccountName"] for pod in pods(cluster)} == accounts.keys()
    assert accounts["wsol-node"]["automountServiceAccountToken"] is False
