"""Import: what is stored, what is left out, what is refused; the same bytes however it was made."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import import_dataset, write_shard
from wsol_pipeline.data.schema import schema
from wsol_pipeline.errors import DataError, LeaseLostError, ResourceError, UsageError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store


def files(where) -> dict[str, bytes]:
    return {name: Store.at(where).read(name) for name in Store.at(where).list()}


def changed(source: Source, number: int, **fields) -> Source:
    """`source` with other fields in its `number`-th row."""
    rows = list(source.rows)
    rows[number] = replace(rows[number], **fields)
    return replace(source, rows=rows)


def test_shards_hold_the_rows_as_they_came(tiny, make_source):
    rows = {row.id: row for row in make_source().rows}
    for split in (tiny.train, tiny.val, tiny.test()):
        for shard in split.shards:
            table = pq.read_table(f"{tiny.uri}/{shard.name}")
            assert table.schema == schema(split.role)
            for stored in table.to_pylist():
                row = rows.pop(stored["id"])
                assert stored["image"] == row.image
                assert (stored["width"], stored["height"]) == row.size
                assert tuple(stored["labels"]) == row.labels
                if split.role is not Role.TRAIN:
                    assert tuple(map(tuple, stored["boxes"])) == row.boxes
    assert not rows


def test_training_shards_have_no_place_for_boxes(tiny):
    for shard in tiny.train.shards:
        names = pq.read_schema(f"{tiny.uri}/{shard.name}").names
        assert names == ["id", "image", "width", "height", "labels"]


def test_the_manifest_knows_of_masks(tiny, write, make_source, png, tmp_path):
    assert not tiny.val.has_masks
    masked = write(tmp_path, changed(make_source(), 155, masks=(png(),), image=make_source().rows[0].image, size=None))
    assert (masked.val.info.masks, masked.val.has_masks, masked.test().has_masks) == (1, True, False)


def test_the_manifest_knows_which_rows_can_be_judged_by_boxes(tiny, write, make_source, png, tmp_path):
    assert (tiny.train.info.boxes, tiny.val.info.boxes, tiny.val.has_boxes) == (0, tiny.val.num_rows, True)
    source = make_source()
    masked = changed(source, 155, masks=(png(),), image=source.rows[0].image, size=None, boxes=(), box_labels=())
    found = write(tmp_path / "masked", masked)
    assert (found.val.info.boxes, found.val.has_boxes, found.test().has_boxes) == (tiny.val.num_rows - 1, False, True)
    of_two = replace(changed(source, 154, labels=(0, 1)), multilabel=True)
    assert not write(tmp_path / "several", of_two).val.has_boxes  # its box is of class 1


def test_files_are_plain_parquet_in_small_row_groups(tiny):
    footer = pq.read_metadata(f"{tiny.uri}/{tiny.train.shards[0].name}")
    assert footer.row_group(0).num_rows == 32
    assert {footer.row_group(0).column(i).compression for i in range(footer.num_columns)} == {"UNCOMPRESSED"}


def test_the_manifest_counts(tiny):
    assert [shard.name for shard in tiny.train.shards] == [
        f"train/{n:05d}.parquet" for n in range(len(tiny.train.shards))
    ]
    assert len(tiny.train.shards) > 1
    assert sum(shard.rows for shard in tiny.train.shards) == tiny.train.num_rows == 150
    assert tiny.train.info.per_class == (50, 50, 50)
    assert tiny.val.info.per_class == (4, 4, 3)
    assert tiny.manifest.quarantine == {"train": 0, "val": 0, "test": 0}


def test_training_rows_are_shuffled_and_others_are_not(tiny):
    assert tiny.train.ids != sorted(tiny.train.ids)
    assert tiny.val.ids == sorted(tiny.val.ids)


def test_a_finished_dataset_is_left_alone(tiny, make_source):
    before = files(tiny.uri)
    manifest = import_dataset(make_source(train=60), Store(tiny.uri), name="tiny", origin={"importer": "test"})
    assert manifest == tiny.manifest
    assert files(tiny.uri) == before


def test_a_place_that_cannot_be_written_is_told_before_a_source_that_is_refused(make_source, tmp_path):
    """What is wrong with the source is kept there."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        import_dataset(make_source(train=0), Store.at(tmp_path / "file/out"), name="none", origin={})


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"\0" * p.stat().st_size)]
)
def test_a_shard_that_was_damaged_is_written_again(tiny, write, make_source, tmp_path, harm):
    write(tmp_path)
    harm(tmp_path / "train/00001.parquet")
    reports = []
    write(tmp_path, on_shard=lambda report, done, total: reports.append((report.shard["name"], done, total)))
    assert reports == [("train/00001.parquet", 1, 1)]
    assert files(tmp_path) == files(tiny.uri)


