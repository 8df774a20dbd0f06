"""A search over BAS and the stations after it: what is proposed, what is kept, what a kill leaves."""

import hashlib
import json
from dataclasses import replace

import mlflow
import pytest

from rayjobs import tune_masks as job
from wsol_pipeline.errors import UsageError
from wsol_pipeline.segmentation import lineage, make_seeds, station, tune
from wsol_pipeline.segmentation.options import TuneMasksOptions
from wsol_pipeline.segmentation.tune import Tried, best, by_labels, proposed, start_of, tune_masks

LOSSES = {"lambda_", "alpha", "beta"}
OWN = {"lambda_": 1.0, "alpha": 0.5, "beta": 9.0}


def options(storage, **own):
    given = {"storage": storage.uri, "trials": 2, "scales": (1.0,), "field": "none", **own}
    return TuneMasksOptions(**given)


def tried(number, miou, score=None, **parameters):
    return Tried(
        number, {"lambda_": 1.0, "alpha": 0.5, "beta": 1.0, **parameters}, f"m{number}", miou, labels_score=score
    )


def test_the_first_trial_has_the_winners_own_settings_within_the_ranges():
    first = proposed(TuneMasksOptions(by=("irn",)), OWN, [])
    assert {first[name] for name in LOSSES} == {1.0, 0.5, 2.5}
    walk = {name: value for name, value in first.items() if name not in LOSSES}
    assert walk == {"seeds.foreground_at": 0.3, "seeds.background_at": 0.05, "refine.power": 1.0,
                    "refine.walk_radius": 5, "refine.beta": 10.0, "refine.exponent": 8}  # fmt: skip
    assert set(proposed(TuneMasksOptions(by=("pamr",)), OWN, [])) == LOSSES
    assert proposed(TuneMasksOptions(by=("crf",)), OWN, [])["refine.alpha"] == 0.0


def test_a_proposal_depends_on_what_was_found_alone():
    asked = TuneMasksOptions()
    before = [tried(0, 40.0), tried(1, None, lambda_=0.3)]
    assert proposed(asked, OWN, before) == proposed(asked, OWN, before)
    assert proposed(replace(asked, seed=1), OWN, before) != proposed(asked, OWN, before)


def test_masks_choose_and_labels_alone_would_have():
    trials = [tried(0, 40.0, 0.5), tried(1, 42.0, 0.7), tried(2, None)]
    assert best(trials).number == 1
    assert by_labels(trials).number == 0
    assert by_labels([tried(0, 1.0)]) is None


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(storage, monkeypatch, capsys):
    whole = tune_masks(options(storage, name="whole"), "cpu")
    assert whole[0].parameters["lambda_"] == 1.0
    assert whole[0].parameters != whole[1].parameters
    found = station.finished(storage.store, whole[1].masks)
    assert found.manifest["val"]["miou"] == whole[1].miou
    assert whole[1].labels_score > 0

    def mortal(*args, make=make_seeds.make_seeds):
        make(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_seeds, "make_seeds", mortal)
        with pytest.raises(KeyboardInterrupt):
            tune_masks(options(storage, name="killed"), "cpu")
    killed = tune_masks(options(storage, name="killed"), "cpu")
    assert [(one.parameters, one.miou, one.labels_score) for one in killed] == [
        (one.parameters, one.miou, one.labels_score) for one in whole
    ]
    monkeypatch.setattr(tune.Search, "tried", lambda *args: pytest.fail("a finished trial was made again"))
    job.main(["--name", "killed", "--trials", "2", "--scales", "1", "--field", "none", "--storage", storage.uri])
    told = capsys.readouterr().out
    assert f"--masks {best(killed).masks}" in told
    assert "Labels alone (the least L_bas + L_ac) choose trial" in told
    assert max(map(len, told.splitlines()[2:6])) <= 80


def test_a_search_is_a_run_with_one_for_each_trial(storage, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (storage.store / "s").write(station.IDENTITY, json.dumps({"sources": ["seal"]}).encode())
    trials = [tried(0, 40.0, 0.5), replace(tried(1, None), fault="Each seed is background."), tried(2, 42.0, 0.7)]
    for _ in range(2):  # the second writes nothing again
        assert lineage.publish_search(storage.store, "s", trials, "wsol") == ""
    client = mlflow.MlflowClient(f"sqlite:///{storage.uri}/mlflow.db")
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert set(runs) == {"s", "s 0000", "s 0001", "s 0002"}
    assert [runs[f"s 000{n}"].info.status for n in range(3)] == ["FINISHED", "FAILED", "FINISHED"]
    assert runs["s 0002"].data.metrics == {"val/miou": 42.0, "val/labels_score": 0.7}
    assert runs["s 0001"].data.tags["wsol.fault"] == "Each seed is background."
    assert runs["s 0000"].data.params["lambda_"] == "1.0"
    assert (runs["s"].data.tags["wsol.best_trial"], runs["s"].data.metrics["val/miou"]) == ("2", 42.0)


def test_a_trial_without_an_object_is_told_and_the_search_goes_on(storage, monkeypatch):
    def nothing(*args):
        raise make_seeds.NothingError("Each seed is background everywhere.")

    with monkeypatch.context() as patch:
        patch.setattr(make_seeds, "make_seeds", nothing)
        trials = tune_masks(options(storage, trials=1), "cpu")
    assert (trials[0].miou, trials[0].fault) == (None, "Each seed is background everywhere.")
    assert tune_masks(options(storage, trials=2), "cpu")[1].miou is not None
    kept = json.loads((storage.store / "bas-tuned").read("trials/0000.json"))
    assert kept["fault"]


def test_each_trial_begins_with_what_the_study_began_with(storage, tmp_path, monkeypatch):
    """A model's own configuration has no start, since it has ended elsewhere: a search must look it up."""
    file = tmp_path / "start.safetensors"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert start_of(None, "") == (None, "")
    assert start_of("imagenet", "") == ("imagenet", "")
    assert start_of(f"sha256:{digest}", str(file)) == (str(file), digest)
    with pytest.raises(UsageError, match="began with a file of weights .* say where it is today .--start-weights"):
        start_of(f"sha256:{digest}", "")
    with pytest.raises(UsageError, match="is another file"):
        start_of(f"sha256:{'0' * 64}", str(file))

    begun = []

    def noted(config, *args):
        begun.append((config.weights, config.weights_digest))
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "train", noted)
    monkeypatch.setattr(tune, "start_of", lambda kept, given: ("there", digest))
    with pytest.raises(KeyboardInterrupt):
        tune_masks(options(storage, trials=1), "cpu")
    assert begun == [("there", digest)]


def test_what_cannot_be_searched_is_refused(storage):
    with pytest.raises(UsageError, match="A search of masks needs a study of bas"):
        tune_masks(options(storage, study="cam"), "cpu")
    with pytest.raises(UsageError, match="trials must be at least 1"):
        TuneMasksOptions(trials=0)
    with pytest.raises(UsageError, match="Unknown refinement 'irm'"):
        TuneMasksOptions(by=("irm",))
    tune_masks(options(storage, trials=1), "cpu")
    with pytest.raises(UsageError, match="holds an answer to another question"):
        tune_masks(options(storage, trials=1, seed=4), "cpu")
