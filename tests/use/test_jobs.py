"""The jobs as functions: one walk of a program, as a notebook makes it."""

import contextlib
import io
import signal

import pytest

import wsol
from wsol_pipeline.verdict import costs, judge, training_images


@pytest.fixture(scope="module", autouse=True)
def alone():
    """Neither a cluster nor an MLflow server that other tests have named."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, local_ray, dataset):
    """A storage with a study of one trial, what it found, what it printed; the signals' handler was Python's."""
    storage = tmp_path_factory.mktemp("jobs")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        outcome = wsol.train(
            "cam", data=dataset.uri, storage=storage, name="s", backbone="tiny", epochs=1, image_size=32, resize_size=36
        )
    return storage, outcome, said.getvalue()


def test_what_a_study_found_is_a_model_that_is_judged_used_and_handed_on(trained, photographs, tmp_path):
    storage, outcome, _ = trained
    assert outcome.balance == {"started": 1, "complete": 1, "pruned": 0, "fail": 0, "running": 0}
    verdict = wsol.evaluate("s", storage=storage, champion=False)
    assert [row.label for row in verdict.rows][-1] == "s: winner"
    found = wsol.localize(study="s", storage=storage, source=photographs, out=tmp_path / "found", format=("csv",))
    assert (found.images, found.problems) == (11, ())
    assert (tmp_path / "found/boxes.csv").exists()
    folder = wsol.export(study="s", storage=storage, out=tmp_path / "model")
    assert wsol.load_model(folder).classes == wsol.load_model(outcome.best.uri).classes


def test_nothing_is_printed_and_the_process_has_its_signals_again(trained):
    assert trained[-1] == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_costs_and_verdicts_on_training_images_come_back(monkeypatch):
    found = judge.Verdict(None, [], "gt_known_loc", "wsol-v1", 0, 0, "", None, {}, None)
    monkeypatch.setattr(judge, "judge", lambda asked: found)
    monkeypatch.setattr(judge, "publish", lambda verdict: ("", ""))
    monkeypatch.setattr(costs, "costs_of_winner", lambda asked, progress: list(asked.selectors))
    monkeypatch.setattr(training_images, "judge_training_images", lambda asked, _: ("on training images", asked.study))
    assert wsol.evaluate("s").costs == ()
    assert wsol.evaluate("s", selectors=["otsu", "evidence"]).costs == ["otsu", "evidence"]
    assert wsol.evaluate("s", training_images=True) == ("on training images", ("s",))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: wsol.tune("baas"), "Unknown method 'baas'. Did you mean 'bas'"),
        (lambda: wsol.tune("bas", trails=3), "unknown option 'trails'. Did you mean 'trials'"),
        (lambda: wsol.tune("bas", trials="many"), "trials"),
        (lambda: wsol.tune("bas", dry_run=True), "unknown option 'dry_run'"),
        (lambda: wsol.evaluate("none", storage="nowhere"), "none"),
        (lambda: wsol.evaluate("s", segmentation=["net"]), "it is for the command line"),
    ],
)
def test_a_wrong_call_is_told_in_a_line(call, told):
    with pytest.raises(wsol.WsolError, match=told):
        call()
