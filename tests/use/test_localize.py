"""`wsol localize`: every image once, whatever happens; rows that are right; refusals in a line."""

import csv
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as rle

import wsol
from rayjobs import localize
from tests.use.conftest import paint
from wsol_pipeline.data import headers
from wsol_pipeline.errors import DataError, PartialError, ResourceError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.use import run, sources

ROOT = Path(__file__).parents[2]


def rows_of(out):
    return [row for path in sorted(Path(out).glob("parts/*.parquet")) for row in pq.read_table(path).to_pylist()]


def seals(out):
    return {path.name: json.loads(path.read_text()) for path in sorted(Path(out).glob("parts/*.json"))}


@pytest.fixture
def job(final, tmp_path):
    """`job(source, *more)`: localize into tmp_path/out, two images a batch."""

    def start(source, *more, out=tmp_path / "out"):
        args = ["--model", str(final), "--source", str(source), "--out", str(out), "--batch-size", "2", *more]
        return localize.main(args)

    return start


def test_every_image_has_its_rows_and_they_are_what_predict_says(job, final, photographs, tmp_path):
    assert job(photographs) == 0
    rows = rows_of(tmp_path / "out")
    assert [row["image_id"] for row in rows] == sorted(
        path.relative_to(photographs).as_posix() for path in photographs.rglob("*.png")
    )
    assert [row["index"] for row in rows] == list(range(11))
    found = wsol.load_model(final.uri).predict([row["uri"] for row in rows])
    for row, one in zip(rows, found, strict=True):
        assert (row["label"], row["width"], row["height"]) == (one.label, one.width, one.height)
        assert row["class_score"] == pytest.approx(one.class_score, rel=1e-4)
        assert [row[side] for side in ("x0", "y0", "x1", "y1")] == list(one.box or (None,) * 4)
        if one.box:
            decoded = rle.decode({"size": [row["height"], row["width"]], "counts": row["rle"].encode()})
            np.testing.assert_array_equal(decoded, one.mask)
            assert row["area"] == one.mask.sum()
    assert (tmp_path / "out/problems.csv").read_text().count("\n") == 1


def test_broken_images_are_listed_and_the_job_goes_on(job, photographs, tmp_path):
    (photographs / "empty.jpg").write_bytes(b"")
    (photographs / "page.jpg").write_text("<html>not found</html>")
    (photographs / "cut.png").write_bytes((photographs / "cross/00.png").read_bytes()[:900])
    with pytest.raises(PartialError, match=r"3 images are broken: .*problems.csv") as told:
        job(photographs)
    assert told.value.exit_code == 5
    problems = list(csv.DictReader((tmp_path / "out/problems.csv").open()))
    assert [Path(problem["uri"]).name for problem in problems] == ["cut.png", "empty.jpg", "page.jpg"]
    assert {problem["kind"] for problem in problems} == {"image"}
    assert len(rows_of(tmp_path / "out")) == 11
    with pytest.raises(DataError, match="3 of 14 images are broken, over --max-bad 0.1"):
        job(photographs, "--max-bad", "0.1", out=tmp_path / "other")


def test_images_over_the_limits_are_listed_and_the_job_goes_on(job, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 20_000)
    monkeypatch.setattr(headers, "MAX_PIXELS", 4_000)
    heavy = paint(photographs / "heavy.png", 3, (20, 20))
    heavy.write_bytes(heavy.read_bytes() + bytes(20_000))
    paint(photographs / "large.png", 3, (81, 50))
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(photographs / "sixteen.png")
    with pytest.raises(PartialError, match="3 images are broken"):
        job(photographs)
    told = {Path(line["uri"]).name: line["reason"] for line in csv.DictReader((tmp_path / "out/problems.csv").open())}
    assert "bytes, over the limit of 20000" in told["heavy.png"]
    assert told["large.png"] == "image has 81x50 pixels, over the limit of 4000"
    assert "16" in told["sixteen.png"]
    assert len(rows_of(tmp_path / "out")) == 11


