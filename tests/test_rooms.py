"""The direction of imports (docs/design.md): a room knows the rooms before it, never those after.

Every import counts, those inside functions and under `TYPE_CHECKING` too.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# files that any room may know
LEAVES = (
    "errors", "redaction", "interrupts", "protocol", "storage", "images", "device", "text", "private", "selectors",
    "compiled",
)  # fmt: skip
ROOMS = (  # in their order
    *("data", "evaluation", "training", "tracking", "study", "verdict", "use", "segmentation", "report", "console"),
)
PACKAGES = ("wsol_models", "search_spaces", "wsol_pipeline", "rayjobs", "wsol")
APART = {"data", "evaluation"}  # know nothing of methods, presets or each other
FOREIGN = {
    "wsol_models": {"torch", "torchvision", "timm", "safetensors"},
    "wsol_pipeline/evaluation": {"numpy", "cv2", "numba", "torch", "torchmetrics"},
}
HEAVY = {"torch", "ray", "mlflow"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(place: str) -> list[Path]:
    found = sorted((ROOT / place).rglob("*.py"))
    assert found
    return found


def known_to(room: str) -> tuple[str, ...]:
    """What a room of wsol_pipeline may import of ours, beside leaves."""
    if room in APART:
        return (f"wsol_pipeline.{room}",)
    return ("wsol_models", "search_spaces", *(f"wsol_pipeline.{name}" for name in ROOMS[: ROOMS.index(room) + 1]))


def strangers(path: Path, known: tuple[str, ...]) -> list[str]:
    """Imports of ours in a file that are no leaf, not in `known` and not below one of them."""
    places = (*known, *(f"wsol_pipeline.{leaf}" for leaf in LEAVES))
    ours = {name for name in imports(path) if name.split(".")[0] in PACKAGES} - {"wsol_pipeline"}  # where it lies
    return sorted(name for name in ours if not any(name == place or name.startswith(f"{place}.") for place in places))


def test_every_room_has_its_place():
    assert {path.name for path in (ROOT / "wsol_pipeline").iterdir() if (path / "__init__.py").exists()} == {*ROOMS}
    assert {path.stem for path in (ROOT / "wsol_pipeline").glob("[!_]*.py")} == {*LEAVES}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_before_it(room):
    found = {str(path): names for path in files(f"wsol_pipeline/{room}") if (names := strangers(path, known_to(room)))}
    assert found == {}


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_knows_leaves_alone(leaf):
    assert strangers(ROOT / f"wsol_pipeline/{leaf}.py", ()) == []


@pytest.mark.parametrize("package", ["wsol_models", "search_spaces"])
def test_methods_and_presets_know_only_themselves(package):
    assert {str(path): names for path in files(package) if (names := strangers(path, (package,)))} == {}


def test_no_file_imports_itself_in_a_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files("wsol_pipeline")}
    known = {name: {one for used in imports(path) for one in modules if used == one or used.startswith(f"{one}.")}
             for name, path in modules.items()}  # fmt: skip
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above, name])
        if name not in done:
            for other in known[name] - {name}:
                visit(other, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())


@pytest.mark.parametrize("room", FOREIGN)
def test_a_room_uses_only_its_libraries(room):
    for path in files(room):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in FOREIGN[room] | set(PACKAGES) | sys.stdlib_module_names, f"{path}: {name}"


def test_only_the_console_prints():
    printing = []
    for path in (path for room in ROOMS[:-1] for path in files(f"wsol_pipeline/{room}")):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        printing += [str(path) for call in calls if isinstance(call, ast.Name) and call.id in ("print", "Console")]
    assert printing == []


JOBS = sorted(path.stem for path in (ROOT / "rayjobs").glob("[!_]*.py"))
OPTIONS = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("wsol_*/**/*options.py"))


@pytest.mark.parametrize("module", [*OPTIONS, *(f"rayjobs.{job}" for job in JOBS), "rayjobs.__main__"])
def test_options_load_nothing_heavy(module):
    told = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
