"""Pictures of a study: which trials are in them."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from wsol_pipeline.training import charts


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
