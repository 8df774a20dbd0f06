"""The demo's table is a function of its command: nothing in it depends on which of two trials ends first."""

import shlex

import optuna
import pytest

from rayjobs import demo, tune_bas, tune_cam
from search_spaces import bas, cam
from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.study import samplers


@pytest.fixture
def studies(monkeypatch, tmp_path):
    """The options of the demo's two studies."""
    lines = {}
    monkeypatch.setattr(demo, "step", lambda text, job, name, line: lines.update({name: line}))
    demo.main(["--storage", str(tmp_path)])
    jobs = {"tune_cam": tune_cam, "tune_bas": tune_bas}
    return [command_line(job.Options, shlex.split(lines[name])) for name, job in jobs.items()]


def proposals(options, space, ends):
    """What five trials get; `ends`: for each the trial that has just ended, if one has, with its number as value."""
    study = optuna.create_study(direction="maximize")
    propose, trials, found = samplers.sampler(options.sampler, options.seed, options.startup_trials), [], []
    for number, end in enumerate(ends):
        if end is not None:
            study.tell(trials[end], float(end))
        study.sampler = propose(number)
        trials.append(study.ask())
        found.append(space(trials[-1]))
    return found


def test_proposals_depend_on_a_trials_number_alone(studies):
    for options, space in zip(studies, (cam.space, bas.space), strict=True):
        first = proposals(options, space, (None, None, 0, 1, 2))
        assert first == proposals(options, space, (None, None, 1, 0, 2))
        assert first == proposals(options, space, (None,) * 5)


def test_nothing_is_pruned_by_what_others_reached(studies):
    assert [options.pruning for options in studies] == ["none"] * 2


def test_both_methods_get_the_same_budget(studies):
    one, other = ((o.trials, o.epochs, o.batch_size, o.image_size, o.resize_size, o.objective) for o in studies)
    assert one == other
