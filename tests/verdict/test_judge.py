"""Who stands in the table of a final evaluation, and who must not."""

import dataclasses
import io
import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from wsol_pipeline.console.screens import print_verdict
from wsol_pipeline.errors import DataError, MismatchError
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import Choice, transferred
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import seal_of
from wsol_pipeline.verdict.judge import Verdict
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import (
    Contender,
    Row,
    against_box,
    contenders,
    finished_study,
    paper_figures,
    require_comparable,
    require_named,
    same_dataset,
)
from wsol_pipeline.verdict.score import score

FIRST = {"model": "/runs/a/first", "seal": "b" * 64, "preset": "row"}
WINNER = {"study": "1", "model": "/runs/a/final", "seal": "a" * 64, "published": FIRST}


def test_others_stand_first_then_the_published_setting_then_the_winner():
    found = contenders({"a": WINNER, "b": WINNER | {"model": "/runs/b/final", "published": None}})
    assert [(c.label, c.study, c.final.uri, c.preset) for c in found] == [
        ("b: winner", "b", "/runs/b/final", None),
        ("a: published", "a", "/runs/a/first", "row"),
        ("a: winner", "a", "/runs/a/final", None),
    ]


def test_a_winner_that_is_the_published_setting_is_judged_once():
    (found,) = contenders({"a": WINNER | {"model": "/runs/a", "published": FIRST | {"model": "/runs/a"}}})
    assert (found.label, found.final.uri, found.preset) == ("a: winner, as published", "/runs/a", "row")


def model(rules, fingerprint="f"):
    return SimpleNamespace(protocol=rules, description={"dataset": fingerprint})


def test_one_table_holds_one_evaluation():
    judged = contenders({"a": WINNER})
    data = SimpleNamespace(uri="data", fingerprint="f")
    same = [model(protocol("wsol-v1", 64, 72))] * 2
    require_comparable(data, judged, same)
    with pytest.raises(DataError, match="a was tuned under bas-ext at 64 px, a under wsol-v1 at 64 px"):
        require_comparable(data, judged, [same[0], model(protocol("bas-ext", 64, 72))])


def verdict(rows, objective, rules):
    return Verdict(EvaluateOptions(("a",)), rows, objective, rules, 9, 0, "gallery.png", None, {}, None)


def test_what_a_paper_reports_stands_beside_what_was_measured_alike(capsys):
    preset = "bas-ext/table1/cub/resnet50"
    figures = paper_figures(preset, protocol("bas-ext", 64, 72))
    assert figures == {"top1_loc": 76.75, "top5_loc": 90.04, "gt_known_loc": 95.41}
    assert paper_figures(preset, protocol("wsol-v1", 64, 72)) == {}
    assert paper_figures(None, protocol("bas-ext", 64, 72)) == {}
    measured = dict.fromkeys(("max_box_acc_v2", "gt_known_loc", "top1_loc", "top5_loc"), 51.25)
    ours = Row("a: winner", "1 > 0.1", measured, measured, measured, {})
    theirs = Row("a: published", "4 > 0.1", measured, measured, measured, {}, preset, figures)
    print_verdict(verdict([theirs, ours], "max_box_acc_v2", "bas-ext"))
    v2, gt_known, top1, top5 = capsys.readouterr().out.split("test images")[1:]
    assert "paper" not in v2  # the row has no figure for it
    for table, figure in ((gt_known, "95.4"), (top1, "76.8"), (top5, "90.0")):
        lines = [line.split() for line in table.splitlines()]
        assert [line[-2] for line in lines if "published" in line and "a:" in line] == [figure]
        assert not any(figure in line for line in lines if "winner" in line)
        assert f"paper: {preset}, on its own data" in table


