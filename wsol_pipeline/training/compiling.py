"""`--compile`: a method's forward as one graph, whose kernels TorchInductor makes at the first steps of a training."""

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from torch import nn

from wsol_models import LocalizationMethod
from wsol_pipeline.data.shards import cache_root
from wsol_pipeline.errors import UsageError
from wsol_pipeline.private import own_folder

BACKEND = "inductor"
COMPILERS = {"cpu": ("CXX", ("g++",)), "cuda": ("CC", ("gcc", "clang", "cc"))}  # a variable, and what is looked for


def compiled(model: nn.Module, method: LocalizationMethod, device: torch.device) -> nn.Module:
    """`model`, which is the `method` or wraps it, compiled; the method itself stays as it is, for validation and state.

    What a method draws by image names is left out of the graph: it is Python's, and another in each step. Raises
    `UsageError` where nothing can be compiled.
    """
    if BACKEND == "inductor":
        require_compiler(device.type)
        keep_kernels()
    torch.compiler.reset()  # an earlier trial of this process counts towards the most graphs of a function
    method.draw = torch.compiler.disable(method.draw)  # type: ignore[method-assign]
    made = torch.compile(model, backend=BACKEND, dynamic=False)  # batches have two sizes: the last one is short
    assert isinstance(made, nn.Module)
    return made


def keep_kernels() -> None:
    """Have Inductor keep kernels in a folder of this user's: what it finds there it runs.

    By itself it would take one in the folder for temporary files, whose name anybody can know and make first. Raises
    `UsageError` for a TORCHINDUCTOR_CACHE_DIR that others may write to.
    """
    place = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_root(None) / "kernels")
    try:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(own_folder(place.absolute()))
    except OSError as error:
        raise UsageError(f"--compile: kernels cannot be kept there (TORCHINDUCTOR_CACHE_DIR): {error}") from error


def require_traceable(name: str, method: LocalizationMethod) -> None:
    """Raise `UsageError` for a method that breaks its graph in each step."""
    if method.untraceable:
        raise UsageError(f"--compile: {name} cannot be compiled: {method.untraceable}.")


def require_compiler(device: str) -> None:
    """Raise `UsageError` if this machine cannot make kernels for `device`, "cpu" or "cuda"."""
    variable, known = COMPILERS[device]
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise UsageError("--compile: kernels for GPUs need the package triton, which this machine lacks.")
    if not any(map(shutil.which, (os.environ[variable],) if os.environ.get(variable) else known)):
        wanted = os.environ.get(variable) or " or ".join(known)
        raise UsageError(f"--compile: kernels need a C compiler on workers' machines but {wanted} is not on this one.")
