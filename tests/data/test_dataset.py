"""Opening a dataset: its splits, and shards that are not what the manifest says."""

import json
import shutil

import numpy as np
import pytest

from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.errors import DataError, ProtocolError, UsageError
from wsol_pipeline.protocol import Role, require_searchable


@pytest.fixture
def copy(tiny, tmp_path):
    """A dataset that a test may break."""
    shutil.copytree(tiny.uri, tmp_path / "copy")
    return open_dataset(str(tmp_path / "copy"))


def test_splits(tiny):
    assert tiny.classes == ("ant", "bee", "cat")
    assert not tiny.multilabel
    assert [split.role for split in (tiny.train, tiny.val, tiny.test())] == list(Role)
    assert tiny.val.box_convention == "inclusive0"
    assert tiny.val.ids == [f"val-{number:04d}" for number in range(11)]
    assert tiny.val.labels.tolist() == [number % 3 for number in range(11)]
    assert {int(name[-4:]) % 3 == label for name, label in zip(tiny.train.ids, tiny.train.labels, strict=True)} == {
        True
    }


def test_only_val_can_be_searched(tiny):
    config = ReadConfig(resize_size=40, image_size=32)
    require_searchable(eval_rows(tiny.val, config, "resize", 4), "a test")
    with pytest.raises(ProtocolError, match="'test'"):
        require_searchable(eval_rows(tiny.test(), config, "resize", 4), "a test")


def test_rows_come_in_the_order_they_are_asked_for(tiny):
    rows = np.random.default_rng(0).permutation(150)[:70]
    read = tiny.train.shard_set().read(rows, ["id"])["id"].to_pylist()
    assert read == [tiny.train.ids[row] for row in rows]


def test_windows_of_large_images_have_fewer_rows(tiny, monkeypatch):
    """150 rows of about 0.9 KB: 4096 of them would be 4 MB."""
    stored = sum(shard.bytes for shard in tiny.train.shards)
    assert tiny.train.plan(16, seed=0).window_rows == 4096
    monkeypatch.setattr("wsol_pipeline.data.dataset.WINDOW_BYTES", stored)
    assert tiny.train.plan(16, seed=0).window_rows == 144
    monkeypatch.setattr("wsol_pipeline.data.dataset.WINDOW_BYTES", 1000)
    assert tiny.train.plan(16, seed=0).window_rows == 32  # a row group is read whole


def test_a_study_works_without_the_test_shards(copy):
    shutil.rmtree(f"{copy.uri}/test")
    assert len(copy.train.ids) == 150
    assert len(copy.val.ids) == 11
    with pytest.raises(DataError, match=r"test/00000.parquet is missing"):
        _ = copy.test().ids


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def alter(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path):
    """Another shard of the same length."""
    data = path.read_bytes()
    path.write_bytes(data[:4] + data[4:-4][::-1] + data[-4:])


@pytest.mark.parametrize("harm", [truncate, alter, swap])
def test_a_harmed_shard_is_refused_by_name(copy, tmp_path, harm):
    harm(tmp_path / "copy/val/00000.parquet")
    with pytest.raises(DataError, match=r"val/00000.parquet (has|is not what was imported)"):
        copy.val.shard_set().read_all(["id", "image"])
    assert len(copy.train.ids) == 150  # the others are sound


def test_a_shard_that_changes_later_is_refused(copy, tmp_path):
    assert len(copy.val.ids) == 11
    alter(tmp_path / "copy/val/00000.parquet")
    with pytest.raises(DataError, match="not what was imported"):
        copy.val.shard_set().read_all(["image"])


def test_no_dataset(tmp_path):
    with pytest.raises(DataError, match=r"no manifest.json"):
        open_dataset(str(tmp_path))


def edit(dataset, change):
    path = f"{dataset.uri}/manifest.json"
    manifest = json.loads(open(path).read())  # noqa: PTH123, SIM115
    change(manifest)
    with open(path, "w") as file:  # noqa: PTH123
        json.dump(manifest, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=99), "format version 99; this code reads 3"),
        (lambda m: m.pop("classes"), "broken"),
        (lambda m: m.update(box_convention="centre"), "'centre'; known: inclusive0"),
        (lambda m: m["splits"]["val"].pop("shards"), "broken"),
    ],
)
def test_a_wrong_manifest(copy, change, message):
    edit(copy, change)
    with pytest.raises(DataError, match=message):
        open_dataset(copy.uri)


