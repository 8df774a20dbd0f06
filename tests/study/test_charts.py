"""Pictures of a study: which trials are in them."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from wsol_pipeline.study import charts
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.standings import Standing


def test_confirmations_are_in_no_picture(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(charts, "_sensitivity", lambda trials, path: shown.update(sensitivity=trials))
    monkeypatch.setattr(charts, "_importance", lambda study, path: shown.update(importance=study.trials))
    study, alpha = optuna.create_study(direction="maximize"), optuna.distributions.FloatDistribution(0, 1)
    for value, attrs in ((1.0, {}), (2.0, {}), (9.0, {"confirms": 1, "seed": 1}), (3.0, {}), (4.0, {})):
        study.add_trial(
            create_trial(
                params={"alpha": 0.5}, distributions={"alpha": alpha}, value=value, user_attrs=attrs,
                state=TrialState.COMPLETE,
            )
        )  # fmt: skip
    charts.draw_study(study, tmp_path)
    for name in ("sensitivity", "importance"):
        assert [trial.value for trial in shown[name]] == pytest.approx([1.0, 2.0, 3.0, 4.0]), name


def test_the_front_is_drawn_with_its_numbers_and_the_winner(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "_save", lambda figure, path: figures.append(figure) or path)
    rule = Rule(("gt_known_loc", "cls_top1", "device_hours"), 1.0)
    points = {4: (60.0, 70.0, 1.0), 2: (50.0, 80.0, 2.0), 3: (50.0, 70.0, 2.0)}
    ranking = [Standing((n,), of[:1], tuple((value,) for value in of[1:])) for n, of in points.items()]
    assert charts.draw_front(ranking, rule, tmp_path) == tmp_path / "pareto.png"
    for axis, name, column in zip(figures[0].axes, rule.objectives[1:], (1, 2), strict=True):
        assert axis.get_xlabel() == name
        everyone, front, winner = ([tuple(xy) for xy in line.get_xydata()] for line in axis.lines)
        assert everyone == [(of[column], of[0]) for of in points.values()]
        assert front == everyone[:2]
        assert winner == everyone[:1]
        assert [text.get_text() for text in axis.texts] == ["4", "2"]
