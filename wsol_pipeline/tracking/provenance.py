"""Where a result comes from: code revision and versions of what computed it."""

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

PACKAGES = ("ray", "torch", "torchvision", "optuna", "mlflow", "opencv-python-headless", "numpy")


@cache
def provenance() -> dict[str, str]:
    """Code revision, versions and platform, as flat text for tags and reports."""
    versions = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    return {"code.revision": _revision(), "version.python": platform.python_version(), **versions}


def _revision() -> str:
    """The commit of the checkout this file lies in (with `+changes`), or the installed version."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # a wheel or a submitted working directory has no .git
        try:
            return importlib.metadata.version("wsol")
        except importlib.metadata.PackageNotFoundError:
            return "unknown"
