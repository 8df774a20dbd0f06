"""Checkpoints: sealed, verified, never half there; attempts kept apart."""

import json
import time

import pytest
import torch

from wsol_pipeline.errors import DataError
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import SEAL, CheckpointStore, Position, read_sealed, write_sealed


@pytest.fixture
def trial(tmp_path):
    return Store.at(tmp_path / "trial")


def save(store: CheckpointStore, epoch: int, samples: int = 0, value: float = 1.0) -> None:
    records = [{"epoch": number + 1} for number in range(epoch)]
    store.save(Position(epoch, samples), {"weight": torch.tensor([value])}, records)


def test_the_newest_position_is_loaded_whatever_attempt_wrote_it(trial):
    save(CheckpointStore(trial, 2), epoch=1, value=2.0)
    save(CheckpointStore(trial, 1), epoch=1, samples=64, value=1.0)
    loaded = CheckpointStore(trial, 3).newest()
    assert loaded.position == Position(1, 64)
    assert loaded.state["weight"].item() == 1.0
    assert loaded.records == [{"epoch": 1}]


def test_of_equal_positions_the_later_attempt_counts(trial):
    save(CheckpointStore(trial, 1), epoch=1, value=1.0)
    save(CheckpointStore(trial, 2), epoch=1, value=2.0)
    assert CheckpointStore(trial, 3).newest().state["weight"].item() == 2.0


def test_only_the_last_two_of_an_attempt_are_kept(trial):
    store = CheckpointStore(trial, 1)
    for epoch in range(1, 5):
        save(store, epoch)
    folders = {name.split("/")[1] for name in trial.list()}
    assert folders == {"e0003-s00000000", "e0004-s00000000"}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "unseal"])
def test_a_broken_checkpoint_is_passed_over_and_named(trial, damage, caplog):
    store = CheckpointStore(trial, 1)
    save(store, 1, value=1.0)
    save(store, 2, value=2.0)
    name = "attempt-0001/e0002-s00000000/state.pt"
    data = trial.read(name)
    if damage == "truncate":
        trial.write(name, data[:-1])
    elif damage == "flip":
        trial.write(name, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "remove":
        trial.remove(name)
    else:
        trial.remove(name.replace("state.pt", SEAL))
    loaded = store.newest()
    assert loaded.position == Position(1, 0)
    assert ("state.pt" in caplog.text) == (damage != "unseal")


@pytest.mark.parametrize("folder", ["e0002-s00000000", "final"])
def test_a_curve_that_was_altered_is_not_told(trial, folder):
    """A pruner would decide by it, and MLflow show it: 2 with one bit flipped is 3."""
    store = CheckpointStore(trial, 1)
    save(store, 1)
    save(store, 2)
    store.finish({"model.safetensors": b"weights"}, [{"epoch": 2}])
    if folder != "final":
        trial.remove("attempt-0001/final/seal.json")
    name = f"attempt-0001/{folder}/records.json"
    trial.write(name, trial.read(name).replace(b"2", b"3"))
    assert store.records() == ([{"epoch": 1}] if folder != "final" else [{"epoch": 1}, {"epoch": 2}])


def test_nothing_is_loaded_where_nothing_is(trial):
    assert CheckpointStore(trial, 1).newest() is None
    assert CheckpointStore(trial, 1).records() == []
    assert CheckpointStore(trial, 1).final() is None
    assert CheckpointStore(trial, 1).failure() is None


def test_a_final_record_ends_a_trial_and_carries_its_curve(trial):
    store = CheckpointStore(trial, 1)
    store.finish({"model.safetensors": b"weights"}, [{"epoch": 1, "final": True}])
    assert CheckpointStore(trial, 2).final().uri.endswith("attempt-0001/final")
    assert CheckpointStore(trial, 2).records() == [{"epoch": 1, "final": True}]


def test_an_altered_final_record_does_not_count(trial):
    store = CheckpointStore(trial, 1)
    store.finish({"model.safetensors": b"weights"}, [])
    trial.write("attempt-0001/final/model.safetensors", b"weightz")
    assert store.final() is None


def test_a_failure_is_of_its_attempt(trial):
    CheckpointStore(trial, 1).fail("nan", "the gradient is nan")
    assert CheckpointStore(trial, 1).failed()
    assert not CheckpointStore(trial, 2).failed()
    assert CheckpointStore(trial, 2).failure() == {"kind": "nan", "message": "the gradient is nan"}


def test_a_store_that_loses_bytes_is_noticed(trial, monkeypatch):
    monkeypatch.setattr(Store, "size", lambda self, name: 3)
    with pytest.raises(DataError, match="holds 3 bytes after 7 were written"):
        write_sealed(trial, {"file": b"content"})


def test_a_seal_names_the_altered_file(trial):
    write_sealed(trial, {"a": b"1", "b": b"2"})
    assert read_sealed(trial) == {"a": b"1", "b": b"2"}
    digests = json.loads(trial.read(SEAL))
    digests["b"] = digests["a"]
    trial.write(SEAL, json.dumps(digests).encode())
    with pytest.raises(DataError, match="/b was altered"):
        read_sealed(trial)


def test_a_checkpoint_in_two_parts_is_the_same_and_counts_once_it_is_sealed(trial):
    state, records = {"method": {"weight": torch.arange(6.0)}, "rows": 0}, [{"epoch": 1}]
    whole, parted = CheckpointStore(trial / "whole", 1), CheckpointStore(trial / "parted", 1)
    whole.save(Position(1), state, records)
    with parted.saving(Position(1), state) as seal:
        assert parted.newest() is None
        seal(records)
        assert parted.newest().records == records
    assert parted.trial.list() == whole.trial.list()
    for name in whole.trial.list():
        assert parted.trial.read(name) == whole.trial.read(name)


def test_what_the_writing_thread_meets_is_raised_where_the_checkpoint_is_sealed(trial, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    with CheckpointStore(trial, 1).saving(Position(1), {}) as seal, pytest.raises(OSError, match="No space left"):
        seal([])


def test_whoever_leaves_without_a_seal_waits_for_the_thread(trial, monkeypatch):
    def slow(self, name, data, write=Store.write):
        time.sleep(0.3)
        write(self, name, data)

    monkeypatch.setattr(Store, "write", slow)
    store = CheckpointStore(trial, 1)
    with pytest.raises(KeyError), store.saving(Position(1), {}):
        raise KeyError
    assert trial.list() == ["attempt-0001/e0001-s00000000/state.pt"]
    assert store.newest() is None