def test_the_same_command_continues_and_each_image_is_there_once(job, photographs, tmp_path, monkeypatch):
    job(photographs, "--chunk", "4", out=tmp_path / "whole")
    stop = iter([False, True])
    monkeypatch.setattr(run.interrupts, "asked", lambda: next(stop, True))
    with pytest.raises(KeyboardInterrupt):
        job(photographs, "--chunk", "4", "--batch-size", "1")
    monkeypatch.undo()
    done = seals(tmp_path / "out")
    assert 0 < len(done) < 3
    (tmp_path / "out/parts/part-00002.parquet").write_bytes(b"half of a part")  # a death before its seal
    job(photographs, "--chunk", "4")
    assert seals(tmp_path / "out") == seals(tmp_path / "whole")
    for part in (tmp_path / "whole/parts").glob("*.parquet"):
        assert (tmp_path / "out/parts" / part.name).read_bytes() == part.read_bytes()
    assert localize.main(["--out", str(tmp_path / "out"), "--verify"]) == 0


def test_a_missing_or_altered_part_is_named(job, photographs, tmp_path):
    job(photographs, "--chunk", "4")
    part = tmp_path / "out/parts/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=r"part-00001.parquet was altered: without its seal"):
        localize.main(["--out", str(tmp_path / "out"), "--verify"])
    (tmp_path / "out/parts/part-00001.json").unlink()
    with pytest.raises(DataError, match="part-00001 has no seal: the same command"):
        localize.main(["--out", str(tmp_path / "out"), "--verify"])
    job(photographs, "--chunk", "4")
    assert localize.main(["--out", str(tmp_path / "out"), "--verify"]) == 0


def test_another_contract_is_refused_and_says_what_differs(job, photographs, tmp_path):
    job(photographs)
    with pytest.raises(UsageError, match=r"was begun otherwise \(threshold was '', now '0.4'\)"):
        job(photographs, "--threshold", "0.4")
    assert job(photographs, "--batch-size", "5") == 0  # no part of the result
    (tmp_path / "out/parts/part-00000.json").unlink()
    with pytest.raises(UsageError, match="chunk was 1024, now 3"):
        job(photographs, "--chunk", "3")


def test_a_source_that_grows_or_changes_is_said(job, photographs, tmp_path, capsys):
    job(photographs, "--chunk", "4")
    paint(photographs / "new/99.png", 99)
    with pytest.raises(UsageError, match=r"has 1 new images .*99.png first\): --extend"):
        job(photographs, "--chunk", "4")
    job(photographs, "--chunk", "4", "--extend")
    assert [row["index"] for row in rows_of(tmp_path / "out")] == list(range(12))
    paint(photographs / "cross/00.png", 7, (32, 32))
    capsys.readouterr()
    job(photographs, "--chunk", "4", "--extend")
    assert "1 images have changed since they were localized" in capsys.readouterr().out
    assert rows_of(tmp_path / "out")[0]["width"] == 60
    job(photographs, "--chunk", "4", "--extend", "--redo-changed")
    assert rows_of(tmp_path / "out")[0]["width"] == 32
    assert job(photographs, "--chunk", "4") == 0
    (photographs / "cross/00.png").unlink()
    with pytest.raises(UsageError, match=r"lacks 1 of the images .*00.png first"):
        job(photographs, "--chunk", "4")


def test_two_jobs_at_once_on_one_out_are_refused(job, photographs, tmp_path):
    with acquire(Store.at(tmp_path / "out") / "lease"), pytest.raises(ResourceError, match="is driving"):
        job(photographs)


