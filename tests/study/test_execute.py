"""The end of a study whose driver was replaced while it wrote it down."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from wsol_pipeline.errors import LeaseLostError, MismatchError, PartialError, ResourceError, WsolError
from wsol_pipeline.evaluation.measures import TRUE_BOXES
from wsol_pipeline.storage import Store
from wsol_pipeline.study import execute, outcome
from wsol_pipeline.study.choosers import Choosers
from wsol_pipeline.study.identity import Home
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.ledger import FAILURE
from wsol_pipeline.study.standings import Standing
from wsol_pipeline.study.streak import ABSTAINED
from wsol_pipeline.training.checkpoint import CheckpointStore, seal_of
from wsol_pipeline.training.config import Job, TrainConfig, as_kept

JOB = Job(TrainConfig(), "data", "trial", 1, "1" * 32, "fingerprint")


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A study of one finished trial: what `_finish` needs of its plan, ledger and lease."""
    folder, rankings = Store.at(tmp_path / "s"), []
    model = {"study": JOB.study, "dataset": JOB.fingerprint, "train": as_kept(JOB.train)}
    CheckpointStore(folder / "trials/0000", 1).finish({"model.json": json.dumps(model).encode()}, [])

    def ranking():
        rankings.append(1)
        return [Standing((0,), (50.0,))]

    ledger = SimpleNamespace(
        balance=lambda: {"running": 0, "complete": 1}, trials=list, proposals=list, ranking=ranking,
        get=lambda number: SimpleNamespace(user_attrs={}), parameters=lambda number: {}, fence=lambda: None,
        device_seconds=lambda: 3600.0, home=Home(JOB.study, folder.uri),
    )  # fmt: skip
    plan = SimpleNamespace(
        folder=folder, config=TrainConfig(), rule=None, dataset=SimpleNamespace(uri="data", manifest=None),
        job=lambda *_: JOB, options=SimpleNamespace(name="s", store=Store.at(tmp_path), cache_dir=None),
        choosers=Choosers(TRUE_BOXES, notes=("pseudo: boxes of 9 of 10 ...",)),
    )  # fmt: skip
    monkeypatch.setattr(execute, "doubts", lambda *_, **__: None)
    monkeypatch.setattr(execute, "beside_box", lambda *_: "Validation, where it was chosen: ...")
    monkeypatch.setattr(outcome, "is_paper_data", lambda manifest, name: False)
    lease = Lease(folder / "lease", 1)
    ledger.confirm_driver = lease.confirm
    return SimpleNamespace(plan=plan, ledger=ledger, lease=lease, folder=folder, rankings=rankings)


def finish(study, point=lambda name: None):
    return execute._finish(study.plan, study.ledger, study.lease, point, "")


def test_the_winner_is_named_by_study_and_seal_and_ranked_once(finished):
    found = finish(finished)
    record = json.loads(finished.folder.read("winner.json"))
    assert (record["study"], record["seal"]) == (JOB.study, seal_of(found.best))
    assert record["standing"] == found.standing == "Validation, where it was chosen: ..."
    assert finished.rankings == [1]
    assert found.notes == ("pseudo: boxes of 9 of 10 ...",)  # of files of boxes: who calls a study has no other


@pytest.mark.parametrize(
    ("ended", "kept", "told"),
    [
        (10, 10, ""),
        (10, 4, "The model is of epoch 4, the best that was searched."),
        (7, 7, "Training ended after 7 of 10 epochs: none had been better for long."),
        (7, 4, "Training ended after 7 of 10 epochs: none had been better for long. The model is of epoch 4, the best"),
    ],
)
def test_the_epoch_that_was_kept_and_an_early_end_are_told(ended, kept, told):
    found = outcome.epochs_told([{"epoch": ended, "kept_epoch": kept}], 10)
    assert found.startswith(told)
    assert bool(found) == bool(told)


def test_a_study_whose_trials_all_abstained_ends_partly_and_says_why(finished):
    """Their kind is no failure: exit code 5."""
    told = {"kind": ABSTAINED, "message": "the evidence gain is 0.031, under 0.1"}
    finished.ledger.trials = lambda: [SimpleNamespace(number=3, user_attrs={FAILURE: told})]
    finished.ledger.ranking = list
    with pytest.raises(
        PartialError, match="No trial of 's' is complete .trial 3: abstained: the evidence gain is 0.031"
    ):
        finish(finished)
    finished.ledger.trials = lambda: [SimpleNamespace(number=3, user_attrs={FAILURE: {**told, "kind": "data"}})]
    with pytest.raises(WsolError) as other:
        finish(finished)
    assert other.value.exit_code == 1


def test_a_driver_that_was_frozen_before_it_named_the_winner_names_none(finished):
    def frozen(name):
        finished.folder.write("winner.json", b"the heir's")
        finished.folder.write("lease/000002.json", b"{}")

    with pytest.raises(LeaseLostError, match="another driver took over"):
        finish(finished, frozen)
    assert finished.folder.read("winner.json") == b"the heir's"


def test_a_winner_whose_model_is_of_another_setting_is_not_named(finished):
    other = dataclasses.replace(JOB, train=TrainConfig(seed=7))
    finished.plan.job = lambda *_: other
    with pytest.raises(MismatchError, match="train.seed was 0, now 7"):
        finish(finished)
    assert not finished.folder.exists("winner.json")


def test_of_a_database_that_lost_what_it_was_told_no_winner_is_named(finished):
    def older():
        raise MismatchError("The study's database was replaced by an older state")

    finished.ledger.fence = older
    with pytest.raises(MismatchError, match="an older state"):
        finish(finished)
    assert not finished.folder.exists("winner.json")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "cannot be reached.*The same command continues"),
        (OSError(28, "No space left on device"), "No space left.*The same command continues"),
    ],
)
def test_storage_that_fails_the_driver_is_one_line(finished, monkeypatch, error, told):
    """Wherever it happens: while the lease is taken, the ledger opened, the winner written."""

    def fails(*_):
        raise error

    monkeypatch.setattr(execute, "acquire", fails)
    with pytest.raises(ResourceError, match=told):
        execute.execute(finished.plan)


def test_who_read_the_terminal_and_ended_is_no_fault_of_the_storage(finished, monkeypatch):
    def fails(*_):
        raise BrokenPipeError

    monkeypatch.setattr(execute, "acquire", fails)
    with pytest.raises(BrokenPipeError):
        execute.execute(finished.plan)
