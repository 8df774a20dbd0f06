"""Listings and what is read by them: each row says what is wrong with it, and nothing else dies of it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.use.conftest import paint
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.use import run, sources
from wsol_pipeline.use.options import LocalizeOptions


def options(source, **more):
    return LocalizeOptions(model="any", source=str(source), **more)


def tell(items, asked):
    """Of each row the bytes that are read, or what is wrong with it."""
    told = []
    for item in items:
        try:
            told.append(sources.read(item, asked))
        except DataError as error:
            told.append(str(error))
    return told


def test_cells_of_parquet_are_bytes_places_or_both_and_others_are_said(tmp_path):
    data = paint(tmp_path / "a.png", 1).read_bytes()
    both = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [{"bytes": data, "path": "elsewhere.png"}, {"bytes": None, "path": "a.png"}, None, {}]
    pq.write_table(pa.table({"image": pa.array(cells, both), "n": [1, 2, 3, 4]}), tmp_path / "t.parquet")
    asked = options(tmp_path / "t.parquet")
    told = tell(sources.listed(asked), asked)
    assert told[:2] == [data, data]
    assert told[2].endswith("but holds None")
    assert told[3].endswith("but holds None")
    asked = options(tmp_path / "t.parquet", image_column="n")
    assert tell(sources.listed(asked), asked)[3].endswith("a struct of bytes and path but holds 4")


def test_a_null_label_or_name_is_none_and_not_the_word(tmp_path):
    table = {"image": [b"a", b"b"], "kind": [None, "ring"], "key": [None, "b"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = sources.listed(options(tmp_path / "t.parquet", id_column="key", labels="column:kind"))
    assert [(item["image_id"], item["labels"]) for item in found] == [("000000000", [""]), ("b", ["ring"])]


def test_a_line_without_a_name_is_a_broken_file_and_takes_no_name(tmp_path):
    data = paint(tmp_path / "a.png", 1).read_bytes()
    (tmp_path / "list.csv").write_text("path,kind\na.png,ring\n,ring\n  ,ring\n")
    asked = options(tmp_path / "list.csv")
    found = sources.listed(asked)
    sources.check_names(found, ["voc"])
    assert tell(found, asked) == [data, *2 * ["the list names no file here"]]


@pytest.mark.parametrize("name", ["", "/", "."])
def test_a_name_that_names_nothing_is_no_failure(name):
    assert sources.file_name(name) in ("", ".")


@pytest.mark.parametrize("source", ["ph [1]", "ph [1]/a.png", "ph [1]/*.png", "p* [[]1]/a.png"])
def test_a_bracket_in_a_name_is_no_pattern(tmp_path, source):
    paint(tmp_path / "ph [1]/a.png", 1)
    (item,) = sources.listed(options(tmp_path / source))
    assert item["uri"] == str(tmp_path / "ph [1]/a.png")
    with pytest.raises(DataError, match="has no image"):
        sources.listed(options(tmp_path / "ph [1]/none.png"))


def test_a_list_is_read_of_a_bucket_and_an_archive_there_is_refused(tmp_path, s3_bucket):
    data = paint(tmp_path / "a.png", 1).read_bytes()
    Store(f"{s3_bucket}/lists").write("a.png", data)
    Store(f"{s3_bucket}/lists").write("all.csv", b"path\na.png\n")
    asked = options(f"{s3_bucket}/lists/all.csv")
    assert tell(sources.listed(asked), asked) == [data]
    with pytest.raises(DataError, match="Cannot read s3://bucket/lists/none.txt"):
        sources.listed(options(f"{s3_bucket}/lists/none.txt"))
    with pytest.raises(UsageError, match="is an archive in a bucket: copy it to a disk"):
        sources.listed(options(f"{s3_bucket}/lists/all.tar"))


def test_an_image_that_is_listed_twice_is_two_rows_and_has_no_file_of_its_own(tmp_path):
    paint(tmp_path / "a.png", 1)
    (tmp_path / "list.txt").write_text("a.png\na.png\n")
    found = sources.listed(options(tmp_path / "list.txt"))
    with pytest.raises(UsageError, match=r"a.png is listed twice: its rows would both be written as a"):
        sources.check_names(found, ["voc"])
    store, asked = Store.at(tmp_path / "out"), options(tmp_path / "list.txt", extend=True)
    contract = {"counts": [1], "chunk": 4, "listing": sources.fingerprint(found[:1])}
    items, grown, _ = run._grown(store, asked, contract, found[:1], found)
    assert ([item["index"] for item in items], grown["counts"]) == ([0, 1], [1, 1])
    with pytest.raises(UsageError, match="lacks 1 of the images"):
        run._grown(store, asked, grown, items, found[:1])
