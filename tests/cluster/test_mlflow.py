"""The files for MLflow and PostgreSQL: nobody gets in without a password, and no password stands in a file."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.cluster.manifests import CLUSTER, check, dangers, load_all, pods

FOLDER = CLUSTER / "mlflow"
PASSWORDS = re.compile("PASSWORD$|_KEY$|SECRET_KEY|ACCESS_KEY|TOKEN$")


def compose_dangers(compose: dict[str, Any]) -> set[str]:
    """What is unsafe in the compose file."""
    found = set()
    for name, service in compose["services"].items():
        if not all(port.startswith("127.0.0.1:") for port in service.get("ports", [])):
            found.add("ports")
        if [key for key in service["environment"] if PASSWORDS.search(key)]:
            found.add("secret")
        if "healthcheck" not in service:
            found.add("health")
        if not re.search(r":\d+\.\d+", service["image"]):
            found.add("image")
        if "no-new-privileges:true" not in service.get("security_opt", []):
            found.add("privileges")
        if not set(service["secrets"]) <= compose["secrets"].keys():
            found.add(f"{name}'s secrets")
    if "*" in compose["services"]["mlflow"]["environment"]["ALLOWED_HOSTS"]:
        found.add("hosts")
    return found


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def test_the_compose_file_is_safe(compose):
    assert compose_dangers(compose) == set()
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())


@pytest.mark.parametrize(
    ("danger", "before", "after"),
    [
        ("ports", '"127.0.0.1:5000:5000"', '"5000:5000"'),
        ("ports", '"127.0.0.1:5432:5432"', '"0.0.0.0:5432:5432"'),
        ("secret", "PGHOST: postgres", "PGPASSWORD: easy"),
        ("health", "    healthcheck:\n      test: [CMD, pg", "    healthy:\n      test: [CMD, pg"),
        ("image", "postgres:17.6-bookworm", "postgres:latest"),
        ("privileges", "[no-new-privileges:true]", "[]"),
        ("mlflow's secrets", "mlflow-session-key, aws", "another-key, aws"),
        ("hosts", "localhost:5000,127.0.0.1:5000", "'*'"),
    ],
)
def test_what_would_be_unsafe_is_seen(danger, before, after):
    text = (FOLDER / "compose.yaml").read_text()
    assert before in text
    assert danger in compose_dangers(yaml.safe_load(text.replace(before, after, 1)))


def test_the_server_has_users_checks_hosts_and_takes_passwords_from_files_alone():
    script, config = (FOLDER / "serve.sh").read_text(), (FOLDER / "auth.ini").read_text()
    assert "--app-name basic-auth" in script
    assert '--allowed-hosts "$ALLOWED_HOSTS"' in script
    assert "--artifacts-destination" in script  # through the server: clients need no rights in the bucket
    assert "--disable-security-middleware" not in script
    assert "--default-artifact-root" not in script
    assert "password" not in config
    assert "@" not in config
    used = set(re.findall(r"\$\(secret ([\w-]+)\)", script)) | set(
        re.findall(r"SECRETS/([\w-]+)", (FOLDER / "init.sql").read_text())
    )
    assert used == {"mlflow-db-password", "mlflow-admin-password", "mlflow-session-key", "studies-db-password"}


def test_the_server_does_not_start_without_its_secrets(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "SECRETS": str(tmp_path), "ARTIFACTS": "x", "ALLOWED_HOSTS": "x"}
    (tmp_path / "mlflow-db-password").touch()
    ended = subprocess.run([FOLDER / "serve.sh"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "mlflow-db-password, which is missing or empty" in ended.stderr


def test_the_pods_are_known_to_kubernetes_and_may_no_more_than_they_need(compose):
    documents = load_all("mlflow/kubernetes.yaml")
    found = list(pods(documents))
    assert len(found) == 2
    for pod in found:
        check(pod, "PodSpec")
        assert dangers(pod) == set()
        for container in pod["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= container.keys()
    for document in documents:
        if document["kind"] == "Service":
            assert document["spec"].get("type", "ClusterIP") == "ClusterIP"
    (policy,) = (document for document in documents if document["kind"] == "NetworkPolicy")
    assert {value for rule in policy["spec"]["podSelector"]["matchExpressions"] for value in rule["values"]} == {
        pod["containers"][0]["name"] for pod in found
    }
    images = {pod["containers"][0]["image"].removeprefix("REGISTRY/") for pod in found}
    assert images == {service["image"] for service in compose["services"].values()}
