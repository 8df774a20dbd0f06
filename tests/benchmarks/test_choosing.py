"""The tables of `benchmarks/choosing.py` from lines small enough to work out by hand."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from wsol_pipeline.errors import UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.training.checkpoint import seal_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def choosing():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("choosing")


def line(set_name, best, **taus):
    """A model whose curve has its peak of 50 at `best`, and falls by 1 point for each hundredth."""
    grid = [n / 100 for n in range(101)]
    curve = [50 - abs(100 * (tau - best)) for tau in grid]
    values = {"max_box_acc_v2": 50.0, "gt_known_loc": 40.0}
    interval = dict.fromkeys(values, (-1.0, 2.0))
    boxes = {
        "name": "boxes", "readout": "cam", "threshold": best, "transferred": values, "oracle": values,
        "cost": dict.fromkeys(values, 0.0), "intervals": interval, "reason": "",
    }  # fmt: skip
    lower = {name: value - 3 for name, value in values.items()}
    other = {**boxes, "name": "evidence", "transferred": lower, "cost": dict.fromkeys(values, -3.0), "reason": "weak"}
    return {"set": set_name, "method": "cam", "costs": [boxes, other], "taus": taus, "curve": curve, "grid": grid}


def lines_of(**factors):
    """A line of each set: Otsu's threshold is the best one divided by the set's factor; the others find 0.5."""
    rest = {"boxes+evidence": 0.5, "boxes+consensus": 0.5, "area:0.3": 0.5}
    return [line(name, 0.4 * factor, otsu=0.4, **rest) for name, factor in factors.items()]


def test_the_table_has_each_selector_with_its_cost_and_says_who_abstains(choosing):
    rows = choosing.table(lines_of(shapes=1)).splitlines()
    assert rows[2] == "| shapes | cam | boxes | cam > 0.400 | 50.0 | 50.0 |  | 40.0 |  |"
    told = "| 47.0 | 50.0 | -3.0 [-1.0, +2.0] | 37.0 | -3.0 [-1.0, +2.0] |"
    assert rows[3] == f"| shapes | cam | evidence (abstains) | cam > 0.400 {told}"


def test_a_price_is_that_of_one_threshold_on_test(choosing):
    (of,) = lines_of(shapes=1)
    assert choosing.price(choosing.medians()["otsu"], of) == pytest.approx(0)
    assert choosing.price(choosing.medians()["boxes+evidence"], of) == pytest.approx(-10)
    assert choosing.medians()["median of otsu, boxes+evidence"](of) == 0.4  # the lower of two


def test_what_is_fit_is_judged_on_the_set_that_it_has_not_seen(choosing):
    lines = lines_of(shapes=1, photographs=0.5)
    found = dict(choosing.combinations(lines))
    # the factor 0.5 of photographs puts 0.2 where 0.4 is best; the factor 1 of shapes puts 0.4 where 0.2 is
    assert found["fit factor × otsu"] == pytest.approx([-20, -20])
    assert "| fit factor × otsu | -20.0 | -20.0 | -20.0 | -20.0 |" in choosing.combination_table(lines)
    assert not any(name.startswith("fit") for name in dict(choosing.combinations(lines[:1])))


def test_studies_of_other_storages_bear_their_names(choosing):
    found = choosing.places(choosing.Options(("cam", "other/runs/bas"), storage="runs"))
    assert found == {"cam": "runs", "bas": "other/runs"}
    with pytest.raises(UsageError, match="Two studies are called 'cam'"):
        choosing.places(choosing.Options(("cam", "other/cam")))


def test_no_benchmark_stands_in_the_place_of_a_module_of_python():
    assert not {path.stem for path in BENCHMARKS.glob("*.py")} & sys.stdlib_module_names


def test_studies_are_asked_for():
    ended = subprocess.run([sys.executable, str(BENCHMARKS / "choosing.py")], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "--studies" in ended.stderr + ended.stdout


@pytest.mark.slow
def test_finished_studies_are_read_once_each_and_stand_in_the_table(choosing, fit, make_config, dataset, tmp_path):
    runs = Store.at(tmp_path / "runs")
    for method in ("cam", "bas"):
        final = fit(make_config(method, epochs=1), method).final
        record = {"schema": SCHEMA, "model": final.uri, "seal": seal_of(final), "data": dataset.uri, "published": None}
        runs.write(f"{method}/{WINNER}", json.dumps(record).encode())
    options = choosing.Options(("cam", "bas"), storage=runs.uri, annotated=9, out=tmp_path / "out")
    choosing.main(options)
    kept = (tmp_path / "out/selectors.jsonl").read_text()
    choosing.main(options)
    assert (tmp_path / "out/selectors.jsonl").read_text() == kept
    names = [cost["name"].split(":")[0] for cost in json.loads(kept.splitlines()[0])["costs"]]
    assert names == [
        "boxes", "otsu", "evidence", "boxes+evidence", "evidence+otsu", "vote", "area", "annotated", "consensus",
        "boxes+consensus",
    ]  # fmt: skip
    assert "| tiny | bas | consensus:cam" in (tmp_path / "out/selectors.md").read_text()
    assert len((tmp_path / "out/cam-annotated.csv").read_text().splitlines()) == 1 + 9
