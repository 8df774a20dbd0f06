"""N workers are one for every method: real gloo ranks give the weights, records and counts of a single process.

That is a claim about mathematics, so it is compared in float64: in float32 ten steps at the usual rate amplify the last
bits a hundredfold, and carry them across the thresholds of ACoL and SPG. One step of each method is in float32. The
small network has no batch norm, whose statistics are of a rank's own rows; a case of its own has. All ranks are started
once, because imports take seconds, and train every case in turn.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import wsol_models
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.evaluation import evaluate
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.storage import Store
from wsol_pipeline.training.build import build_method
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.config import Job, to_dict
from wsol_pipeline.training.loop import train
from wsol_pipeline.training.model import load_model

RANKS = 3
FLOAT64 = {"precision": "float64"}
ONE_STEP = {"epochs": 1, "batch_size": 64}  # all training images
WITHOUT_BATCH_NORM = {"options": {"bn": False}}  # of mLDFR's own layers
# name: (method, workers, changes); 64 images by 14 end in a batch of 8, which three ranks share as 3, 3, 2
CASES = {
    "cam-2": ("cam", 2, FLOAT64),
    "bas-2": ("bas", 2, {"rungs": (1,), **FLOAT64}),
    "bas-3": ("bas", 3, FLOAT64),
    "cam-3-joined": ("cam", 3, {"batch_size": 29, **FLOAT64}),  # the last batch has 6 of 29: it joins the one before
    "cam-3-clipped": ("cam", 3, {"clip_norm": 0.2, **FLOAT64}),
    "cam-3-still": ("cam", 3, {"learning_rate": 1e-30, **FLOAT64}),
    "has-3": ("has", 3, {"options": {"grid_size": 8}, **FLOAT64}),
    "adl-2": ("adl", 2, FLOAT64),
    "acol-2": ("acol", 2, FLOAT64),
    "bcam-2": ("bcam", 2, FLOAT64),
    "cutmix-3": ("cutmix", 3, FLOAT64),
    "mldfr-2": ("mldfr", 2, WITHOUT_BATCH_NORM | FLOAT64),
    "spg-3": ("spg", 3, FLOAT64),
    "dawsol-2": ("dawsol", 2, FLOAT64),
    "resumed-2": ("bas", 2, FLOAT64),
    "stopped-2": ("bas", 2, FLOAT64),
    "batch-norm-2": ("cam", 2, {"backbone": "resnet18", "options": {"large": False}, **FLOAT64}),
} | {
    f"{method}-step": (method, 2, ONE_STEP | (WITHOUT_BATCH_NORM if method == "mldfr" else {}))
    for method in wsol_models.methods()
}
STEPS = [name for name in CASES if name.endswith("-step")]
OTHERWISE = ("cam-3-still", "dawsol-2", "batch-norm-2", *STEPS)  # compared otherwise
STOPS = {"stopped-2": (1, 28)}  # where rank 0 is asked to stop: the other one stops there too, and both go on


@pytest.fixture(scope="module")
def folders(dataset, reading, make_config, mortal_store, tmp_path_factory) -> dict[str, Path]:
    """The trial folder of every case, trained by ranks; "resumed-2" was begun by one worker and killed in epoch 2."""
    root = tmp_path_factory.mktemp("ranks")
    jobs = {
        name: Job(make_config(method, **changes), dataset.uri, str(root / name), 2, workers=workers, reading=reading)
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
    subprocess.run(command, check=True, timeout=800)
    return {name: root / name for name in CASES}


def test_every_method_has_a_case():
    assert {method for method, _, _ in CASES.values()} == set(wsol_models.methods())


@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHERWISE])
def test_ranks_train_what_one_process_trains(folders, outcome, make_config, fit, name):
    method, _, changes = CASES[name]
    alone = fit(make_config(method, **changes))
    together = outcome(CheckpointStore(Store.at(folders[name]), 2))
    for weight, value in alone.weights.items():
        torch.testing.assert_close(together.weights[weight], value, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(alone.records, together.records, strict=True):
        assert theirs["train"] == pytest.approx(ours["train"], rel=1e-9)
        assert {key: theirs[key] for key in ("epoch", "step", "searched", "final")} == {
            key: ours[key] for key in ("epoch", "step", "searched", "final")
        }


def test_ranks_train_what_one_process_trains_until_memories_decide(folders, outcome, make_config, fit):
    """Exempt from the rest: DA-WSOL's memories, from the second epoch on, are what a rank has seen."""
    alone = fit(make_config("dawsol", **CASES["dawsol-2"][2]))
    together = outcome(CheckpointStore(Store.at(folders["dawsol-2"]), 2))
    first, second = (record["train"] for record in together.records)
    assert first == pytest.approx(alone.records[0]["train"], rel=1e-9)
    assert second["universum"] > 0


@pytest.mark.parametrize("name", STEPS)
def test_ranks_take_the_step_of_one_process_in_float32(folders, outcome, make_config, fit, name):
    """As a share of the step: a position that last bits carry across a threshold is one of thousands."""
    method, _, changes = CASES[name]
    config = make_config(method, **changes)
    torch.manual_seed(config.seed)
    start = flat(build_method(config, 3).state_dict())
    alone = flat(fit(config).weights) - start
    together = flat(outcome(CheckpointStore(Store.at(folders[name]), 2)).weights) - start
    assert alone.norm() > 0
    assert (together - alone).norm() < 0.01 * alone.norm()


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


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


def test_ranks_judge_the_network_that_is_kept(folders, dataset, reading):
    """Batch norm's running statistics are of a rank's own rows, until all take rank 0's."""
    final = CheckpointStore(Store.at(folders["batch-norm-2"]), 2).final()
    model = load_model(final)
    rows = eval_rows(dataset.val, ReadConfig(36, 32, cache_dir=reading.cache_dir), model.protocol.geometry, 14)
    again = evaluate.count(model.method, model.readout, rows, model.protocol)
    beside = Counts.from_dict(json.loads(final.read("val_counts.json")))
    np.testing.assert_array_equal(again.hits, beside.hits)
    np.testing.assert_array_equal(again.top1, beside.top1)
