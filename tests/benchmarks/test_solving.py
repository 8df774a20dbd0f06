"""The replay of `benchmarks/solving.py` on tables small enough to work out by hand."""

import importlib
import json
from pathlib import Path

import numpy as np
import optuna
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def solving():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("solving")


@pytest.fixture
def trained(solving):
    """Two settings at opposite corners; two values of k, three thresholds."""
    seen = [[[10, 50, 20], [30, 50, 40]], [[0, 0, 0], [0, 90, 0]]]
    blind = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]
    scores_N2KT = np.array([seen, blind], float).transpose(1, 0, 2, 3)
    return solving.Trained(np.array([[0.0] * 3, [1.0] * 3]), scores_N2KT, np.array([5.0, 7.0]), np.array([4.0, 6.0]))


def test_the_blind_score_is_read_where_the_seen_one_is_best(solving, trained):
    assert solving.look(trained, 0) == (50, 2)  # of two best places the first
    assert solving.look(trained, 0, k=2) == (50, 5)
    assert solving.look(trained, 0, k=2, threshold=2) == (40, 6)
    assert solving.look(trained, 1) == (90, 11)
    assert solving.look(trained, 1, k=1) == (0, 7)


@pytest.mark.parametrize(
    ("setting", "row"),
    [
        ({"lambda_": 0.6, "alpha": 0.6, "beta": 1.3}, 0),  # shares of .4 each
        ({"lambda_": 0.6, "alpha": 0.6, "beta": 2.5}, 1),  # .4, .4 and 1
        ({"lambda_": 1.5, "alpha": 0.0, "beta": 1.4}, 0),  # 1, 0 and .45
    ],
)
def test_a_proposal_stands_for_the_nearest_setting_in_shares_of_the_ranges(solving, trained, setting, row):
    assert solving.propose(optuna.trial.FixedTrial(setting), solving.SOLVED, trained) == (row, None, None)


def test_what_is_not_solved_is_sampled(solving, trained):
    sampled = optuna.trial.FixedTrial({"lambda_": 0.0, "alpha": 0.0, "beta": 0.5, "k": 2, "threshold": 0.7})
    assert solving.propose(sampled, solving.K_SAMPLED, trained) == (0, 2, None)
    assert solving.propose(sampled, solving.BOTH_SAMPLED, trained) == (0, 2, 2)  # 0.7 x 3, cut


def test_a_replayed_study_pays_for_each_trial_and_keeps_its_best(solving, trained):
    for kind, costs in ((solving.SOLVED, (5, 7)), (solving.K_SAMPLED, (4, 6))):
        trace = solving.replay(trained, kind, "random", seed=0, trials=30)
        assert set(np.diff(trace.seconds, prepend=0)) == set(costs)
        assert (np.diff(trace.seen) >= 0).all()
        assert (trace.seen[-1], trace.blind[-1]) == (90, 11)
    again = solving.replay(trained, solving.K_SAMPLED, "random", seed=0, trials=30)
    np.testing.assert_array_equal(again.seen, trace.seen)


def test_solved_studies_need_no_luck_with_k(solving, trained):
    """Half of the proposals stand for the good setting, a quarter for its good k."""
    trials = {
        kind: np.mean([1 + (solving.replay(trained, kind, "random", seed, 25).seen < 90).sum() for seed in range(60)])
        for kind in (solving.SOLVED, solving.K_SAMPLED)
    }
    assert trials[solving.SOLVED] == pytest.approx(2, rel=0.3)
    assert trials[solving.K_SAMPLED] == pytest.approx(4, rel=0.3)


def test_times_and_scores_of_a_trace(solving):
    trace = solving.Trace(np.array([2.0, 5.0, 9.0]), np.array([10.0, 10.0, 40.0]), np.array([3.0, 3.0, 1.0]))
    assert [trace.time_to(score) for score in (10, 11, 41)] == [2, 9, float("inf")]
    assert [trace.at(seconds) for seconds in (1.9, 2, 8.9, 100)] == [(0, 0), (10, 3), (10, 3), (40, 1)]


def test_ratios_and_quartiles_bear_studies_that_never_arrive(solving):
    never = float("inf")
    assert solving.quartiles([4, 1, 3, never]) == [1, 3, 4]
    assert solving.ratio_of_medians([6.0] * 9, [2.0] * 9) == [3, 3, 3]
    assert solving.finite(solving.ratio_of_medians([never] * 9, [2.0] * 9)) == [None] * 3
    ratio, low, high = solving.ratio_of_medians(list(np.linspace(8, 12, 50)), list(np.linspace(4, 6, 50)))
    assert ratio == pytest.approx(2, rel=0.05)
    assert low < ratio < high


def test_rows_compare_with_the_solved_studies_of_the_same_sampler(solving, trained):
    def flat(seconds, seen):
        return solving.Trace(np.array([seconds]), np.array([seen]), np.array([seen / 2]))

    studies = {
        (solving.SOLVED, "tpe"): [flat(3.0, 90.0), flat(3.0, 90.0)],
        (solving.K_SAMPLED, "tpe"): [flat(2.0, 90.0), flat(6.0, 90.0)],
    }
    assert solving.targets(trained) == {0.9: 90, 0.95: 90, 0.99: 90}
    row = solving.compare(trained, studies)[1]
    assert row["quartiles_s"] == [2, 2, 6]
    assert (row["reached"], row["solved_faster"], row["ratio"][0]) == (1, 0.5, round(2 / 3, 2))
    first = solving.compare_at(trained, studies)[1]  # at two mean solved trials of 6 seconds
    assert (first["seconds"], first["seen"], first["blind_ahead"]) == (12, 90, [0, 0, 0])


def test_a_line_of_the_table_becomes_a_row(solving):
    """Two halves of two images; k = 2 hits one image of the first half, at the lower threshold."""
    hits_SIT = np.zeros((2, 3, 2), np.int64)
    hits_SIT[1, 1, 0] = 1
    full = {"hits": hits_SIT, "top1_hits": hits_SIT, "top5_hits": hits_SIT}
    per_setting = {name: np.array([2, 2]) for name in ("top1", "top5", "images")}
    counts = solving.Counts("wsol-v1", (1, 2), (0.3, 0.5, 0.7), np.array([0.0, 0.5]), **full, **per_setting)
    line = {
        "number": 0, "seed": 0, "setting": {"lambda_": 0.75, "alpha": 1.5, "beta": 0.5}, "trial_s": 5.0,
        "searched_pass_s": 2.0, "one_setting_pass_s": 0.5, "halves": [counts.to_dict(), counts.to_dict()],
    }  # fmt: skip
    trained = solving.arrays([json.loads(json.dumps(line)), line | {"seed": 1}])
    np.testing.assert_array_equal(trained.points_N3, [[0.5, 1, 0]])
    np.testing.assert_array_equal(trained.scores_N2KT, [[[[0, 0], [50, 0]]] * 2])
    assert (trained.solved_N.tolist(), trained.sampled_N.tolist()) == ([5], [3.5])


def test_settings_fill_the_search_space(solving):
    table = importlib.import_module("solving_table")
    settings = table.settings_of(16)
    assert settings[:4] == table.settings_of(4)  # a longer table keeps what is trained
    for name, (low, high) in table.SPACE.items():
        quarters = np.floor([4 * (setting[name] - low) / (high - low) for setting in settings]).astype(int)
        assert np.bincount(quarters).tolist() == [4] * 4