def test_a_paper_of_other_data_is_flagged_in_the_terminal(capsys):
    figures = paper_figures("bas-ext/table1/cub/resnet50", protocol("bas-ext", 64, 72))
    measured = {"gt_known_loc": 51.25, "top1_loc": 40.0}
    row = Row("a: published", "4 > 0.1", *[measured] * 3, {}, "bas-ext/table1/cub/resnet50", figures, other_data=True)
    print_verdict(verdict([row], "gt_known_loc", "bas-ext"))
    told = capsys.readouterr().out
    assert told.count("NOT THE PAPER'S DATA: ") == told.count("test images") == 2
    assert "on its own data, which these are not" in told


@pytest.mark.parametrize(("known", "other"), [(["cub"], False), ([], True), (None, True)])
def test_a_winner_knows_whether_its_data_are_the_papers(known, other):
    preset = "bas-ext/table1/cub/resnet50"
    winner = {**WINNER, "model": "/runs/a", "published": {**FIRST, "model": "/runs/a", "preset": preset}}
    winner |= {} if known is None else {"paper_data": known}
    winner |= {"confirmed": {"trials": [0, 3, 4]}}
    (found,) = contenders({"a": winner})
    assert (found.other_data, found.confirmations) == (other, (3, 4))


def test_no_papers_figure_of_another_split_stands_beside_test():
    assert paper_figures("mldfr/table14/voc07/vgg16_bn", protocol("mldfr-multi")) == {}
    assert paper_figures("mldfr/text/voc07/vgg16_bn", protocol("mldfr-multi"))
    assert paper_figures("b-cam/table3/openimages-val/resnet50/bcam-p", protocol("wsol-mask")) == {}


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (46.0, 55.0, ""),
        (44.0, 55.0, "The 95 % interval holds the centred box (45.0 %): nothing says that it localizes better"),
        (40.0, 44.0, "A centred box is better (45.0 %): this model localizes worse than a box in the middle."),
    ],
)
def test_a_winner_stands_beside_the_box_in_the_middle(low, high, told, capsys):
    box = Row("centred box", "area 0.5", *[{"gt_known_loc": 45.0}] * 3, {})
    of_winner = {"gt_known_loc": 50.0, "top1_loc": 30.0, "cls_top1": 60.0}
    winner = Row("a: winner", "1 > 0.1", *[of_winner] * 3, {"transferred": {"gt_known_loc": (low, high)}})
    print_verdict(verdict([box, winner], "gt_known_loc", "wsol-v1"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a: winner on test")]
    beside = "GT-known Loc 50.0 %; centred box GT-known Loc 45.0 %, Top-1 Loc 30.0 %, Top-1 Cls 60.0 %."
    assert line.startswith(f"a: winner on test: {beside} {told}".strip())
    assert (line.removesuffix(beside) != line) == (told == "")


@pytest.mark.parametrize(
    ("deviation", "told"),
    [(2.0, ""), (2.5, "The 95 % interval holds the centred box (45.0 %)"), (0.0, "")],
)
def test_a_mean_over_seeds_has_the_interval_of_a_mean(deviation, told):
    """t of 2 degrees of freedom is 4.303: half of the interval of three seeds is 2.484 deviations."""
    box = Row("centred box", "area 0.5", *[{"gt_known_loc": 45.0}] * 3, {})
    spread = {"transferred": {"gt_known_loc": deviation}}
    mean = Row("a", "1 > 0.1", *[{"gt_known_loc": 50.0}] * 3, {}, seeds=3, deviations=spread)
    found = against_box(mean, box, "gt_known_loc")
    assert found.startswith(told)
    assert bool(found) == bool(told)


def test_long_names_leave_the_numbers_whole(capsys):
    row = Row("a-long-name-of-a-study" * 3, "a-long-readout" * 5, *[{"gt_known_loc": 51.25}] * 3, {})
    print_verdict(verdict([row], "gt_known_loc", "wsol-v1"))
    assert capsys.readouterr().out.count(" 51.2 ") == 3


def test_data_that_was_imported_anew_is_refused():
    data = SimpleNamespace(uri="data", fingerprint="other")
    with pytest.raises(DataError, match="is not the data that a was tuned on .any more.: its fingerprint is other"):
        require_comparable(data, contenders({"a": WINNER}), [model(protocol("wsol-v1", 64, 72))] * 2)


def test_a_model_that_the_study_has_not_named_is_not_judged(fit, make_config):
    final = fit(make_config()).final
    named = Contender("a: winner", "a", final, None, "1", seal_of(final))
    require_named(named, {"study": "1"})
    with pytest.raises(MismatchError, match="is of study 2, not of 'a'"):
        require_named(named, {"study": "2"})
    with pytest.raises(MismatchError, match="holds another model .* than study 'a' has named"):
        require_named(dataclasses.replace(named, seal="0" * 64), {"study": "1"})


def test_a_study_of_an_older_version_is_refused_with_the_way_on(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/winner.json").write_text('{"model": "/runs/a/final", "published": null}')
    told = r"'a' was finished by another version of this code .format None; this one has 3.: judge it with that version"
    with pytest.raises(DataError, match=told):
        finished_study(Store.at(tmp_path), "a")


def test_a_winner_is_where_its_storage_is_today(tmp_path):
    record = {
        "schema": 3,
        "model": "a/trials/0001/f",
        "data": "data/synthetic",
        "published": {"model": "a/trials/0000/f"},
    }
    for place, data in (("one", "data/synthetic"), ("two", "/elsewhere/cub"), ("three", "s3://bucket/cub")):
        Store.at(tmp_path / place / "a").write("winner.json", json.dumps(record | {"data": data}).encode())
        found = finished_study(Store.at(tmp_path / place), "a")
        assert found["model"] == f"{tmp_path}/{place}/a/trials/0001/f"
        assert found["published"] == {"model": f"{tmp_path}/{place}/a/trials/0000/f"}
        assert found["data"] == (f"{tmp_path}/one/{data}" if place == "one" else data)


def test_a_dataset_that_was_moved_is_named_anew(dataset, tmp_path):
    winners = {"a": {"data": str(tmp_path / "gone")}}
    with pytest.raises(DataError, match=r"There is no dataset at .*/gone .* If it was moved, say where to by --data"):
        same_dataset(winners)
    assert same_dataset(winners, dataset.uri) == dataset


def test_an_evaluation_keeps_every_image_its_counts_and_some_pictures(fit, make_config, reading, dataset):
    final = fit(make_config()).final
    options = EvaluateOptions(cache_dir=reading.cache_dir, batch_size=7)
    result, files = score(Contender("x", "x", final), dataset, options, "cpu")
    (row,) = result["rows"]
    cases = pq.read_table(io.BytesIO(files["images-0.parquet"])).to_pylist()
    assert [case["row"] for case in cases] == list(range(24))
    hits = sum(case["hit"] for case in cases)
    assert 100 * hits / 24 == pytest.approx(row["transferred"]["gt_known_loc"])
    assert 0 < hits < 24
    assert {(case["width"], case["height"]) for case in cases} == {(40, 40)}
    for metric in ("max_box_acc_v2", "gt_known_loc", "top1_loc"):
        mean = sum(case[metric] for case in cases) / 24
        assert 100 * mean == pytest.approx(row["transferred"][metric])
    assert [case["gt_known_loc"] for case in cases] == [case["hit"] for case in cases]
    assert (
        transferred(
            Counts.from_dict(json.loads(json.dumps(result["counts"][0]))),
            Choice.from_dict(result["description"]["choice"]),
        ).items()
        <= row["transferred"].items()
    )
    pictures = json.loads(files["pictures.json"])
    assert [picture["group"] for picture in pictures] == ["best"] * 4 + ["median"] * 4 + ["worst"] * 4
    assert [p["iou"] for p in pictures[:4]] == sorted((case["iou"] for case in cases), reverse=True)[:4]
    assert pictures[0]["truth"] == cases[pictures[0]["row"]]["truth"]