def test_known_labels_by_folder_and_by_column(job, photographs, tmp_path):
    shutil.copy(photographs / "cross/00.png", photographs / "cross/copy.png")
    (photographs / "rign").mkdir()
    shutil.copy(photographs / "cross/00.png", photographs / "rign/00.png")
    with pytest.raises(PartialError, match="1 images are broken"):
        job(photographs, "--labels", "folder")
    (problem,) = csv.DictReader((tmp_path / "out/problems.csv").open())
    assert (problem["kind"], problem["reason"]) == (
        "label", "label 'rign' is no class of the model; the nearest is 'ring'")  # fmt: skip
    rows = rows_of(tmp_path / "out")
    assert {row["label_source"] for row in rows} == {"given"}
    assert all(row["label"] == row["image_id"].split("/")[0] for row in rows)
    table = tmp_path / "list.csv"
    table.write_text("path,kind\nphotos/cross/00.png,ring\nphotos/cross/00.png,cross\nphotos/none.png,ring\n"
                     "photos/ring/01.png,\n")  # fmt: skip
    with pytest.raises(PartialError, match="2 images are broken"):
        job(table, "--labels", "column:kind", out=tmp_path / "listed")
    assert [(row["index"], row["label"]) for row in rows_of(tmp_path / "listed")] == [(0, "ring"), (1, "cross")]
    reasons = [problem["reason"] for problem in csv.DictReader((tmp_path / "listed/problems.csv").open())]
    assert "No such file" in reasons[0]
    assert reasons[1] == "label is empty"
    with pytest.raises(UsageError, match="Did you mean 'kind'"):
        job(table, "--labels", "column:kin", out=tmp_path / "no")


def of_parquet(photographs, tmp_path):
    names = sorted(photographs.rglob("*.png"))
    table = pa.table({"image": [name.read_bytes() for name in names], "key": [name.name for name in names]})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=3)
    return tmp_path / "images.parquet"


def of_tar(photographs, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(photographs, "photos")
    return tmp_path / "images.tar"


def of_zip(photographs, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in photographs.rglob("*.png"):
            archive.write(path, path.relative_to(photographs))
    return tmp_path / "images.zip"


def of_text(photographs, tmp_path):
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(photographs.rglob("*.png"))]
    (tmp_path / "list.txt").write_text("\n".join(names))
    return tmp_path / "list.txt"


def of_glob(photographs, tmp_path):
    return photographs / "**/*.png"


@pytest.mark.parametrize("form", [of_parquet, of_tar, of_zip, of_text, of_glob])
def test_every_kind_of_source_gives_the_same_boxes(job, photographs, tmp_path, monkeypatch, form):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job(photographs, out=tmp_path / "folder")
    source = form(photographs, tmp_path)
    job(source, *(["--id-column", "key"] if form is of_parquet else []))

    def told(out):
        sides = ("width", "x0", "y0", "area", "label")
        return sorted(str([row[side] for side in sides]) for row in rows_of(out))

    assert told(tmp_path / "out") == told(tmp_path / "folder")


def test_a_dataset_is_localized_by_split_and_test_only_when_allowed(job, dataset, tmp_path):
    job(f"{dataset.uri}:val", "--labels", "folder")
    rows = rows_of(tmp_path / "out")
    assert sorted(row["image_id"] for row in rows) == sorted(dataset.val.ids)
    labels = dict(zip(dataset.val.ids, dataset.val.labels.tolist(), strict=True))
    assert all(row["class_id"] == labels[row["image_id"]] for row in rows)
    with pytest.raises(UsageError, match="test is for the final evaluation: --allow-test"):
        job(f"{dataset.uri}:test", out=tmp_path / "no")
    with pytest.raises(UsageError, match="is an imported dataset: say which split"):
        job(dataset.uri, out=tmp_path / "no")
    assert job(f"{dataset.uri}:test", "--allow-test", out=tmp_path / "allowed") == 0
    assert json.loads((tmp_path / "allowed/contract.json").read_text())["allow_test"] is True


def test_a_bucket_is_a_source_and_a_place_for_results(job, photographs, s3_bucket, tmp_path):
    for path in photographs.rglob("*.png"):
        Store(f"{s3_bucket}/photos").write(path.relative_to(photographs).as_posix(), path.read_bytes())
    job(f"{s3_bucket}/photos/", "--format", "coco", out=f"{s3_bucket}/found")
    coco = json.loads(Store(f"{s3_bucket}/found").read("coco.json"))
    assert len(coco["images"]) == 11
    job(f"{s3_bucket}/photos/ring/*.png", out=tmp_path / "some")
    assert len(rows_of(tmp_path / "some")) == 5
    data = io.BytesIO()
    pq.write_table(pa.table({"uri": [f"{s3_bucket}/photos/ring/01.png"]}), data)
    Store(f"{s3_bucket}/tables").write("list.parquet", data.getvalue())
    job(f"{s3_bucket}/tables/list.parquet", "--image-column", "uri", out=tmp_path / "listed")
    assert len(rows_of(tmp_path / "listed")) == 1


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda where: (where / "none").mkdir() or where / "none", DataError, r"has no image \(looked for .jpg"),
        (lambda where: where / "missing", DataError, "does not exist"),
        (lambda where: (where / "list.csv").write_text("name\na.jpg\n") and where / "list.csv", DataError,
         "must have a column path or uri but has name"),
        (lambda where: (where / "images.parquet").write_text("no") and where / "images.parquet", DataError,
         "is no Parquet file"),
        (lambda where: (where / "images.zip").write_text("no") and where / "images.zip", DataError,
         "neither a folder nor a sound tar or zip"),
    ],
)  # fmt: skip
def test_a_source_without_images_is_refused(job, tmp_path, make, error, match):
    with pytest.raises(error, match=match):
        job(make(tmp_path))


