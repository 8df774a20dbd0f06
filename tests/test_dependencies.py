"""Versions are told once: pyproject.toml says what is allowed, constraints.txt what was tested, and all else agrees."""

import re
import tomllib
from importlib import metadata
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


LOCK = (ROOT / "lock.txt").read_text()
LOCKED = dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", LOCK, re.MULTILINE))


def test_the_lock_has_every_pin_that_make_installs_with_its_digests_and_says_no_place():
    assert {name: LOCKED[name] for name in LOCKED.keys() & PINNED.keys()} == {
        name: version for name, version in PINNED.items() if name in LOCKED
    }
    installed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + ["uv"]
    wanted = {canonicalize_name(Requirement(line).name) for line in installed} - {PROJECT["name"]}
    assert wanted <= LOCKED.keys()
    for entry in re.split(r"\n(?=\S)", LOCK.strip())[1:]:
        assert re.fullmatch(r"[^\n]*==[^\n]*( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry[:80]
    assert "//" not in LOCK


def test_all_that_is_installed_beside_the_project_is_in_the_lock():
    """What make installs: nothing comes along that has no digest."""
    missing = {
        name for line in PROJECT["dependencies"] for name in _needs(Requirement(line).name, set())
    } - LOCKED.keys()
    assert missing <= {PROJECT["name"]}


def _needs(name: str, seen: set[str]) -> set[str]:
    """An installed package and all that it needs here, without its extras."""
    name = canonicalize_name(name)
    if name not in seen:
        seen.add(name)
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                _needs(needed.name, seen)
    return seen


def test_make_installs_nothing_without_a_digest():
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("$(READY): ")[2].partition("\ntouch")[0].partition("\ndemo:")[0]
    installs = [line for line in recipe.splitlines() if "install" in line]
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    assert "http" not in makefile.partition("audit: ")[2].partition("\nbench:")[0]


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