def test_a_damaged_shard_that_the_source_does_not_give_again_is_said(write, make_source, jpeg, tmp_path):
    write(tmp_path)
    (tmp_path / "val/00000.parquet").unlink()
    with pytest.raises(DataError, match="val/00000.parquet is damaged, and .* has changed since"):
        write(tmp_path, changed(make_source(), 155, image=jpeg(7)))


def test_an_import_that_may_not_be_alone_any_more_writes_no_manifest(write, tmp_path):
    def lost():
        raise LeaseLostError("another took over")

    with pytest.raises(LeaseLostError):
        write(tmp_path, check=lost)
    assert not (tmp_path / "manifest.json").exists()


def test_another_dataset_is_not_overwritten(tiny, make_source):
    with pytest.raises(UsageError, match="holds another dataset"):
        import_dataset(make_source(), Store(tiny.uri), name="tiny", origin={"importer": "other"})


def test_a_killed_import_keeps_its_whole_shards(tiny, write, make_source, tmp_path, monkeypatch):
    written = []

    def killed_at_the_third(job):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(job.name)
        return write_shard(job)

    with monkeypatch.context() as patch:
        patch.setattr("wsol_pipeline.data.ingest.write_shard", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path)
    (tmp_path / written[1]).write_bytes(b"half a shard")
    of_another_version = {"digest": "", "shard": None}
    (tmp_path / "progress" / "train-00002.parquet.json").write_text(json.dumps(of_another_version))
    reports = []
    write(tmp_path, on_shard=lambda report, done, total: reports.append(report))
    assert [report.kept for report in reports[:3]] == [True, False, False]
    assert files(tmp_path) == files(tiny.uri)


