"""The Dockerfiles, read step by step: what they copy exists, what they install is pinned, and nobody is root.

No engine builds them here; the commands of their RUN steps were run by hand (cluster/README.md).
"""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = ("cluster/Dockerfile", "cluster/mlflow/Dockerfile")


def steps(path: str) -> list[tuple[str, str]]:
    """The (instruction, arguments) of a Dockerfile, comments dropped, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / path).read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]  # type: ignore[misc]


@pytest.mark.parametrize("path", DOCKERFILES)
def test_an_image_is_pinned_and_not_root(path):
    found = steps(path)
    assert found[0][0] == "FROM"
    assert re.search(r":3\.11\.\d+-slim-\w+$", found[0][1])  # the Python that the constraints were made with
    for instruction, text in found:
        if instruction == "RUN":
            for install in re.findall(r"pip install[^&]*", text):
                assert re.search(r"-c \S*constraints\.txt", install), install
            assert not re.search(r"curl|git\+|https?://|chmod 777", text)
        assert instruction != "ADD"
        if instruction in ("ENV", "ARG"):
            assert not re.search(r"(PASSWORD|SECRET|TOKEN|_KEY)=", text)
    users = [number for number, (instruction, _) in enumerate(found) if instruction == "USER"]
    assert [found[number][1] for number in users] == ["1000:1000"]
    assert "RUN" not in [instruction for instruction, _ in found[users[0] :]]


@pytest.mark.parametrize("path", DOCKERFILES)
def test_what_is_copied_exists_and_is_let_through(path):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for instruction, text in steps(path):
        if instruction == "COPY":
            for source in text.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


def test_the_image_holds_every_package_and_every_job():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {text.split()[0] for instruction, text in steps("cluster/Dockerfile") if instruction == "COPY"}
    assert packages <= copied
    assert "postgres" in project["project"]["optional-dependencies"]


def test_every_requirement_of_the_image_is_pinned():
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["postgres"]
    names = {re.match(r"[\w-]+", line).group() for line in wanted}  # type: ignore[union-attr]
    assert names <= pins
    assert {"uv", "boto3", "flask-wtf", "psycopg-binary"} <= pins


def test_secrets_made_beside_the_files_reach_neither_git_nor_an_image_nor_an_uploaded_job():
    assert "cluster/mlflow/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "cluster/" in (ROOT / ".rayignore").read_text().splitlines()
    assert not [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!") and "secret" in line
    ]
