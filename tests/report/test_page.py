"""The page as a browser reads it: whole, closed to the network, and deaf to names that are markup."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import optuna
import pytest
from optuna.trial import TrialState

from wsol_pipeline.report import charts
from wsol_pipeline.report.facts import Several
from wsol_pipeline.report.page import render
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.standings import Standing

EVIL = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(facts):
    return Reader(render(facts, "runs"))


def test_the_page_needs_nothing_beside_it(page):
    links = [a[key] for _, a in page.elements for key in ("src", "href", "xlink:href") if key in a]
    assert links
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert not page.of("link")
    assert not page.of("script")


def test_what_would_turn_a_line_around_is_shown_as_its_escape(facts):
    """A right-to-left override in the id of an image, which hides what a file is."""
    cases = [replace(case, id=f"photo\u202egnp{n}.exe") for n, case in enumerate(facts.main.lines[-1].cases)]
    lines = (*facts.main.lines[:-1], replace(facts.main.lines[-1], cases=tuple(cases)))
    pictures = tuple({**picture, "id": "photo\u202egnp.exe"} for picture in facts.main.pictures)
    main = replace(facts.main, lines=lines, pictures=pictures)
    text = render(replace(facts, subjects=(*facts.subjects[:-1], main)), "runs")
    assert "\u202e" not in text
    assert "\\u202egnp" in text


def test_ids_are_unique_and_anchors_arrive(page):
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    assert all(a["href"][1:] in ids for a in page.of("a"))


def test_charts_take_the_colours_of_the_page(page, facts):
    svg = charts.sensitivity(facts.searches[0], "alpha", "max_box_acc_v2").svg
    assert "var(--c1)" in svg
    assert "currentColor" in svg
    assert not any(shade in svg for shade in charts.PAGE_COLOURS)


def test_no_secret_is_on_the_page(facts):
    told, winner = "postgresql://me:hunter2@db/studies password=hunter2", facts.main
    pictures = tuple({**picture, "class": told, "id": told} for picture in winner.pictures)
    lines = tuple(replace(line, row=replace(line.row, readout=told)) for line in winner.lines)
    evaluation = {**winner.evaluation, "provenance": {"command": told, "api_token": "hunter2"}, "device": told}
    winner = replace(winner, pictures=pictures, lines=lines, evaluation=evaluation, description=dict.fromkeys(
        winner.description, told))  # fmt: skip
    failed = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"failure": {"kind": "data", "message": told}})
    search = replace(facts.searches[0], trials=(*facts.searches[0].trials, failed), told=told)
    page = render(replace(facts, subjects=(*facts.subjects[:2], winner), searches=(search,)), told)
    assert "hunter2" not in page
    assert page.count("postgresql://***@db/studies password=***") >= 8


def test_names_that_are_markup_are_text(facts):
    winner = facts.main
    pictures = tuple({**picture, "class": EVIL, "id": f'"{EVIL}'} for picture in winner.pictures)
    lines = tuple(replace(line, row=replace(line.row, label=EVIL, readout=EVIL)) for line in winner.lines)
    read = Reader(
        render(replace(facts, subjects=(*facts.subjects[:2], replace(winner, pictures=pictures, lines=lines))), EVIL)
    )
    assert not read.of("script")
    assert read.text.count(EVIL) >= 6  # label, readout, class, failure, data, storage


def test_figures_of_test_are_those_of_the_evaluation(page):
    assert "The winner of a reaches 71.8 % MaxBoxAccV2 on 6 test images (95 % interval 68.8 to 75.0)" in page.text
    assert "A centred box has 40.0 %." in page.text
    assert "+19.3 from training" in page.text
    assert "Not evaluated on test yet" not in page.text


def test_a_narrow_page_has_room_for_figures(facts):
    """Readouts stand below the models' names there: in a column of their own they leave no room for a figure."""
    first, second = r'<small class="narrow">([^<]+)</small></td>', r'<td class="wide">([^<]+)</td>'
    readouts = re.findall(first + second, render(facts, "runs"))
    assert len(readouts) >= 2
    assert all(narrow == wide for narrow, wide in readouts)


def test_a_model_that_was_not_evaluated_is_told_how(facts, make_subject, make_row):
    winner = make_subject("a: winner", "a", [make_row("a: winner", 70, judged=False)])
    read = Reader(render(replace(facts, subjects=(winner,), centred_box=None), "s3://bucket/runs"))
    assert "Not evaluated on test yet: a: winner. Run" in read.text
    assert "python rayjobs/evaluate.py --study a --storage s3://bucket/runs" in read.text
    assert "The winner of a reaches 71.0 % MaxBoxAccV2 on validation; test was not opened yet." in read.text
    assert not any("failures" in a.values() for a in page_links(read))


def page_links(read):
    return [{"to": a["href"].lstrip("#")} for a in read.of("a")]


def test_confirmations_are_shown_as_spread_and_not_as_trials(facts):
    (search,) = facts.searches
    again = optuna.trial.create_trial(value=50.0, user_attrs={"confirms": 1, "seed": 1, "device_seconds": 3600.0})
    again.number = 4
    doubted = replace(search, confirmations=(again,), told=f"{EVIL} would win in 30%.")
    read = Reader(render(replace(facts, searches=(doubted,)), "runs"))
    assert not read.of("script")
    assert f"1 failed; 1 more with further seeds; 1 device hours. {EVIL} would win in 30%." in read.text
    assert "55.00 ± 7.07 (2)" in read.text  # 60 and 50
    sensitivity = [charts.sensitivity(of, "alpha", "max_box_acc_v2").svg for of in (search, doubted)]
    assert sensitivity[0] == sensitivity[1]


def test_the_front_of_several_objectives_has_a_section(facts):
    """Trials 0 and 1 of the search, of which 1 is better in everything; the failed one has no value."""
    rule = Rule(("max_box_acc_v2", "cls_top1", "device_hours"), 1.0)
    ranking = (Standing((1,), (60.0,), ((70.0,), (0.001234,))), Standing((0,), (50.0,), ((65.0,), (2.0,))))
    several = Several(rule, ranking, f"{EVIL}: trial 1 wins.")
    read = Reader(render(replace(facts, searches=(replace(facts.searches[0], several=several),)), "runs"))
    assert not read.of("script")
    assert f"better in one. {EVIL}: trial 1 wins." in read.text
    assert read.text.count("60.0070.000.00123") == 2  # cells in the table of the front, and in that of all
    assert read.text.count("50.0065.002") == 1
    svg = charts.front(facts.searches[0], several, 2).svg
    assert "device hours" in svg
    assert "var(--c1)" in svg


def test_a_study_of_one_objective_has_no_front(page):
    assert "Pareto" not in page.text


def test_too_few_trials_have_no_importance(page):
    assert "Importance needs at least 4 complete trials" in page.text


def test_every_kept_picture_is_shown_with_its_boxes(page):
    assert len(page.of("image")) >= 2 * 3 * 3  # image and map, three pictures, three models
    assert sum(a["class"] == "found" for a in page.of("rect") if "class" in a) == 9


def test_settings_of_layers_and_weightings_are_a_grid(make_counts):
    assert "var(--line)" in charts.grid_of_parts(make_counts(("l1/a", "l1/b", "l2/a", "l2/b")), "max_box_acc_v2").svg
    assert charts.grid_of_parts(make_counts(("cam", "gradcam")), "max_box_acc_v2") is None
