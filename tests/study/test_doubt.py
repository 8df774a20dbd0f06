"""How often another trial would win, and how that is said."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from wsol_pipeline.console.live import TrialLog
from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.storage import Store
from wsol_pipeline.study.doubt import Doubt, doubts, lead_and_noise, means, sentence, winners, winners_by
from wsol_pipeline.study.outcome import ranking_markdown
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.standings import Standing
from wsol_pipeline.training.checkpoint import write_sealed

METRIC = "gt_known_loc"


@pytest.fixture
def keep(tmp_path):
    """`keep(trial, hit images)`: what a trial leaves that hits these of ten images, at its only threshold."""

    def write(number, hit):
        hits_NIT = np.isin(np.arange(10), hit)[:, None, None]
        hits = ImageHits(tuple("abcdefghij"), np.zeros(10, int), np.packbits(hits_NIT, axis=-1), np.zeros(10, int))
        one, sums = np.array([10]), hits_NIT.sum(0)[None]
        counts = Counts("wsol-v1", ("s",), (0.5,), np.zeros(1), sums, sums, sums, one, one, one)
        final = study / f"trials/{number:04d}/attempt-0001/final"
        files = {"val_counts.json": counts.to_dict(), "val_images.json": hits.to_dict()}
        write_sealed(final, {name: json.dumps(kept).encode() for name, kept in files.items()})
        return study

    study = Store.at(tmp_path)
    return write


def test_wins_are_counted_over_the_same_redraws_of_images_for_every_trial(keep):
    """Trials 0 and 1 hit four images each, one of which differs: whichever of the two is drawn more often decides."""
    keep(0, [0, 1, 2, 3])
    study = keep(1, [0, 1, 2, 4])
    found = doubts(study, [Standing((0,), (40.0,)), Standing((1,), (40.0,))], METRIC, redraws=300)
    rng = np.random.default_rng(0)
    times = [np.bincount(rng.integers(10, size=10), minlength=10) for _ in range(300)]
    second = np.mean([of[4] > of[3] for of in times])
    assert found == Doubt({0: pytest.approx(1 - second), 1: pytest.approx(second)}, {0: 1, 1: 1}, 10, 300)
    assert 0.2 < second < 0.5


def test_a_trial_that_hits_more_of_the_same_images_never_loses(keep):
    keep(3, [0, 1])
    study = keep(5, [0, 1, 2])
    found = doubts(study, [Standing((5,), (30.0,)), Standing((3,), (20.0,))], METRIC)
    assert found.wins == {5: 1.0, 3: 0.0}


def test_the_same_rule_decides_each_redraw(keep):
    """Trial 0 hits images 0 to 3, trial 1 only 0 to 2 at half the cost: it wins where image 3 was drawn at most once
    of ten, within the tolerance of 10 points."""
    keep(0, [0, 1, 2, 3])
    study = keep(1, [0, 1, 2])
    rule = Rule((METRIC, "device_hours"), 10.0)
    ranking = [Standing((1,), (30.0,), ((1.0,),)), Standing((0,), (40.0,), ((2.0,),))]
    found = doubts(study, ranking, METRIC, redraws=300, rule=rule)
    rng = np.random.default_rng(0)
    cheap = np.mean([np.count_nonzero(rng.integers(10, size=10) == 3) <= 1 for _ in range(300)])
    assert found.wins == {1: pytest.approx(cheap), 0: pytest.approx(1 - cheap)}
    assert 0.6 < cheap < 0.9
    assert "trial 1 stays first by the same rule in" in sentence(found)
    assert sentence(found).endswith("One seed each: training noise is not in this. Costs are as measured.")


def test_seeds_are_drawn_alike_for_every_objective():
    """Of seeds (10, 3) and (30, 1) one or both: never the value of one with the cost of the other."""
    redraws, rule = 400, Rule((METRIC, "device_hours"), 0.0)
    seeds = [np.repeat([[value], [other]], redraws, 1) for value, other in ((10.0, 30.0), (3.0, 1.0))]
    rival = [np.full((1, redraws), value) for value in (20.0, 2.0)]
    won = winners_by(rule, [[of, other] for of, other in zip(seeds, rival, strict=True)])
    assert set(won) == {0, 1}
    first = means([seeds[0]], 0)[0]
    np.testing.assert_array_equal(won == 0, first >= 20.0)


def test_seeds_are_redrawn_where_there_are_several():
    """Of the seeds 10 and 30 two are drawn: 10, 20, 20 or 30, widened 5.9, 20, 20 or 34.1."""
    redraws = 4000
    for rival, share in ((19.0, 0.25), (33.0, 0.75), (35.0, 1.0), (5.0, 0.0)):
        won = winners([np.repeat([[10.0], [30.0]], redraws, 1), np.full((1, redraws), rival)])
        assert np.mean(won == 1) == pytest.approx(share, abs=0.03)


def test_nothing_is_said_without_a_rival_or_without_single_images(keep):
    study = keep(0, [0])
    one, other = Standing((0,), (10.0,)), Standing((1,), (5.0,))
    assert doubts(study, [one], METRIC) is None
    assert doubts(study, [one, other], METRIC) is None


@pytest.mark.parametrize("name", ["val_counts.json", "val_images.json"])
@pytest.mark.parametrize("damaged", [b"", b'{"ids": [', b"{}"])
def test_a_damaged_file_is_named(keep, name, damaged):
    keep(0, [0])
    study = keep(1, [1])
    study.write(f"trials/0001/attempt-0001/final/{name}", damaged)
    with pytest.raises(DataError, match=f"trials/0001/attempt-0001/final/{name} was altered"):
        doubts(study, [Standing((0,), (10.0,)), Standing((1,), (10.0,))], METRIC)


def test_confirmations_bring_their_images(keep):
    for number, hit in ((0, [0, 1]), (1, [0]), (2, [2, 3])):
        study = keep(number, hit)
    found = doubts(study, [Standing((0, 2), (20.0, 20.0)), Standing((1,), (10.0,))], METRIC)
    assert found.seeds == {0: 2, 1: 1}
    assert 0 < found.wins[1] < 0.5  # where image 0 is drawn often and the seed of trial 2 is


@pytest.mark.parametrize(
    ("wins", "seeds", "said"),
    [
        (
            {3: 0.95, 5: 0.05},
            {3: 1, 5: 1},
            "In 1,000 redraws of the 150 validation images, trial 3 stays first in 95%: other images would "
            "hardly change that. One seed each: training noise is not in this.",
        ),
        (
            {3: 0.62, 7: 0.06, 5: 0.3, 1: 0.02},
            {3: 3, 7: 1, 5: 3, 1: 1},
            "In 1,000 redraws of the 150 validation images and of seeds, trial 3 stays first in 62%, trial 5 would win "
            "in 30%, trial 7 (one seed) would win in 6%: the search has not settled between them.",
        ),
        (
            {3: 0.92, 5: 0.04, 7: 0.04},
            {3: 2, 5: 2, 7: 2},
            "In 1,000 redraws of the 150 validation images and of seeds, trial 3 stays first in 92%, no other in more "
            "than 5%: the search has not settled.",
        ),
    ],
)
def test_the_sentence_names_who_would_win_too_often(wins, seeds, said):
    assert sentence(Doubt(wins, seeds, 150, 1000)) == said


def test_a_lead_that_seeds_alone_make_does_not_hold():
    """Deviations of 1 and 3 over three seeds each: √5 pooled, times √(2/3) for a difference of means."""
    ranking = [Standing((0, 2, 3), (61.0, 60.0, 62.0)), Standing((1, 4, 5), (57.0, 60.0, 63.0))]
    lead, noise = lead_and_noise(ranking)
    assert (lead, noise) == (1.0, pytest.approx((5 * 2 / 3) ** 0.5))
    found = Doubt({0: 0.97, 1: 0.03}, {0: 3, 1: 3}, 150, 1000, lead=lead, noise=noise)
    assert sentence(found).endswith("first in 97%, but by 1.00 points, of which seeds alone make 1.83: not settled.")
    assert sentence(replace(found, lead=2.0)).endswith("stays first in 97%: it holds.")


def test_equal_settings_do_not_hold_by_coming_first(keep):
    for number in range(4):
        study = keep(number, [0, 1])
    found = doubts(study, [Standing((0, 1), (20.0, 20.0)), Standing((2, 3), (20.0, 20.0))], METRIC)
    assert (found.wins[0], found.holds) == (1.0, False)
    assert "it holds" not in sentence(found)


def test_the_table_shows_mean_deviation_and_number_of_seeds(capsys):
    ranking = [(Standing((1, 4, 5), (60.0, 62.0, 64.0)), "", {"alpha": 0.5}), (Standing((0,), (61.0,)), "row", {})]
    table = ranking_markdown(ranking, [METRIC], {}, "It holds.")
    assert table.splitlines()[2:] == [
        "| 1 |  | alpha 0.5 | 62.00 ± 2.00 (3) |",
        "| 0 | row |  | 61.00 |",
        "",
        "It holds.",
    ]
    train = SimpleNamespace(recipe=SimpleNamespace(epochs=2), objective=METRIC)
    options = SimpleNamespace(trials=2, confirm=1, confirm_seeds=1, workers=1)
    plan = SimpleNamespace(config=train, options=options, dataset=SimpleNamespace(train=SimpleNamespace(num_rows=9)))
    TrialLog(plan)("started", 4, {"parameters": {"alpha": 0.5}, "confirms": 1, "seed": 2})
    assert capsys.readouterr().out.endswith("trial   4 starts, confirming trial 1 with seed 2: alpha 0.5\n")
