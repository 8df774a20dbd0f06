"""Charts: a logarithmic axis that can be read, and files in colours of their own."""

import itertools
import re
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from wsol_pipeline.report import charts, figures
from wsol_pipeline.report.facts import Search

OF_THE_PAGE = r"#0[1-3]0[1-3]0[1-3]|#0404|var\(|currentColor"


def searched(*rates):
    """A study of learning rates."""
    space = {"learning_rate": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True)}
    study = optuna.create_study(direction="maximize")
    for rate in rates:
        params = {"learning_rate": rate}
        trial = optuna.trial.create_trial(params=params, distributions=space, value=50.0, state=TrialState.COMPLETE)
        study.add_trial(trial)
    return Search("a", tuple(study.trials), 0, {})


@pytest.mark.parametrize(
    ("rates", "names"),
    [
        ((1e-5, 3e-3, 1.0), ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
        ((0.002, 0.003, 0.006), ["0.002", "0.005"]),  # matplotlib's own: nine formulas on top of each other
    ],
)
def test_a_learning_rate_has_plain_numbers_that_do_not_touch(rates, names):
    made = charts.sensitivity(searched(*rates), "learning_rate", "max_box_acc_v2")
    assert "mathdefault" not in made.svg
    made.figure.draw_without_rendering()
    low, high = made.axis.get_xlim()
    labels = [of for of in made.axis.get_xticklabels(which="both") if low <= of.get_position()[0] <= high]
    shown = [of for of in labels if of.get_text()]
    assert [of.get_text() for of in shown] == names
    boxes = [of.get_window_extent() for of in shown]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_every_chart_is_a_file_of_its_own_in_the_colours_of_paper(facts):
    made = figures.files(facts)
    names = ("comparison", "training-or-readout", "readout-settings", "thresholds", "a-alpha", "overlaps", "sizes")
    assert {f"{name}.{kind}" for name in names for kind in ("pdf", "svg")} <= made.keys()
    assert all(data.startswith(b"%PDF") for name, data in made.items() if name.endswith(".pdf"))
    svgs = {name: data.decode() for name, data in made.items() if name.endswith(".svg")}
    assert not {name: found for name, text in svgs.items() if (found := re.findall(OF_THE_PAGE, text))}
    assert made["comparison.svg"].decode().count("#0a66c2") > 2


def test_a_report_without_an_evaluation_has_the_charts_of_validation(facts, make_row, make_subject):
    subject = make_subject("a: winner", "a", [make_row("a: winner", 71, judged=False)])
    made = figures.files(replace(facts, subjects=(subject,), centred_box=None))
    assert "comparison.pdf" in made
    assert "overlaps.pdf" not in made
