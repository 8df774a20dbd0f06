"""The files for `ray up`: whole by Ray's own check, and safe by ours."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import _configure_security_group
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CLOUDS = ("aws", "gcp")
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
SECRET = re.compile(
    r"""AKIA[0-9A-Z]{16}|PRIVATE KEY|(password|secret|(?<!http)token|credential)[\w"']*\s*[:=]\s*["']?\w""", re.I
)


def load(cloud: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())


def is_spot(node: dict[str, Any]) -> bool:
    return (
        node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or node.get("scheduling", {}).get("provisioningModel") == "SPOT"
    )


def dangers(config: dict[str, Any]) -> set[str]:
    """What is unsafe or would stop a study in a cluster file."""
    found, text = set(), json.dumps(config)
    head = config["available_node_types"][config["head_node_type"]]
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    if "0.0.0.0" in text or not any("--dashboard-host=127.0.0.1" in line for line in starts):
        found.add("dashboard")
    if "IpPermissions" in text or re.search(r"--(publish|ray-client)", text):
        found.add("ports")
    if not all("RAY_AUTH_MODE=token" in line for line in starts):
        found.add("token mode")
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token" or SECRET.search(text):
        found.add("secret")
    for name, kind in config["available_node_types"].items():
        if is_spot(kind["node_config"]) == (name == config["head_node_type"]):
            found.add("spot")
        if "GPU" in kind["resources"] and kind["min_workers"] != 0:
            found.add("idle GPUs")
    if not any(
        f"cluster/spot.py {config['provider']['type']} " in line for line in config["worker_start_ray_commands"]
    ):
        found.add("notices")
    if head["resources"] != {"CPU": 0} or not any("--head" in line and "--num-cpus=0" in line for line in starts):
        found.add("trials on the head")
    for package, version in re.findall(r"([\w-]+)==([\w.]+)", text):
        if PINS.get(package) != version:
            found.add("version")
    if any("pip install" in line and "-c ~/wsol/constraints.txt" not in line and "uv==" not in line
           for key in ("setup_commands", "head_setup_commands") for line in config[key]):  # fmt: skip
        found.add("version")
    return found


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts_the_file_and_it_is_safe(cloud):
    validate_config(prepare_config(load(cloud)))
    assert dangers(load(cloud)) == set()


def test_ray_refuses_a_misspelt_key():
    with pytest.raises(Exception, match="idle_timout_minutes"):
        validate_config(prepare_config(load("aws") | {"idle_timout_minutes": 5}))


@pytest.mark.parametrize(
    ("danger", "before", "after"),
    [
        ("dashboard", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        ("dashboard", "--dashboard-host=127.0.0.1", ""),
        ("ports", "GroupName: wsol", "GroupName: wsol\n    IpPermissions: [{FromPort: 8265}]"),
        ("token mode", "RAY_AUTH_MODE=token ray start --address", "ray start --address"),
        ("secret", "~/.ray/auth_token: ~/.ray/auth_token", "~/.ray/auth_token: other"),
        ("secret", "RAY_USAGE_STATS_ENABLED=0", "RAY_AUTH_TOKEN=0123abcd"),
        ("spot", "      InstanceMarketOptions: {MarketType: spot}\n", ""),
        ("spot", "InstanceType: m7i.xlarge", "InstanceMarketOptions: {MarketType: spot}"),
        ("notices", "cluster/spot.py aws ", "cluster/spot.py gcp "),
        ("idle GPUs", "min_workers: 0", "min_workers: 1"),
        ("trials on the head", "--num-cpus=0", ""),
        ("version", f"uv=={PINS['uv']}", "uv==0.1.0"),
        ("version", "-c ~/wsol/constraints.txt boto3", "boto3"),
    ],
)  # fmt: skip
def test_what_would_be_unsafe_is_seen(danger, before, after):
    text = (CLUSTER / "aws.yaml").read_text()
    assert before in text
    assert danger in dangers(yaml.safe_load(text.replace(before, after, 1)))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_is_copied_to_the_nodes_exists_and_holds_every_package(cloud):
    sources = {source for source in load(cloud)["file_mounts"].values() if not source.startswith("~")}
    assert all((ROOT / source).exists() for source in sources)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "cluster"}
    assert packages <= sources


def statements(role: str) -> list[dict[str, Any]]:
    """The statements of a policy, actions and resources as lists."""
    found = json.loads((CLUSTER / f"iam/{role}.json").read_text())["Statement"]
    listed = {key: (lambda value: value if isinstance(value, list) else [value]) for key in ("Action", "Resource")}
    return [statement | {key: make(statement[key]) for key, make in listed.items()} for statement in found]


