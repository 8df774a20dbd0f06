"""Versions are told once: pyproject.toml says what is allowed, constraints.txt what was tested, and all else agrees."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
ALL = [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS for line in extra)]]
DIRECT = [one for one in ALL if one.name != PROJECT["name"]]  # an extra may bring another
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
PINNED = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in PINS}
TEXTS = [path for glob in ("Makefile", "*.md", "docs/*.md", "cluster/**/*.*", ".ci/*") for path in ROOT.glob(glob)]


def test_every_pin_is_exact_and_once():
    assert all([one.operator for one in pin.specifier] == ["=="] for pin in PINS)
    assert len(PINNED) == len(PINS)


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_is_pinned_within_its_bounds(requirement):
    name = canonicalize_name(requirement.name)
    assert name in PINNED, f"{name} has no pin in constraints.txt"
    assert requirement.specifier.contains(PINNED[name])


@pytest.mark.parametrize("path", [path for path in TEXTS if path.is_file()], ids=lambda path: path.name)
def test_every_version_that_a_file_names_is_the_pinned_one(path):
    text = path.read_text()
    told = re.findall(r"\b([a-z][\w.-]*)==(\d[\w.]*)", text)
    told += [
        ("ray", version)
        for version in re.findall(r"(?:rayproject/ray[\w-]*:|rayVersion: *[\"']?)(\d+\.\d+\.\d+)", text)
    ]
    assert not [(name, version) for name, version in told if PINNED.get(canonicalize_name(name), version) != version]
