"""N workers are one for every method: real gloo ranks give the weights, records and counts of a single process.

The small network has no batch norm, whose statistics are of a rank's own rows. Float tolerance, because a mean over
ranks sums in another order. All ranks are started once, because imports take seconds, and train every case in turn.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wsol_models
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.config import Job, to_dict
from wsol_pipeline.training.loop import train

RANKS = 3
SLOW = {"learning_rate": 0.005}  # ten steps at the usual rate amplify the last bits a hundredfold
# name: (method, workers, changes); 64 images by 14 end in a batch of 8, which three ranks share as 3, 3, 2
CASES = {
    "cam-2": ("cam", 2, SLOW),
    "bas-2": ("bas", 2, {"rungs": (1,), **SLOW}),
    "bas-3": ("bas", 3, SLOW),
    "cam-3-joined": ("cam", 3, {"batch_size": 29}),  # the last batch has 6 of 29: it joins the one before
    "cam-3-clipped": ("cam", 3, {"clip_norm": 0.2}),
    "cam-3-still": ("cam", 3, {"learning_rate": 1e-30}),
    "has-3": ("has", 3, {"options": {"grid_size": 8}}),
    "adl-2": ("adl", 2, SLOW),
    "acol-2": ("acol", 2, {"learning_rate": 0.001}),  # what it erases has a threshold, which last bits can cross
    "bcam-2": ("bcam", 2, SLOW),
    "cutmix-3": ("cutmix", 3, SLOW),
    "mldfr-2": ("mldfr", 2, {"options": {"bn": False}, **SLOW}),
    "spg-3": ("spg", 3, SLOW),
    "dawsol-2": ("dawsol", 2, SLOW),
    "resumed-2": ("bas", 2, SLOW),
    "stopped-2": ("bas", 2, SLOW),
}
STOPS = {"stopped-2": (1, 28)}  # where rank 0 is asked to stop: the other one stops there too, and both go on


@pytest.fixture(scope="module")
def folders(dataset, reading, make_config, mortal_store, tmp_path_factory) -> dict[str, Path]:
    """The trial folder of every case, trained by ranks; "resumed-2" was begun by one worker and killed in epoch 2."""
    root = tmp_path_factory.mktemp("ranks")
    jobs = {
        name: Job(make_config(method, **changes), dataset.uri, str(root / name), 2, workers, reading=reading)
        for name, (method, workers, changes) in CASES.items()
    }
    mortal = mortal_store(Store.at(root / "resumed-2"), Position(1, 28))
    with pytest.raises(BaseException, match="killed"):
        list(train(jobs["resumed-2"].train, dataset, mortal, reading=reading, checkpoint_batches=2))
    cases = [
        {"job": to_dict(job), "rendezvous": str(root / f"{name}.meet"), "stop_at": STOPS.get(name)}
        for name, job in jobs.items()
    ]
    (root / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(RANKS), str(root / "cases.json")]
    subprocess.run(command, check=True, timeout=240)
    return {name: root / name for name in CASES}


def test_every_method_has_a_case():
    assert {method for method, _, _ in CASES.values()} == set(wsol_models.methods())


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("cam-3-still", "dawsol-2")])
def test_ranks_train_what_one_process_trains(folders, outcome, make_config, fit, name):
    method, _, changes = CASES[name]
    alone = fit(make_config(method, **changes))
    together = outcome(CheckpointStore(Store.at(folders[name]), 2))
    for weight, value in alone.weights.items():
        torch.testing.assert_close(together.weights[weight], value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(alone.records, together.records, strict=True):
        assert theirs["train"] == pytest.approx(ours["train"], rel=1e-5)
        assert {key: theirs[key] for key in ("epoch", "step", "searched", "final")} == {
            key: ours[key] for key in ("epoch", "step", "searched", "final")
        }


def test_ranks_train_what_one_process_trains_until_memories_decide(folders, outcome, make_config, fit):
    """Exempt from the rest: DA-WSOL's memories, from the second epoch on, are what a rank has seen."""
    alone = fit(make_config("dawsol", **CASES["dawsol-2"][2]))
    together = outcome(CheckpointStore(Store.at(folders["dawsol-2"]), 2))
    first, second = (record["train"] for record in together.records)
    assert first == pytest.approx(alone.records[0]["train"], rel=1e-5)
    assert second["universum"] > 0


def test_the_run_begun_by_one_worker_was_ended_by_two(folders):
    names = Store.at(folders["resumed-2"]).list()
    assert any(name.startswith("attempt-0001/e0001-s00000028") for name in names)
    assert any(name.startswith("attempt-0002/final") for name in names)


def test_counts_over_ranks_are_those_of_one_process(folders, outcome, make_config, fit):
    """With weights that don't move: 25 validation images, of which three ranks have 8, 8 and 9."""
    alone = fit(make_config("cam", **CASES["cam-3-still"][2]))
    together = outcome(CheckpointStore(Store.at(folders["cam-3-still"]), 2))
    for file in ("val_counts.json", "val_images.json"):  # images in one order, so that redraws compare trials
        assert json.loads(together.final.read(file)) == json.loads(alone.final.read(file))
    assert [record["val"] for record in together.records] == [record["val"] for record in alone.records]
