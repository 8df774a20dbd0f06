"""Weights on their way into stages and out of them, always under the network's own names."""

import logging
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsol_models._backbones.stages import Backbone, Entry

ADDED = "added."  # before the names of layers that a layout added, in a state dict of the network
# Where a training's checkpoint has the network, and what DataParallel, torch.compile and trainers put before names.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_log = logging.getLogger(__name__)


def network_state(method: nn.Module, added: bool = False) -> dict[str, Tensor]:
    """The backbone's tensors of a method under the network's own names: `weights` for another method or layout.

    Layers that the layout added are not of the network and stay behind, unless `added`: then they come as
    "added." and their names here, for which the network may have tensors of another shape; `weights` for this layout.
    """
    return {
        part.origin.get(name, f"{ADDED}{name}"): tensor
        for part in parts(method).values()
        for name, tensor in part.state_dict().items()
        if added or not part.is_new(name)
    }


def backbone_names(method: nn.Module) -> dict[str, str]:
    """Name of a tensor in a method's `state_dict()` -> its name in the network, as checkpoints of others have it.

        names = backbone_names(method)
        state = torch.load("resnet50.pth", weights_only=True)
        method.load_state_dict({mine: state[theirs] for mine, theirs in names.items()}, strict=False)

    For torchvision's networks these are torchvision's names. Layers that the layout or the method adds have none.
    """
    return {
        f"{prefix}.{name}": part.origin[name]
        for prefix, part in parts(method).items()
        for name in part.state_dict()
        if not part.is_new(name)
    }


def parts(method: nn.Module) -> dict[str, Backbone]:
    """The parts of a method's backbone by their names in it."""
    return {name: module for name, module in method.named_modules() if isinstance(module, Backbone)}


def read_weights(weights: str, entry: Entry, own: Collection[str]) -> dict[str, Tensor]:
    """The state dict that `weights` means: "imagenet", or a file of a network whose names are `own`."""
    if weights == "imagenet":
        assert entry.imagenet is not None
        state = dict(entry.imagenet.get_state_dict(progress=False, check_hash=True, weights_only=True))
    else:
        state = read_file(weights, own)
    return {entry.rename(key): tensor for key, tensor in state.items()}


def read_file(path: str, own: Collection[str] = ()) -> dict[str, Tensor]:
    """The state dict in a file; of a training's checkpoint that of its network, which is said."""
    if Path(path).suffix not in (".pth", ".safetensors") or not Path(path).is_file():
        raise ValueError(f"Weights must be 'imagenet' or an existing .pth or .safetensors file but are {path!r}.")
    try:
        if path.endswith(".safetensors"):
            return _unwrapped(load_file(path), path, own)
        return _unwrapped(dict(torch.load(path, map_location="cpu", weights_only=True)), path, own)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")  # an empty file's error has no words
        raise ValueError(f"{path} is not a state dict of tensors: {reason}") from error


def _unwrapped(state: dict[str, Any], path: str, own: Collection[str]) -> dict[str, Tensor]:
    """The network's tensors without what a training has put around them; what was looked through is logged."""
    inside, wraps = [], [p for p in PREFIXES if not any(name.startswith(p) for name in own)]
    while (key := next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)) is not None:
        inside.append(repr(key))
        state = dict(state[key])
    while state and (prefix := next((p for p in wraps if all(str(key).startswith(p) for key in state)), "")):
        inside.append(f"names after {prefix!r}")
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    if inside:
        _log.warning("Weights %s: %d tensors, read from %s.", path, len(state), ", ".join(inside))
    return state


def body_of(state: Mapping[str, Tensor], entry: Entry) -> dict[str, Tensor]:
    """The state without the classifier's whole branch, where methods put their own head, and what no stage has."""
    top = f"{entry.head.split('.')[0]}."
    return {key: tensor for key, tensor in state.items() if not key.startswith((top, *entry.unused))}


def head_of(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor] | None:
    """Weight (K×C) and bias (K) of the linear classifier `name`, if the state has one."""
    if f"{name}.weight" not in state or f"{name}.bias" not in state:
        return None
    return state[f"{name}.weight"], state[f"{name}.bias"]


def load_weights(
    modules: Mapping[str, nn.Module],
    origin: Mapping[str, str],
    state: Mapping[str, Tensor],
    known: Collection[str],
    source: str,
    network: str,
) -> bool:
    """Load `state`, which has the network's names, into the stages. Returns whether it had layers that a layout adds.

    known: all names that the state may have; stages need not use every one. source, network: for errors.
    Those of this layout come too if the state has any (`network_state`).
    Raises `ValueError` if a stage's tensors are missing or of another shape, or names are unknown.
    """
    added = {name: f"{ADDED}{name}" for name in nn.ModuleDict(dict(modules)).state_dict() if name not in origin}
    brought_added = not state.keys().isdisjoint(added.values())
    if brought_added:
        origin = {**origin, **added}
    missing = [key for key in origin.values() if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in (*known, *added.values())]
    if missing or unexpected:
        raise ValueError(
            f"Weights {source} are not of a {network}: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}."
        )
    body = {name: state[key] for name, key in origin.items() if key in state}
    try:
        nn.ModuleDict(dict(modules)).load_state_dict(body, strict=False)
    except RuntimeError as error:
        raise ValueError(f"Weights {source} do not fit {network}: {error}") from error
    return brought_added
