"""The direction of imports (docs/design.md): a room knows the rooms before it, never those after."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("wsol_models", "wsol_pipeline", "search_spaces", "rayjobs")
COMMON = (
    "wsol_pipeline.errors", "wsol_pipeline.redaction", "wsol_pipeline.protocol", "wsol_pipeline.storage",
    "wsol_pipeline.images",
)  # fmt: skip
MAY_KNOW = {
    "wsol_models": (),
    "search_spaces": (),
    "wsol_pipeline/data": COMMON,
    "wsol_pipeline/evaluation": COMMON,
    "wsol_pipeline/training": (
        *COMMON, "wsol_models", "search_spaces", "wsol_pipeline.data", "wsol_pipeline.evaluation", "wsol_pipeline",
    ),
    "wsol_pipeline/report": (*COMMON, "wsol_pipeline.evaluation", "wsol_pipeline.training"),
    "rayjobs": OURS,
}  # fmt: skip
FOREIGN = {
    "wsol_models": {"torch", "torchvision", "timm", "safetensors"},
    "wsol_pipeline/evaluation": {"numpy", "cv2", "numba", "torch", "torchmetrics"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("room", MAY_KNOW)
def test_a_room_imports_only_the_rooms_before_it(room):
    own = room.replace("/", ".")
    allowed = (own, *MAY_KNOW[room])
    for path in files(room):
        for name in imports(path):
            if name.split(".")[0] in OURS:
                assert any(name == known or name.startswith(f"{known}.") for known in allowed), f"{path}: {name}"


@pytest.mark.parametrize("room", FOREIGN)
def test_a_room_uses_only_its_libraries(room):
    import sys

    for path in files(room):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in FOREIGN[room] | set(OURS) | sys.stdlib_module_names, f"{path}: {name}"
