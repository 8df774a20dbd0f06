"""Who stands in the table of a final evaluation, and who must not."""

from types import SimpleNamespace

import pytest

from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.training.verdict import _contenders, _require_comparable

WINNER = {"model": "/runs/a/final", "published": {"model": "/runs/a/first", "preset": "row"}}


def test_others_stand_first_then_the_published_setting_then_the_winner():
    found = _contenders({"a": WINNER, "b": {"model": "/runs/b/final", "published": None}})
    assert [(c.label, c.study, c.final.uri, c.preset) for c in found] == [
        ("b: winner", "b", "/runs/b/final", None),
        ("a: published", "a", "/runs/a/first", "row"),
        ("a: winner", "a", "/runs/a/final", None),
    ]


def model(rules, fingerprint="f"):
    return SimpleNamespace(protocol=rules, description={"dataset": fingerprint})


def test_one_table_holds_one_evaluation():
    contenders = _contenders({"a": WINNER})
    data = SimpleNamespace(uri="data", fingerprint="f")
    same = [model(protocol("wsol-v1", 64, 72))] * 2
    _require_comparable(data, contenders, same)
    with pytest.raises(DataError, match="a was tuned under bas-ext at 64 px, a under wsol-v1 at 64 px"):
        _require_comparable(data, contenders, [same[0], model(protocol("bas-ext", 64, 72))])


def test_data_that_was_imported_anew_is_refused():
    data = SimpleNamespace(uri="data", fingerprint="other")
    with pytest.raises(DataError, match="is not the data any more"):
        _require_comparable(data, _contenders({"a": WINNER}), [model(protocol("wsol-v1", 64, 72))] * 2)