def wide(statement: dict[str, Any]) -> set[str]:
    """What a statement grants on more than it names."""
    found, told = set(), json.dumps(statement.get("Condition", {}))
    for action in statement["Action"]:
        instances = any(":instance/" in resource for resource in statement["Resource"])
        if "*" in action or (statement["Resource"] == ["*"] and not action.startswith("ec2:Describe")):
            found.add(action)
        if action == "ec2:CreateTags" and not ("ec2:CreateAction" in told or "ec2:ResourceTag/" in told):
            found.add(action)
        if action == "ec2:RunInstances" and instances and not ("InstanceType" in told and "RequestTag/ray" in told):
            found.add(action)
        if action in ("ec2:TerminateInstances", "ec2:StopInstances") and "ec2:ResourceTag/ray-cluster-name" not in told:
            found.add(action)
        if action == "iam:PassRole" and "iam:PassedToService" not in told:
            found.add(action)
    return found


@pytest.mark.parametrize("role", ["head", "node", "mlflow"])
def test_the_policies_grant_no_more_than_named_things(role):
    assert [wide(statement) for statement in statements(role)] == [set()] * len(statements(role))
    if role != "head":
        assert {action.split(":")[0] for statement in statements(role) for action in statement["Action"]} == {"s3"}


@pytest.mark.parametrize(
    ("action", "resource", "condition"),
    [
        ("ec2:CreateTags", "*", {}),
        ("ec2:CreateTags", "arn:aws:ec2:us-west-2:1:instance/*", {}),
        ("ec2:RunInstances", "*", {}),
        ("ec2:RunInstances", "arn:aws:ec2:us-west-2:1:instance/*", {"StringEquals": {"ec2:InstanceType": "a"}}),
        ("ec2:TerminateInstances", "arn:aws:ec2:us-west-2:1:instance/*", {}),
        ("ssm:GetParameters", "*", {}),
        ("s3:*", "arn:aws:s3:::BUCKET/*", {}),
        ("iam:PassRole", "arn:aws:iam::1:role/wsol-node", {}),
    ],
)
def test_a_wide_grant_is_seen(action, resource, condition):
    assert wide({"Action": [action], "Resource": [resource], "Condition": condition}) == {action}


def test_the_head_may_start_what_the_cluster_file_asks_for_and_nothing_else():
    granted = {key: value for statement in statements("head") if "ec2:RunInstances" in statement["Action"]
               for key, value in statement.get("Condition", {}).get("StringEquals", {}).items()}  # fmt: skip
    config, node = load("aws"), load("aws")["available_node_types"]["gpu"]["node_config"]
    assert granted["ec2:InstanceType"] == node["InstanceType"]
    assert granted["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]
    [parameter] = [one for statement in statements("head") if "ssm:GetParameters" in statement["Action"]
                   for one in statement["Resource"]]  # fmt: skip
    assert parameter.endswith(f":parameter{node['ImageId'].removeprefix('resolve:ssm:')}")
    assert f":{config['provider']['region']}:" in parameter


def test_only_mlflows_server_may_write_what_runs_where_models_are_loaded():
    buckets = {role: {one.removeprefix("arn:aws:s3:::").split("/")[0] for statement in statements(role)
                      for one in statement["Resource"] if ":s3:" in one}
               for role in ("head", "node", "mlflow")}  # fmt: skip
    assert buckets == {"head": {"BUCKET"}, "node": {"BUCKET"}, "mlflow": {"ARTIFACTS"}}
    assert "s3://ARTIFACTS/" in (CLUSTER / "mlflow/kubernetes.yaml").read_text()


@mock_aws
def test_ray_takes_the_security_group_made_beforehand_and_adds_nothing_to_it(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    config = copy.deepcopy(load("aws"))
    ec2 = boto3.resource("ec2", region_name="us-west-2")
    subnet = next(iter(ec2.subnets.all()))
    group = ec2.create_security_group(GroupName="wsol", Description="wsol", VpcId=subnet.vpc_id)
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "198.51.100.7/32"}]}
    group.authorize_ingress(IpPermissions=[rule])
    for kind in config["available_node_types"].values():
        kind["node_config"]["SubnetIds"] = [subnet.id]
    config = _configure_security_group(config)
    assert {tuple(kind["node_config"]["SecurityGroupIds"]) for kind in config["available_node_types"].values()} == {
        (group.id,)
    }
    group.reload()
    assert [(rule["FromPort"], rule["IpRanges"][0]["CidrIp"]) for rule in group.ip_permissions] == [
        (22, "198.51.100.7/32")
    ]
