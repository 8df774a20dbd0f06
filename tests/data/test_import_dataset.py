"""The job `rayjobs/import_dataset.py` as a user runs it."""

import sys
import tarfile

import pytest

from rayjobs import import_dataset as job
from wsol_pipeline.console.imports import alone
from wsol_pipeline.console.main import run_main
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import names
from wsol_pipeline.errors import UsageError
from wsol_pipeline.storage import Store

SMALL = ["--train", "12", "--val", "6", "--test", "6", "--size", "40"]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """`run(*arguments)`: exit code, standard output and standard error, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["import_dataset.py", *arguments])
        with pytest.raises(SystemExit) as end:
            run_main(job.main)
        return end.value.code, *capsys.readouterr()

    return main


def test_without_arguments_it_writes_the_synthetic_dataset(run, tmp_path):
    code, out, _ = run(*SMALL)
    dataset = open_dataset(str(tmp_path / "runs/data/synthetic"))
    assert code == 0
    assert "5 classes, train 12, val 6, test 6; 0 rows left out" in out
    assert dataset.fingerprint in out
    assert out.splitlines()[-1] == (
        f"The dataset is at {dataset.uri}. Next: python rayjobs/tune_bas.py --data {dataset.uri}"
    )
    assert len(out.splitlines()) == 3 + 4  # a line for each shard, four at the end


def test_the_same_command_again_leaves_the_dataset(run):
    assert run(*SMALL)[0] == 0
    code, out, _ = run(*SMALL)
    assert code == 0
    assert "shard" not in out
    code, _, err = run(*SMALL, "--seed", "1")
    assert code == 2
    assert "choose another --out" in err


def test_one_import_at_a_time_writes_to_a_place(run, tmp_path):
    place = Store.at(tmp_path / "runs/data/synthetic")
    with alone(place):
        code, _, err = run(*SMALL)
        assert code == 4
        assert f"is importing into {place}" in err
    assert run(*SMALL)[0] == 0
    assert not (tmp_path / "runs/data/synthetic/import").exists()


def test_a_folder_is_imported_under_its_name(run, tmp_path, jpeg):
    for number, role in enumerate(("train", "val", "test")):
        (tmp_path / f"in/{role}/cat").mkdir(parents=True)
        (tmp_path / f"in/{role}/cat/1.jpg").write_bytes(jpeg(number))
    boxes = "path,x0,y0,x1,y1\nval/cat/1.jpg,1,2,3,4\ntest/cat/1.jpg,1,2,3,4\n"
    (tmp_path / "in/boxes.csv").write_text(boxes)
    code, _, _ = run(
        "--dataset", "folder", "--source", "in", "--out", "out", "--name", "cats", "--convention", "inclusive1"
    )
    dataset = open_dataset(str(tmp_path / "out"))
    assert code == 0
    assert (dataset.name, dataset.classes, dataset.val.box_convention) == ("cats", ("cat",), "inclusive1")


def test_an_archive_is_the_same_dataset(run, tmp_path, jpeg):
    test_a_folder_is_imported_under_its_name(run, tmp_path, jpeg)
    with tarfile.open(tmp_path / "in.tgz", "w:gz") as archive:
        archive.add(tmp_path / "in", "cats")
    code, _, _ = run("--dataset", "folder", "--source", "in.tgz", "--out", "again", "--convention", "inclusive1")
    assert code == 0
    assert open_dataset(str(tmp_path / "again")).fingerprint == open_dataset(str(tmp_path / "out")).fingerprint


def test_check_reports_and_writes_nothing(run, tmp_path, jpeg):
    for number, role in enumerate(("train", "val", "test")):
        (tmp_path / f"in/{role}/cat").mkdir(parents=True)
        (tmp_path / f"in/{role}/cat/1.jpg").write_bytes(jpeg(number))
    boxes = tmp_path / "in/boxes.csv"
    boxes.write_text("path,x0,y0,x1,y1\nval/cat/1.jpg,1,2,3,4\ntest/cat/1.jpg,1,2,3,4\n")
    asked = ("--dataset", "folder", "--source", "in", "--out", "out", "--check")
    code, out, _ = run(*asked)
    assert (code, out) == (0, "taken: train 1 (cat 1), val 1 (cat 1), test 1 (cat 1)\nNo problem was found.\n")
    boxes.write_text("path,x0,y0,x1,y1\nval/cat/1.jpg,1,2,99,4\ntest/cat/1.jpg,1,2,3,4\n")
    (tmp_path / "in/train/cat/2.jpg").write_bytes(jpeg(2))  # as the one in test
    code, out, _ = run(*asked)
    assert code == 3
    assert "train train/cat/2.jpg = test test/cat/1.jpg" in out
    assert "val/cat/1.jpg: box (1.0, 2.0, 99.0, 4.0) is not on the image" in out
    assert "left out: 1 images have a wrong box" in out
    assert "problem: 1 splits have no image\n  val\n" in out  # without that one
    assert out.splitlines()[-1] == "2 problems"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dataset", "ilsvcr"], 2, "Did you mean 'ilsvrc'"),
        (["--dataset", "ilsvrc", "--source", "."], 3, "not in the ILSVRC layout"),
        (["--max-bad", "2"], 2, "0..1 but got 2.0"),
        (["--workers", "0"], 2, "at least 1"),
        (["--name", "a/b"], 2, "'a/b'"),
        (["--classes", "25"], 2, "2..24 but got 25"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(run, arguments, code, message):
    got, _, err = run(*arguments)
    assert got == code
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_unknown_option_names_the_nearest(run):
    code, out, err = run("--sorce", ".")
    assert code == 2
    assert "--source" in out + err


def test_every_option_is_explained(capsys):
    for layout in names():
        with pytest.raises(SystemExit):
            job.parse(["--dataset", layout, "--help"])
        lines = capsys.readouterr().out
        for option in ("--max-bad", "--workers", "--shard-mb"):
            assert option in lines


def test_the_layout_decides_the_options():
    assert job.parse(["--dataset", "ilsvrc", "--val-per-class", "3"]).options.val_per_class == 3
    with pytest.raises(UsageError, match="Unknown dataset layout"):
        job.parse(["--dataset", "nothing"])
