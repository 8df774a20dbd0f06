"""What the jobs have kept, read back; and the job itself. No data split exists here at all."""

import dataclasses
import json
from pathlib import Path

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayjobs import report
from wsol_pipeline.errors import DataError, MismatchError, UsageError
from wsol_pipeline.report.facts import gather
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.training.checkpoint import write_sealed
from wsol_pipeline.training.config import to_dict
from wsol_pipeline.verdict.pictures import PICTURES
from wsol_pipeline.verdict.rows import CENTRED_BOX, EVALUATIONS, evaluation_name


@pytest.fixture
def keep(tmp_path, facts):
    """`keep(name, **train)`: a judged study of that name, its winner with that training configuration."""
    store = Store.at(tmp_path)

    def write(name, version=2, **train):
        model = facts.main
        final = store / name / "trials/0000/attempt-0001/final"
        description = {
            "train": to_dict(dataclasses.replace(model.config, **train)), "choice": model.choice.to_dict(),
            "data": "gone", "dataset": "f", "val_split": "v", "arithmetic": "float32", "study": "1",
            "training_images": "exact pixels",
            "classes": ["cat"],
        }  # fmt: skip
        files = {"model.json": description, "val_counts.json": model.val.to_dict()}
        files |= {"records.json": [{"used": {"steps": 6.0, "validation": 2.0}}]}
        write_sealed(final, {file: json.dumps(text).encode() for file, text in files.items()})
        winner = {"schema": SCHEMA, **model_named(final, store), "study": "1", "trial": 0, "trials": 1}
        winner |= {"published": None, "data": "gone"}
        (store / name).write("winner.json", json.dumps(winner).encode())
        contender = dataclasses.replace(model.contender, final=final)
        row = dataclasses.asdict(dataclasses.replace(model.lines[0].row, label=""))
        result = {"rows": [row], "images": 6, "device": "cpu", "test_fingerprint": "t", "provenance": {}}
        folder, kept = store / name / EVALUATIONS, evaluation_name(contender)
        if version > 1:
            result["counts"] = [model.lines[0].test.to_dict()]
            cases = pa.Table.from_pylist([dataclasses.asdict(case) for case in model.lines[0].cases])
            sink = pa.BufferOutputStream()
            pq.write_table(cases, sink)
            (folder / kept).write("images-0.parquet", sink.getvalue().to_pybytes())
            (folder / kept).write(PICTURES, json.dumps(model.pictures).encode())
            (store / name).write(CENTRED_BOX, json.dumps(dataclasses.asdict(facts.centred_box)).encode())
        folder.write(f"{kept}.json", json.dumps(result).encode())
        return store

    return write


def one_trial(store, name):
    """A study with one complete trial."""
    study = optuna.create_study(study_name=name, storage=open_storage(store / name, None), direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=60.0))


def test_what_was_kept_is_read_back(keep, facts):
    store = keep("a")
    one_trial(store, "a")
    found = gather(store, ("a",))
    line, kept = found.lines[-1], facts.main.lines[0]
    assert (line.row.label, line.row.transferred) == ("a: winner", kept.row.transferred)
    assert [(c.id, c.iou, list(c.box)) for c in line.cases] == [(c.id, c.iou, list(c.box)) for c in kept.cases]
    assert (line.test.hits == kept.test.hits).all()
    assert found.lines[0].row.label == "centred box"
    (search,) = found.searches
    assert [trial.value for trial in search.trials] == [60.0]
    assert search.counts[0].settings == (1, 2, 3)


