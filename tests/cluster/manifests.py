"""Reading Kubernetes manifests in tests: against the schema, and for what every pod here must be."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
SCHEMA = Path(__file__).with_name("assets") / "kuberay-1.6.2.yaml"


def load_all(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / path).read_text()))


@cache
def definitions() -> dict[str, Any]:
    return yaml.safe_load(SCHEMA.read_text())["$defs"]


def check(value: Any, kind: str) -> None:
    """Raise `jsonschema.ValidationError` if `value` is no `kind` of the schema."""
    jsonschema.validate(value, {"$ref": f"#/$defs/{kind}", "$defs": definitions()})


def pods(tree: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in `tree`."""
    if isinstance(tree, dict):
        if "containers" in tree:
            yield tree
        for value in tree.values():
            yield from pods(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from pods(value)


def dangers(pod: dict[str, Any]) -> set[str]:
    """What is unsafe in a pod's spec."""
    found, own = set(), pod.get("securityContext", {})
    if not own.get("runAsNonRoot") or not own.get("runAsUser") or "seccompProfile" not in own:
        found.add("user")
    if {"hostNetwork", "hostPID", "hostIPC"} & pod.keys() or any("hostPath" in v for v in pod.get("volumes", [])):
        found.add("host")
    if not pod.get("serviceAccountName") and pod.get("automountServiceAccountToken") is not False:
        found.add("account")
    mounted = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        rules, limits = container.get("securityContext", {}), container.get("resources", {}).get("limits", {})
        if rules.get("allowPrivilegeEscalation") is not False or rules.get("capabilities") != {"drop": ["ALL"]}:
            found.add("privileges")
        if rules.get("readOnlyRootFilesystem") is not True:
            found.add("root file system")
        if not {"cpu", "memory"} <= limits.keys():
            found.add("limits")
        if not re.search(r":[\w.-]*\d", container["image"].rsplit("/", 1)[-1]):
            found.add("image")
        if {mount["name"] for mount in container.get("volumeMounts", [])} - mounted.keys():
            found.add("volumes")
        for variable in container.get("env", []):
            if re.search("(PASSWORD|SECRET|TOKEN|_KEY)$", variable["name"]) and "value" in variable:
                found.add("secret")
    return found