def test_an_archive_with_a_password_or_that_leads_out_is_refused(job, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.add(paint(tmp_path / "a.png", 1), "../a.png")
    with pytest.raises(DataError, match="may land outside"):
        job(tmp_path / "bad.tar")
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("a.png", (tmp_path / "a.png").read_bytes())
    data = (tmp_path / "locked.zip").read_bytes()
    at = data.index(b"PK\x01\x02") + 8  # a file's flags: the first says that it is encrypted
    (tmp_path / "locked.zip").write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    with pytest.raises(DataError, match="locked.zip.*(encrypted|password)"):
        job(tmp_path / "locked.zip")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--threshold", "1.5"], "0 <= τ < 1, or 'otsu' but got 1.5"),
        (["--threshold", "nan"], "but got nan"),
        (["--threshold", "half"], "but got 'half'"),
        (["--labels", "folder", "--top", "2"], "--labels and --top exclude each other"),
        (["--classes", "rign"], "Did you mean 'ring'"),
        (["--labels", "column:x"], "needs a .csv or .parquet list"),
        (["--labels", "rign"], "Did you mean 'ring'"),
        (["--study", "bas"], "give --model or --study, not both"),
        (["--chunk", "0"], "chunk must be at least 1"),
        (["--max-bad", "2"], "max_bad is a share"),
        (["--views", "resize"], "for protocols that crop"),
        (["--model", ""], "a model is needed"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(job, photographs, tmp_path, args, match):
    with pytest.raises(UsageError, match=match):
        job(photographs, *args)
    assert not any((tmp_path / "out" / name).exists() for name in ("parts", "contract.json"))


def test_out_inside_the_source_is_refused(job, photographs):
    with pytest.raises(UsageError, match="lies in --source"):
        job(photographs, out=photographs / "found")


def test_two_files_of_one_name_are_refused_before_the_start(job, photographs, tmp_path):
    shutil.copy(photographs / "cross/00.png", photographs / "cross/00.bmp")
    with pytest.raises(UsageError, match="would both be written as cross__00"):
        job(photographs, "--format", "voc")
    assert not (tmp_path / "out/contract.json").exists()
    assert job(photographs, "--format", "coco") == 0


def test_otsu_and_several_boxes_are_recorded_in_the_rows(job, photographs, tmp_path):
    job(photographs, "--threshold", "otsu", "--boxes", "all", "--top", "2")
    rows = rows_of(tmp_path / "out")
    assert len({row["threshold"] for row in rows}) > 2
    assert {row["index"] for row in rows} == set(range(11))
    assert all(row["score"] <= row["class_score"] for row in rows)
    assert len({(row["index"], row["class_id"]) for row in rows}) == 22


def test_nothing_to_do_is_said_and_a_model_that_is_none(final, tmp_path):
    with pytest.raises(UsageError, match="Give --source"):
        localize.main(["--out", str(tmp_path)])
    with pytest.raises(DataError, match="holds no localization"):
        localize.main(["--out", str(tmp_path), "--format", "coco"])
    with pytest.raises(DataError, match="There is no model at"):
        wsol.load_model(tmp_path)
    with pytest.raises(AttributeError, match="it has: .*load_model"):
        wsol.nothing  # noqa: B018
