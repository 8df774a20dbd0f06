"""What takes space, what is freed, and that nothing else is."""

import json

import optuna
import pytest

from wsol_pipeline.errors import ResourceError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.identity import home
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.study.space import delete, free, require_known, survey, ties
from wsol_pipeline.training.checkpoint import CheckpointStore


@pytest.fixture
def store(tmp_path):
    """A study `s` of three trials (complete, failed, running) beside embedded data and another study."""
    store = Store.at(tmp_path)
    folder = store / "s"
    home(folder)
    study = optuna.create_study(study_name="s", storage=open_storage(folder, None))
    for state in ("COMPLETE", "FAIL", ""):
        number = study.ask().number
        if state:
            value = 1.0 if state == "COMPLETE" else None
            study.tell(number, value, state=optuna.trial.TrialState[state])
        folder.write(f"trials/{number:04d}/attempt-0001/e0001-s00000000/state.pt", bytes(1000))
        folder.write(f"trials/{number:04d}/attempt-0001/e0001-s00000000/records.json", b"[]")
    folder.write("trials/0000/attempt-0001/final/model.safetensors", bytes(300))
    folder.write("ray/tune-0001/x", bytes(50))
    store.write("data/synthetic/train/00000.parquet", bytes(70))
    home(store / "another")
    return store


def test_bytes_are_counted_by_what_they_are(store):
    space = survey(store)
    found = space.studies["s"]
    assert {kind: found[kind] for kind in ("states", "of running trials", "models", "ray")} == {
        "states": 2000,
        "of running trials": 1000,
        "models": 300,
        "ray": 50,
    }
    assert space.studies.keys() == {"s", "another"}
    assert space.others == {"data": 70}
    assert found.total() == sum(size for name, size in store.sizes().items() if name.startswith("s/"))


def test_only_what_nothing_needs_is_freed(store):
    before = set(store.list())
    free(store, "s", "states")
    free(store, "s", "ray")
    gone = {f"s/trials/{number:04d}/attempt-0001/e0001-s00000000/state.pt" for number in (0, 1)} | {"s/ray/tune-0001/x"}
    lease = {name for name in store.list() if name.startswith("s/lease/")}
    assert set(store.list()) - lease == before - gone


def test_a_study_that_is_driven_is_left_alone(store):
    before = set(store.list("s/trials"))
    with acquire(store / "s/lease"):
        for act in (lambda: free(store, "s", "states"), lambda: delete(store, "s", ties(store, "s"))):
            with pytest.raises(ResourceError, match="is driving this study"):
                act()
    assert set(store.list("s/trials")) == before


def test_a_study_is_deleted_and_nothing_else(store, tmp_path):
    delete(store, "s", ties(store, "s"))
    assert (store.list("s"), (tmp_path / "s").exists()) == ([], False)
    assert store.list() == ["another/study.json", "data/synthetic/train/00000.parquet"]


def test_a_study_of_a_shared_database_leaves_it(store, tmp_path):
    url = f"sqlite:///{tmp_path}/team.db"
    for name in ("s", "another"):
        optuna.create_study(study_name=name, storage=url)
    delete(store, "s", ties(store, "s", url), url)
    assert optuna.study.get_all_study_names(url) == ["another"]


def test_an_unknown_study_is_refused_with_the_known_ones(store, tmp_path):
    with pytest.raises(UsageError, match="another, s"):
        require_known(survey(store), ("x",))
    with pytest.raises(UsageError, match="'x': there is no study in this --storage"):
        require_known(survey(Store.at(tmp_path / "mistyped")), ("x",))


def test_looking_for_what_a_study_has_makes_no_database(store, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = store.list()
    found = ties(store, "s", f"sqlite:///{tmp_path}/typo.db")
    assert (found.trials, len(found.missing), store.list()) == (0, 2, before)


def test_a_bucket_is_counted_and_emptied_likewise(s3_bucket):
    store = Store(f"{s3_bucket}/space")
    store.write("s/study.json", json.dumps({"id": "1", "places": []}).encode())
    store.write("s/ray/x", bytes(50))
    store.write("t/ray/x", bytes(50))
    assert store.sizes() == {"s/study.json": 25, "s/ray/x": 50, "t/ray/x": 50}
    store.remove_all("s")
    store.remove_all("s")
    assert store.list() == ["t/ray/x"]


def test_an_ended_trial_keeps_its_curve_and_loses_its_states(tmp_path):
    checkpoints = CheckpointStore(Store.at(tmp_path), 2)
    for attempt, epoch in ((1, 1), (2, 2)):
        folder = checkpoints.trial / f"attempt-{attempt:04d}/e{epoch:04d}-s00000000"
        folder.write("records.json", b"[]")
        folder.write("state.pt", b"x")
    checkpoints.own.write("final/model.safetensors", b"x")
    checkpoints.drop_states()
    assert checkpoints.trial.list() == [
        "attempt-0001/e0001-s00000000/records.json",
        "attempt-0002/e0002-s00000000/records.json",
        "attempt-0002/final/model.safetensors",
    ]
