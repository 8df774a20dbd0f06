"""Checkpoints: written whole, verified, then visible; the only way of recovery, on one device and many.

A trial keeps its checkpoints under one folder per *attempt* (an attempt is one life of the driver, numbered by its
lease):

    <trial>/attempt-0002/e0003-s00000000/state.pt      model, optimizer, sums of the open epoch, config hash
                                         records.json  every epoch's record so far: the curve travels with the weights
                                         seal.json     SHA-256 of the files above, written last: without it they
                                                       don't count
    <trial>/attempt-0002/failure.json                  why a run ended, if the trial failed
    <trial>/attempt-0002/fault.json                    why a run ended, if what is around it failed
    <trial>/attempt-0002/final/...                     the finished model and its curve, sealed likewise
    <trial>/attempt-0002/last/...              the last epoch's weights, where the finished model is an earlier one's
    <trial>/attempt-0002/rung/val_counts.json          of the last rung, for whoever looks at a pruned trial's readout

An epoch's state is written while the epoch is validated, its records and the seal after that.

A worker writes into its own attempt only, so one that outlived its driver can't harm the attempt that took over; a
reader takes the newest position that verifies, of any attempt, and names what it had to pass over.
"""

import contextlib
import copy
import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from wsol_pipeline.device import to_host
from wsol_pipeline.errors import DataError
from wsol_pipeline.redaction import printable, redact
from wsol_pipeline.storage import Store
from wsol_pipeline.text import first_line

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"attempt-\d{4,}/e\d+-s\d+/seal\.json")
_STATE = re.compile(r"attempt-\d{4,}/e\d+-s\d+/state\.pt")
_FINAL = re.compile(r"attempt-\d{4,}/final/seal\.json")
_FAILURE = re.compile(r"attempt-\d{4,}/failure\.json")
FAULT = "fault.json"
SEAL = "seal.json"
RUNG = "rung"
LAST = "last"
KEEP = 2  # the newest, and the one before it to fall back to


@dataclass(frozen=True, order=True)
class Position:
    """Where training stands: `samples` of 0-based `epoch` are done, by all workers together. Ordered by time."""

    epoch: int = 0
    samples: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `state` as `torch.save` got it, `records` one dict per finished epoch."""

    folder: str
    position: Position
    state: dict[str, Any]
    records: list[dict[str, Any]]


def write_sealed(store: Store, files: Mapping[str, bytes], before: Mapping[str, str] | None = None) -> None:
    """Write `files`, then seal them with their SHA-256; `before`: of what `write_unsealed` has written there."""
    digests = {**(before or {}), **write_unsealed(store, files)}
    store.write(SEAL, json.dumps(digests, indent=1).encode())


def write_unsealed(store: Store, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write `files` and check that each arrived at its full size; their SHA-256. They don't count before a seal."""
    store.remove(SEAL)  # an epoch done again writes over its files: unsealed meanwhile
    for name, data in files.items():
        store.write(name, data)
        if store.size(name) != len(data):  # uploads were seen to fail without an error
            raise DataError(f"{store.path(name)} holds {store.size(name)} bytes after {len(data)} were written.")
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def read_sealed(store: Store, *names: str) -> dict[str, bytes]:
    """The files under a seal, or `names` of them. Raises `DataError` that names the file that is missing or altered."""
    try:
        digests = json.loads(store.read(SEAL))
        files = {name: store.read(name) for name in names or digests}
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{store.uri} is not complete: {error}.") from error
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != digests.get(name):
            raise DataError(f"{store.path(name)} was altered: its SHA-256 is not the sealed one.")
    return files