SHARD = ("splits", "val", "shards", 0)


def put(*path):
    """An edit that puts the last of `path` where the others lead."""

    def change(manifest):
        for key in path[:-2]:
            manifest = manifest[key]
        manifest[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(*SHARD, "name", "../../../etc/passwd"), "is no shard of val"),
        (put(*SHARD, "name", "/etc/passwd"), "is no shard of val"),
        (put(*SHARD, "name", "s3://other/x"), "is no shard of val"),
        (put(*SHARD, "name", "train/00000.parquet"), "is no shard of val"),
        (put(*SHARD, "bytes", 2**62), "sizes of val/00000.parquet cannot be"),
        (put(*SHARD, "bytes", -5), r"shards\[0\].bytes is -5"),
        (put(*SHARD, "bytes", "9"), r"bytes must be of type int but is '9'"),
        (put(*SHARD, "bytes", True), r"bytes must be of type int but is 'True'"),
        (put(*SHARD, "rows", 500), "rows of val do not add up"),
        (put("splits", "val", "rows", 10**6), "rows of val do not add up"),
        (put("splits", "val", "rows", -1), "rows is -1"),
        (put("splits", "val", "rows", float("inf")), "rows must be of type int but is 'inf'"),
        (put("splits", "val", "rows", float("nan")), "rows must be of type int but is 'nan'"),
        (put("splits", "val", "masks", 12), "rows of val do not add up"),
        (put("splits", "val", "shards", []), "rows of val do not add up"),
        (put("splits", "val", "shards", {}), "shards must be of type list"),
        (put("splits", "val", None), "splits.val must be of type dict but is 'None'"),
        (put("splits", "more", {}), "'more' is not a valid Role"),
        (put("splits", "val", "fingerprint", "x"), "fingerprint of val is none"),
        (put("splits", "train", "per_class", [1]), "classes of train do not add up"),
        (put("splits", "train", "per_class", [1, 1, 1]), "classes of train do not add up"),
        (put(*SHARD, "footer_bytes", 0), "sizes of val"),
        (put(*SHARD, "footer_bytes", -9), "footer_bytes is -9"),
        (put(*SHARD, "footer_sha256", None), "footer_sha256 must be of type str"),
        (put(*SHARD, "sha256", "g" * 64), "a SHA-256 of val/00000.parquet is none"),
        (put("classes", []), "classes must be there, each once"),
        (put("classes", ["a", "a", "b"]), "classes must be there, each once"),
        (put("classes", [1, 2, 3]), r"classes\[0\] must be of type str but is '1'"),
        (put("classes", ["a"]), "do not add up"),
        (put("classes", "abc"), "classes must be of type list but is 'abc'"),
        (put("multilabel", "no"), "multilabel must be of type bool but is 'no'"),
        (put("name", ["x"]), "name must be of type str"),
        (put("quarantine", {"val": "1"}), "quarantine.val must be of type int"),
        (put("zzz", 1), "unknown field 'zzz'"),
        (lambda m: m.pop("source"), "lacks 'source'"),
    ],
)
def test_a_manifest_that_was_edited_is_refused_in_a_line(copy, change, said):
    edit(copy, change)
    with pytest.raises(DataError, match=rf"The manifest of .* is broken \(.*{said}.*\): import it again") as caught:
        open_dataset(copy.uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version":' + "9" * 5000 + "}", "[]", "null", '"x"', "\x00", "7"])
def test_what_is_no_manifest_is_refused_in_a_line(copy, tmp_path, text):
    (tmp_path / "copy/manifest.json").write_text(text)
    with pytest.raises(DataError, match="is broken"):
        open_dataset(copy.uri)


def test_an_empty_manifest(copy, tmp_path):
    (tmp_path / "copy/manifest.json").write_bytes(b"")
    with pytest.raises(DataError, match="broken"):
        open_dataset(copy.uri)


def test_a_split_that_is_not_there_is_named(copy):
    edit(copy, lambda m: m["splits"].pop("val"))
    with pytest.raises(DataError, match="no split 'val'; it has: train, test"):
        _ = open_dataset(copy.uri).val


def test_a_place_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="gs://"):
        open_dataset("gs://bucket/x")
