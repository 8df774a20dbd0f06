"""Listings and what is read by them: each row says what is wrong with it, and nothing else dies of it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.use.conftest import paint
from wsol_pipeline.errors import DataError
from wsol_pipeline.use import sources
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
