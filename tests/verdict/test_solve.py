"""Another readout of a finished model: solved on validation, kept as a study that the final evaluation can judge."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rayjobs import evaluate as evaluate_job
from rayjobs import tune_bagcams
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation import evaluate
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.selection import best
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.training.build import build_readout
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.model import load_model


@pytest.fixture
def study(fit, make_config, dataset, tmp_path, monkeypatch):
    """A finished BAS run under `tmp_path`, as a study called "bas"."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    final = fit(make_config("bas"), "bas/trials/0000").final
    record = {"method": "bas", "trial": 0, "trials": 1, "published": None, "data": dataset.uri, "study": ""}
    record |= {"schema": SCHEMA, **model_named(final, Store.at(tmp_path))}
    Store.at(tmp_path / "bas").write(WINNER, json.dumps(record).encode())
    return final


@pytest.fixture
def solve(study, tmp_path, reading):
    """`solve(*arguments)`: read the finished BAS study anew."""
    common = ["--storage", str(tmp_path), "--study", "bas", "--cache-dir", reading.cache_dir, "--device", "cpu"]
    return lambda *arguments: tune_bagcams.main([*common, *map(str, arguments)])


def result(tmp_path, name):
    return json.loads((tmp_path / name / WINNER).read_text())


def test_the_answer_is_what_solving_the_loaded_model_gives(solve, study, tmp_path, dataset, reading):
    assert solve("--readout", "topk", "--readout-options", "ks", "[2, 3]", "--name", "again") == 0
    model = load_model(Store.at(tmp_path).resolve(result(tmp_path, "again")["model"]))
    source = load_model(study)
    readout = build_readout(replace(source.config, readout="topk", readout_options={"ks": (2, 3)}))

    config = ReadConfig(36, 32, cache_dir=reading.cache_dir)
    val = eval_rows(dataset.val, config, model.protocol.geometry, 32)
    choice, _ = evaluate.solve(source.method, readout, val, source.protocol)
    assert model.choice == choice
    assert model.choice.readout in (2, 3)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), np.uint8)
    assert model.predict(images)[0].label == source.predict(images)[0].label


def test_the_same_command_shows_the_same_answer_and_another_question_is_refused(solve, tmp_path):
    solve("--readout", "cam")
    before = result(tmp_path, "bas-cam")
    solve("--readout", "cam")
    assert result(tmp_path, "bas-cam") == before
    assert len(CheckpointStore(Store.at(tmp_path / "bas-cam/trials/0000"), 0)._finals()) == 1
    with pytest.raises(UsageError, match=r"another question \(readout differ"):
        solve("--readout", "topk", "--name", "bas-cam")


def test_what_a_study_says_of_its_own_search_is_not_said_of_another_readout(solve, tmp_path):
    """How sure its winner is, its seeds and its Pareto front: of trials that the answer has none of."""
    own = {"doubt": "in 9 of 10", "wins": 0.9, "certainty": "by 3 points", "kept": "epoch 4", "confirmed": {}}
    own |= {"objectives": ["miou", "device_hours"], "tolerance": 1.0, "rule": "the cheapest"}
    place = tmp_path / "bas" / WINNER
    place.write_text(json.dumps(result(tmp_path, "bas") | own | {"paper_data": ["cub"]}))
    solve("--readout", "cam")
    assert result(tmp_path, "bas-cam").keys().isdisjoint(own)
    assert result(tmp_path, "bas-cam")["paper_data"] == ["cub"]


def test_bagcams_are_solved_over_every_layer_and_weighting(solve, tmp_path):
    solve()
    final = Store.at(tmp_path).resolve(result(tmp_path, "bas-bagcams")["model"])
    counts = Counts.from_dict(json.loads(final.read("val_counts.json")))
    stages = ("block1", "block2", "block3", "block4")
    assert set(counts.settings) == {f"{stage}/ours{n}" for stage in stages for n in (1, 2, 3)}
    assert load_model(final).choice.value == max(best(counts)["max_box_acc_v2"])


def test_the_final_evaluation_judges_it_beside_its_source(solve, tmp_path, reading, capsys):
    solve("--readout", "cam")
    arguments = ["--storage", str(tmp_path), "--cache-dir", reading.cache_dir, "--device", "cpu"]
    assert evaluate_job.main(["--study", "bas-cam", "bas", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "bas-cam: winner" in printed
    assert "bas: winner" in printed


def test_a_file_of_boxes_that_solves_says_what_it_is_like(solve, tmp_path, dataset, capsys):
    file = tmp_path / "ss.csv"
    lines = [f"{id},5,5,30,30,proposals\n" for id in dataset.val_labels.ids]
    file.write_text("path,x0,y0,x1,y1,made_by\n" + "".join(lines))
    assert solve("--readout", "cam", "--select-by", f"proposals:{file}") == 0
    assert "proposals: boxes of 25 of 25 validation images (100%)" in capsys.readouterr().out
    assert result(tmp_path, "bas-cam")["selected_on"] == "val/proposals"
    with pytest.raises(UsageError, match="was made by proposals"):
        solve("--readout", "cam", "--select-by", f"detector:{file}", "--name", "other")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--study", "nobody", "--readout", "cam"), DataError, "no finished study 'nobody'; finished ones: bas"),
        (("--readout", "cma"), UsageError, "Unknown readout 'cma'. Did you mean 'cam'"),
        (("--readout", "topk", "--readout-options", "ks", "[9]"), UsageError, "1 to the 3 classes"),
        (("--readout", "cam", "--name", "bas"), UsageError, "name must differ"),
        (("--readout", "cam", "--objective", "gt_know"), UsageError, "Unknown objective"),
    ],
)
def test_what_a_user_can_get_wrong(solve, arguments, error, message):
    with pytest.raises(error, match=message):
        solve(*arguments)
