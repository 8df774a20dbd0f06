"""What a study's own run says of its course."""

import datetime

from optuna.trial import TrialState, create_trial

from wsol_pipeline.study.mlflow_view import _progress

NOON = datetime.datetime(2026, 1, 1, 12)


def ended(state, value, minutes, attrs=None):
    trial = create_trial(state=state, value=value, user_attrs=attrs or {})
    trial.datetime_complete = NOON + datetime.timedelta(minutes=minutes)
    return trial


def test_the_best_grows_with_every_end_and_confirmations_are_no_proposals():
    trials = [
        ended(TrialState.PRUNED, None, 1),
        ended(TrialState.COMPLETE, 50.0, 2),
        ended(TrialState.COMPLETE, 40.0, 3, {"published": "paper/row"}),
        ended(TrialState.COMPLETE, 90.0, 4, {"confirms": 1, "seed": 1}),
        ended(TrialState.COMPLETE, 60.0, 5),
        ended(TrialState.FAIL, None, 6),
    ]
    metrics = _progress(trials, "paper/row")
    best = [(metric.step, metric.value) for metric in metrics if metric.key == "best_objective"]
    assert best == [(2, 50.0), (3, 50.0), (4, 50.0), (5, 60.0), (6, 60.0)]
    last = {metric.key: metric.value for metric in metrics if metric.step == 6}
    assert last == {
        "trials/complete": 4, "trials/pruned": 1, "trials/failed": 1, "best_objective": 60.0,
        "gain_from_training": 20.0,
    }  # fmt: skip
    gains = [(metric.step, metric.value) for metric in metrics if metric.key == "gain_from_training"]
    assert gains == [(3, 10.0), (4, 10.0), (5, 20.0), (6, 20.0)]
    minutes = {(metric.timestamp / 1000 - NOON.timestamp()) / 60 for metric in metrics}
    assert minutes == {1, 2, 3, 4, 5, 6}  # of the ends, so that writing it again changes nothing