def seal_of(store: Store) -> str:
    """SHA-256 of the seal over a folder: it tells a finished model from every other."""
    return hashlib.sha256(store.read(SEAL)).hexdigest()


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one trial, seen from one attempt."""

    trial: Store
    attempt: int

    @property
    def own(self) -> Store:
        return self.trial / f"attempt-{self.attempt:04d}"

    def save(self, position: Position, state: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """Write a sealed checkpoint."""
        self.seal(position, self.write_state(position, state), records)

    @contextlib.contextmanager
    def saving(self, position: Position, state: dict[str, Any]) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
        """`save` in two parts: within, a thread writes the state; what this gives waits for it and seals it with the
        records, or raises what the thread met.

        The state's tensors must keep their values until then; those of a GPU are copied to pinned memory meanwhile.
        """
        on_host = _to_host(state)
        with ThreadPoolExecutor(1, "checkpoint") as thread:
            written = thread.submit(lambda: self.write_state(position, on_host()))
            yield lambda records: self.seal(position, written.result(), records)

    def write_state(self, position: Position, state: dict[str, Any]) -> dict[str, str]:
        """Write the heavy part of a checkpoint, which counts once `seal` gets what this returns."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return write_unsealed(self.own / _folder(position), {"state.pt": buffer.getvalue()})

    def seal(self, position: Position, written: Mapping[str, str], records: list[dict[str, Any]]) -> None:
        """Add the records to a written state and seal both, then drop this attempt's checkpoints before the last
        `KEEP`."""
        write_sealed(self.own / _folder(position), {"records.json": json.dumps(records).encode()}, written)
        own = [folder for folder in self._sealed() if _position(folder)[1] == self.attempt]
        for old in own[KEEP:]:
            for name in (SEAL, "state.pt", "records.json"):  # the seal first: half-removed is not sealed
                self.trial.remove(f"{old}/{name}")

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint of any attempt that verifies, or None. Names each that did not."""
        for folder in self._sealed():
            try:
                return self.load(folder)
            except DataError as error:
                logger.warning("passed over a broken checkpoint: %s", error)
        return None

    def load(self, folder: str) -> Checkpoint:
        """The checkpoint in a folder of the trial, on the host: a GPU has no room for it beside the network that takes
        it over. Raises `DataError` unless it verifies."""
        files = read_sealed(self.trial / folder)
        try:
            state = torch.load(io.BytesIO(files["state.pt"]), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.trial.path(folder)}/state.pt holds more than tensors: {first_line(error)}"
            ) from error
        return Checkpoint(folder, _position(folder)[0], state, json.loads(files["records.json"]))

    def position(self) -> Position | None:
        """Where the newest checkpoint stands, unread; None without one."""
        return next((_position(folder)[0] for folder in self._sealed()), None)

    def records(self) -> list[dict[str, Any]]:
        """The records of the newest checkpoint, or of the final record: the trial's curve so far; maybe empty."""
        for folder in [*self._finals(), *self._sealed()]:
            try:
                return json.loads(read_sealed(self.trial / folder, "records.json")["records.json"])
            except DataError:
                continue  # removed by its worker between listing and reading, or broken: the next one serves
        return []

    def drop_states(self) -> None:
        """Remove weights and optimizer of every checkpoint: of a trial that has ended, curve and model stay."""
        for name in self.trial.list():
            if _STATE.fullmatch(name):
                self.trial.remove(name)

    def finish(self, files: dict[str, bytes], records: list[dict[str, Any]]) -> None:
        """Write the finished model's files and the whole curve, sealed: what makes a trial COMPLETE."""
        write_sealed(self.own / "final", files | {"records.json": json.dumps(records).encode()})

    def final(self) -> Store | None:
        """The folder of the finished model, of whichever attempt wrote one that verifies, or None."""
        for folder in self._finals():
            try:
                read_sealed(self.trial / folder)
            except DataError as error:
                logger.warning("passed over a broken final record: %s", error)
                continue
            return self.trial / folder
        return None

    def keep_rung(self, name: str, data: bytes) -> None:
        """Keep a file of the last rung, in place of an earlier one's. Nothing is decided by it: it bears no seal."""
        self.own.write(f"{RUNG}/{name}", data)

    def fail(self, kind: str, message: str) -> None:
        """Say why this attempt's run ended, for the driver and whoever reads the study later."""
        self.own.write("failure.json", _reason(kind, message))

    def failure(self) -> dict[str, str] | None:
        """`{"kind", "message"}` of the newest attempt that said so, or None."""
        names = [name for name in self.trial.list() if _FAILURE.fullmatch(name)]
        return json.loads(self.trial.read(names[-1])) if names else None

    def note_fault(self, kind: str, message: str) -> None:
        """Say what keeps this attempt's run from going on, though the trial can't help it."""
        self.own.write(FAULT, _reason(kind, message))

    def take_fault(self) -> dict[str, str] | None:
        """`{"kind", "message"}` of what kept this attempt's run from going on, or None. Forgotten once it is told."""
        if not self.own.exists(FAULT):
            return None
        fault = json.loads(self.own.read(FAULT))
        self.own.remove(FAULT)
        return fault

    def failed(self) -> bool:
        """Whether this attempt's run has said why it ended."""
        return self.own.exists("failure.json") or self.own.exists(FAULT)

    def _finals(self) -> list[str]:
        return [name.removesuffix(f"/{SEAL}") for name in reversed(self.trial.list()) if _FINAL.fullmatch(name)]

    def _sealed(self) -> list[str]:
        """Folders of all sealed checkpoints, newest position first, later attempts first among equals."""
        seals = [name for name in self.trial.list() if _CHECKPOINT.fullmatch(name)]
        return sorted((name.removesuffix(f"/{SEAL}") for name in seals), key=_position, reverse=True)


def _to_host(state: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Begin to copy a state's tensors to the host; calling what this gives waits, and returns it with the copies."""
    tensors = list(_tensors(state))
    if not any(tensor.is_cuda for tensor in tensors):
        return lambda: state
    arrived = to_host(tensors)
    return lambda: _with(state, iter(arrived()))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in dicts in dicts, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for below in value.values():
            yield from _tensors(below)


def _with(value: Any, copies: Iterator[torch.Tensor]) -> Any:
    """`value` with `copies` in place of its `_tensors`."""
    if isinstance(value, torch.Tensor):
        return next(copies)
    if not isinstance(value, dict):
        return value
    changed = copy.copy(value)  # what a state dict says of its modules' versions too
    changed.update({key: _with(below, copies) for key, below in value.items()})
    return changed


def _reason(kind: str, message: str) -> bytes:
    return json.dumps({"kind": kind, "message": printable(redact(message))[:2000]}).encode()


def _folder(position: Position) -> str:
    return f"e{position.epoch:04d}-s{position.samples:08d}"


def _position(folder: str) -> tuple[Position, int]:
    """The position that a checkpoint's folder names, and its attempt."""
    attempt, epoch, samples = map(int, re.findall(r"\d+", folder)[-3:])
    return Position(epoch, samples), attempt