def test_a_changed_annotation_is_not_taken_for_a_shard_of_before(write, make_source, tmp_path, monkeypatch):
    def killed_before_the_manifest(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wsol_pipeline.data.ingest._manifest", killed_before_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path)
    kept = []
    source = changed(make_source(), 155, labels=(0,))  # a row of val, of class 2
    write(tmp_path, source, on_shard=lambda report, done, total: kept.append((report.shard["name"], report.kept)))
    assert [name for name, was_kept in kept if not was_kept] == ["val/00000.parquet"]


def test_the_fingerprint_is_of_content_not_of_files(tiny, write, make_source, tmp_path):
    source = make_source()
    other = write(tmp_path / "a", replace(source, rows=list(source.rows)[::-1]), shard_bytes=10**9)
    assert len(other.train.shards) < len(tiny.train.shards)
    assert other.fingerprint == tiny.fingerprint


@pytest.mark.parametrize(
    ("number", "fields"),
    [
        (3, {"labels": (1,)}),
        (3, {"id": "another"}),
        (150, {"boxes": ((1.0, 2.0, 20.0, 25.5),)}),
    ],
)
def test_the_fingerprint_changes_with_any_row(tiny, write, make_source, tmp_path, number, fields):
    other = write(tmp_path, changed(make_source(), number, **fields))
    splits = [(tiny.train, other.train), (tiny.val, other.val), (tiny.test(), other.test())]
    same = [mine.fingerprint == its.fingerprint for mine, its in splits]
    assert same.count(False) == 1
    assert other.fingerprint != tiny.fingerprint


NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"boxes": ((NAN, 1.0, 2.0, 3.0),), "box_labels": (0,)}, "not finite"),
        ({"boxes": ((9.0, 1.0, 2.0, 3.0),), "box_labels": (0,)}, "reversed"),
        ({"boxes": ((1.0, 1.0, 400.0, 3.0),), "box_labels": (0,)}, "not on the image of"),
        ({"boxes": ((-1.0, 1.0, 4.0, 3.0),), "box_labels": (0,)}, "not on the image of"),
        ({"boxes": (), "box_labels": ()}, "neither a box nor a mask"),
        ({"box_labels": (9,)}, "box labels"),
        ({"size": (41, 99)}, "its annotation is for 41x99"),
        ({"labels": (3,)}, "not classes 0..2"),
        ({"labels": ()}, "not classes 0..2"),
        ({"image": b"nothing"}, "not a readable JPEG, PNG, WEBP or BMP"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason(write, make_source, tmp_path, fields, reason):
    dataset = write(tmp_path, changed(make_source(), 150, **fields), max_bad=0.1)
    (row,) = json.loads((tmp_path / "quarantine.json").read_bytes())
    assert row["id"] == "val-0000"
    assert row["split"] == "val"
    assert reason in row["reason"]
    assert dataset.val.num_rows == 10
    assert "val-0000" not in dataset.val.ids
    assert dataset.manifest.quarantine == {"train": 0, "val": 1, "test": 0}


def test_missing_and_truncated_files_are_quarantined(write, make_source, jpeg, tmp_path):
    (tmp_path / "short.jpg").write_bytes(jpeg(0)[:-100])
    source = changed(make_source(), 0, image=tmp_path / "gone.jpg")
    source = changed(source, 1, image=tmp_path / "short.jpg", size=None)
    dataset = write(tmp_path / "out", source, max_bad=0.1)
    reasons = {row["id"]: row["reason"] for row in json.loads((tmp_path / "out/quarantine.json").read_bytes())}
    assert "No such file" in reasons["train-0000"]
    assert "cannot be decoded" in reasons["train-0001"]
    assert dataset.train.info.per_class == (49, 49, 50)


def test_too_many_bad_rows_make_no_dataset(write, make_source, tmp_path):
    with pytest.raises(DataError, match=r"1 of 168 rows are bad, over --max-bad 0.001. The first is 'train-0005'"):
        write(tmp_path, changed(make_source(), 5, image=b""))
    assert not (tmp_path / "manifest.json").exists()
    assert "not a readable" in (tmp_path / "quarantine.json").read_text()


def test_ids_must_be_unique_over_all_splits(write, make_source, tmp_path):
    with pytest.raises(DataError, match="1 ids come more than once: train-0000"):
        write(tmp_path, changed(make_source(), 160, id="train-0000"))


def test_a_class_without_images_is_refused(write, make_source, tmp_path):
    with pytest.raises(DataError, match="1 classes have no training image: dog"):
        write(tmp_path, replace(make_source(), classes=("ant", "bee", "cat", "dog")))


def test_a_split_without_images_is_refused(write, make_source, tmp_path):
    with pytest.raises(DataError, match="1 splits have no image: test"):
        write(tmp_path, make_source(test=0))


def test_masks_of_several_instances_become_one(write, make_source, tmp_path):
    halves = np.zeros((2, 30, 40), np.uint8)
    halves[0, :, :10] = 255
    halves[1, :10] = 1
    paths = tuple(tmp_path / f"{number}.png" for number in range(3))
    for path, mask in zip(paths, [*halves, halves[0] * 0], strict=True):
        Image.fromarray(mask).save(path)
    source = changed(make_source(), 150, boxes=(), box_labels=(), masks=paths[:2], ignore=paths[2])
    write(tmp_path / "out", source)
    (stored,) = pq.read_table(tmp_path / "out/val/00000.parquet", filters=[("id", "=", "val-0000")]).to_pylist()
    assert stored["boxes"] == []
    assert np.array_equal(np.array(Image.open(io.BytesIO(stored["mask"]))) > 0, halves.any(0))
    assert stored["ignore"] == paths[2].read_bytes()
