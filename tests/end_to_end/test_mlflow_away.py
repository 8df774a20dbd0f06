"""A study before an MLflow server that is away or broken: it trains on, says what is missing, and writes it later."""

import dataclasses
import threading
import time
from types import SimpleNamespace

import mlflow
import pytest

from wsol_pipeline.console import tune
from wsol_pipeline.console.tune import run_study
from wsol_pipeline.errors import DataError, PartialError, WsolError
from wsol_pipeline.study import plan as plan_module
from wsol_pipeline.study.choosers import TRUE
from wsol_pipeline.study.outcome import Outcome
from wsol_pipeline.study.standings import Standing

TRIALS = 3


@pytest.fixture
def tracked(new_study, mlflow_proxy):
    """`tracked(name)`: a study that is tracked through the proxy, by a client that waits three seconds at most."""

    def make(name: str, patience: int = 3):
        driven = new_study("--concurrent", "2", "--pruner", "none")
        environment = {"MLFLOW_TRACKING_URI": mlflow_proxy.url, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(patience)}
        return dataclasses.replace(driven, name=name, environment=driven.environment | environment)

    return make


def everything(server: str, name: str) -> None:
    """Assert that all of a finished study is there, once."""
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name("wsol").experiment_id
    runs = client.search_runs([experiment], f"tags.`wsol.study` = '{name}'")
    assert sorted(run.data.tags["wsol.trial"] for run in runs) == [*map(str, range(TRIALS)), "study"]
    for run in runs:
        assert run.info.status == "FINISHED"
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/max_box_acc_v2")]
        assert steps == ([] if run.data.tags["wsol.trial"] == "study" else [1, 2, 3])
    parent = next(run.info.run_id for run in runs if run.data.tags["wsol.trial"] == "study")
    assert {"ranking.md", "pictures"} <= {file.path for file in client.list_artifacts(parent)}
    assert len(client.search_model_versions(f"name = '{name}'")) == 1


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", ["closed", "timeout", "500", "cut"])
def test_a_study_without_mlflow_ends_and_its_command_writes_the_rest(tracked, mlflow_proxy, mlflow_server, end, fault):
    """No request is answered from the first to the last: every epoch trains, so no step waits for an answer."""
    name = f"away-{fault}"
    driven = tracked(name)
    mlflow_proxy.silence = 5
    mlflow_proxy.harm(fault, method="")
    ended = end(driven.start())
    assert ended.returncode == 5, ended.stdout + ended.stderr
    assert driven.states() == ["COMPLETE"] * TRIALS
    assert f"{TRIALS} trials started = {TRIALS} complete" in ended.stdout
    told = ended.stderr.splitlines()[-1]
    assert told.startswith("error: MLflow lacks trials, the winner's model, ranking.md, pictures, the study's end (")
    assert told.endswith("): the same command writes it.")
    assert "Traceback" not in ended.stderr
    finals = driven.finals()
    mlflow_proxy.heal()
    patient = dataclasses.replace(driven, environment=driven.environment | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"})
    patient.run()
    assert driven.finals() == finals
    everything(mlflow_server, name)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", ["closed", "timeout", "500", "cut", "slow"])
@pytest.mark.parametrize("after", [0, 6, 60])
def test_a_study_whose_mlflow_comes_back_writes_all(tracked, mlflow_proxy, mlflow_server, end, fault, after):
    """Away from the first, the seventh (between trials) or the 61st request on (the winner's files), for a minute."""
    name = f"back-{fault}-{after}"
    driven = tracked(name, patience=10)
    mlflow_proxy.silence = 2 if fault == "slow" else 11
    mlflow_proxy.harm(fault, method="", after=after)
    process = driven.start()
    threading.Thread(target=lambda: (time.sleep(60), mlflow_proxy.heal()), daemon=True).start()
    ended = end(process)
    assert ended.returncode in (0, 5), ended.stdout + ended.stderr
    if ended.returncode == 5:
        assert "MLflow lacks" in ended.stderr.splitlines()[-1]
        mlflow_proxy.heal()
        driven.run()
    everything(mlflow_server, name)


@pytest.fixture
def screen(monkeypatch, capsys):
    """`screen(**what went wrong)`: the error of a study that ended so, and what it printed before."""

    def run(**wrong) -> tuple[Exception, str]:
        balance = {"started": 2, "complete": 2, "pruned": 0, "fail": 0}
        options = {"print_config": False, "dry_run": False, "name": "s", "storage": "runs"}
        missing = wrong.pop("missing", "")
        config = {"objective": "max_box_acc_v2", "protocol": "wsol-v1"}
        places = {"rule": None, "folder": SimpleNamespace(uri="runs/s"), "choosers": TRUE}
        plan = SimpleNamespace(options=SimpleNamespace(**options), config=SimpleNamespace(**config), **places)
        outcome = Outcome(balance, [(Standing((1,), (61.25,)), "", {})], None, {}, 0.1, **wrong)
        monkeypatch.setattr(plan_module, "make_plan", lambda *args: plan)
        monkeypatch.setattr(
            tune, "execute_and_show", lambda *args: (outcome, SimpleNamespace(version="", page="", missing=missing))
        )
        with pytest.raises(WsolError) as ended:
            run_study(plan.options, "bas", lambda trial: {})
        return ended.value, capsys.readouterr().out

    return run


def test_what_mlflow_lacks_is_an_exit_code_after_the_result(screen):
    error, said = screen(missing="MLflow lacks pictures (away): the same command writes it.")
    assert (type(error), str(error)) == (PartialError, "MLflow lacks pictures (away): the same command writes it.")
    assert "61.25" in said


def test_a_damaged_file_is_an_exit_code_after_the_result(screen):
    error, said = screen(damaged="val_images.json was altered", missing="MLflow lacks pictures")
    assert (type(error), str(error)) == (DataError, "val_images.json was altered")
    assert "61.25" in said