def test_confirmations_stand_apart_from_the_search(keep):
    store = keep("a")
    one_trial(store, "a")
    study = optuna.load_study(study_name="a", storage=open_storage(store / "a", None))
    study.add_trial(optuna.trial.create_trial(value=70.0, user_attrs={"confirms": 0, "seed": 1}))
    winner = json.loads(store.read("a/winner.json")) | {"doubt": "It holds.", "standing": "Beside a box."}
    store.write("a/winner.json", json.dumps(winner).encode())
    (search,) = gather(store, ("a",)).searches
    assert ([t.value for t in search.trials], [t.value for t in search.confirmations]) == ([60.0], [70.0])
    assert list(search.counts) == [0]
    took = "Of 8 s of its training: 75 % steps, 0 % input, 25 % validation, 0 % checkpoints."
    assert search.told == f"It holds. Beside a box. {took}"


def test_a_study_of_several_objectives_is_read_with_its_front(keep):
    store = keep("a")
    database = open_storage(store / "a", None)
    study = optuna.create_study(study_name="a", storage=database, directions=["maximize", "minimize"])
    for values in ((60.0, 3.0), (59.5, 1.0), (59.5, 2.0)):
        study.add_trial(optuna.trial.create_trial(values=values))
    several = {"objectives": ["max_box_acc_v2", "device_hours"], "tolerance": 1.0, "rule": "Trial 1 wins.", "trial": 1}
    store.write("a/winner.json", json.dumps(json.loads(store.read("a/winner.json")) | several).encode())
    (search,) = gather(store, ("a",)).searches
    assert [trial.value for trial in search.trials] == [60.0, 59.5, 59.5]
    assert [standing.number for standing in search.several.ranking] == [1, 2, 0]
    assert search.several.sentence == "Trial 1 wins."


def test_a_model_solved_for_another_has_no_trials_and_makes_no_database(keep):
    store = keep("a")
    assert gather(store, ("a",)).searches == ()
    assert not store.exists("a/study.db")


def test_an_evaluation_of_an_earlier_version_is_shown_without_its_images(keep):
    (line,) = gather(keep("a", version=1), ("a",)).lines
    assert line.row.transferred["max_box_acc_v2"] == 71.75
    assert (line.test, line.cases) == (None, ())


@pytest.mark.parametrize("change", [{"dataset": "g"}, {"study": "2"}])
def test_a_model_that_was_altered_is_not_shown(keep, change):
    store = keep("a")
    file = store.path("a/trials/0000/attempt-0001/final/model.json")
    Path(file).write_text(json.dumps(json.loads(Path(file).read_text()) | change))
    with pytest.raises(DataError, match="model.json was altered"):
        gather(store, ("a",))


def test_a_model_that_the_study_has_not_named_is_not_shown(keep):
    store = keep("a")
    winner = json.loads(store.read("a/winner.json"))
    for change, told in (({"seal": "0" * 64}, "holds another model"), ({"study": "2"}, "is of study 1, not of 'a'")):
        store.write("a/winner.json", json.dumps(winner | change).encode())
        with pytest.raises(MismatchError, match=told):
            gather(store, ("a",))


def test_one_report_holds_one_evaluation(keep):
    keep("a")
    store = keep("b", protocol="bas-ext")
    with pytest.raises(DataError, match="b: bas-ext at 32 px, data f; a: wsol-v1 at 32 px, data f"):
        gather(store, ("a", "b"))


def test_the_job_writes_page_and_tables(keep, tmp_path, capsys):
    keep("a")
    assert report.main(["--study", "a", "--storage", str(tmp_path), "--out", str(tmp_path / "out/x.y.html")]) == 0
    written = ["x.y-figures", "x.y-images.parquet", "x.y.html", "x.y.md", "x.y.tex"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == written
    told = capsys.readouterr().out
    assert all(str(tmp_path / f"out/{name}") in told for name in written)
    assert "**71.8** [68.8, 75.0]" in (tmp_path / "out/x.y.md").read_text()
    report.main(["--study", "a", "--storage", str(tmp_path)])
    assert (tmp_path / "a/report.html").read_text().startswith("<!doctype html>")


def test_a_page_is_called_html():
    with pytest.raises(UsageError, match=r"ends with .html but got 'x.pdf'"):
        report.Options(out="x.pdf")
