"""The protocol of lease, ledger and models as a small model, every order of events tried: two drivers, three crashes.

Written by hand beside the code, not from it: it says which rules suffice. A step is what a store does at once: a name
created if it is absent, a row, a rename with the look at the lease before it. A driver may crash or stand still between
any two steps; one that stood still for longer than others wait knows by its own clock that it may have been replaced.
Without any one of the rules below the model finds an order of events that breaks a study, so it can tell.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

TRIALS = 1
RULES = frozenset({"create if absent", "own clock", "look before a write", "seal", "own folder"})


class Driver(NamedTuple):
    """Where a driver is: "idle", "saw" the lease, "holds" it, "asked" and "trained" a trial, "over"."""

    at: str = "idle"
    attempt: int = 0  # that it saw, then that it holds
    silent: bool = False  # stands still
    lost: bool = False  # its own clock says that it may have been replaced
    trial: int = -1


class World(NamedTuple):
    """What the stores hold. Trial `n` of the ledger is (who asked for it, what it reached or None)."""

    drivers: tuple[Driver, Driver] = (Driver(), Driver())
    attempts: tuple[int, ...] = ()  # which driver made each
    ended: frozenset[int] = frozenset()  # attempts that were released, or whose process is seen to be gone
    trials: tuple[tuple[int, int | None], ...] = ()
    models: frozenset[tuple[int, int, int, bool]] = frozenset()  # trial, folder (an attempt), who asked, sealed
    winner: int | None = None
    crashes: int = 3
    pauses: int = 1
    wrong: str = ""


def value(trial: int, asked: int) -> int:
    """What a trial's parameters, which depend on who asked, reach."""
    return 10 * trial + asked


def best(trials: tuple[tuple[int, int | None], ...]) -> int:
    return max(range(len(trials)), key=lambda n: (trials[n][1] if trials[n][1] is not None else -1, -n))


def steps(world: World, rules: frozenset[str]) -> Iterator[World]:
    """Every world that may be next."""
    for me, driver in enumerate(world.drivers):
        if driver.at == "over":
            continue
        if driver.silent:
            # nobody stood still for longer than others wait unless its own clock says so
            replaced = len(world.attempts) > driver.attempt or driver.attempt in world.ended
            for late in {True, replaced}:
                yield put(world, me, driver._replace(silent=False, lost=late and "own clock" in rules))
            continue
        if world.crashes and driver.at != "idle":
            gone = world._replace(crashes=world.crashes - 1, ended=world.ended | {driver.attempt})
            yield put(gone if driver.at != "saw" else gone._replace(ended=world.ended), me, Driver())
        if world.pauses and driver.at not in ("idle", "saw"):
            yield put(world._replace(pauses=world.pauses - 1), me, driver._replace(silent=True))
        yield from work(world, me, driver, rules)


def put(world: World, me: int, driver: Driver) -> World:
    drivers = (driver, world.drivers[1]) if me == 0 else (world.drivers[0], driver)
    return world._replace(drivers=drivers)


def work(world: World, me: int, driver: Driver, rules: frozenset[str]) -> Iterator[World]:
    """What a driver does next."""
    if driver.at == "idle":
        top = len(world.attempts)
        holder = world.drivers[world.attempts[-1]] if top else None
        gone = top in world.ended or holder is None or holder.attempt != top or holder.silent or holder.lost
        if gone:
            yield put(world, me, driver._replace(at="saw", attempt=top))
        elif all(one.at == "idle" for one in world.drivers):
            yield world._replace(wrong="nobody can begin")
        return
    if driver.at == "saw":
        taken = len(world.attempts) > driver.attempt
        if taken and "create if absent" in rules:
            yield put(world, me, Driver())
        elif taken:  # both believe that they have it
            yield put(world, me, driver._replace(at="holds", attempt=len(world.attempts)))
        else:
            made = world._replace(attempts=(*world.attempts, me))
            yield put(made, me, driver._replace(at="holds", attempt=driver.attempt + 1))
        return
    mine = len(world.attempts) == driver.attempt
    may_write = not driver.lost and (mine or "look before a write" not in rules)
    if driver.at == "asked":  # workers write below their own attempt, whoever holds the lease
        folder = driver.attempt if "own folder" in rules else 0
        asked = world.trials[driver.trial][0]
        half = {(driver.trial, folder, asked, False)}
        whole = {(driver.trial, folder, asked, True)}
        others = frozenset(m for m in world.models if m[:2] != (driver.trial, folder))
        kept = world.models & whole
        yield put(world._replace(models=others | (kept if "own folder" in rules and kept else half)), me,
                  driver._replace(at="training"))  # fmt: skip
        return
    if driver.at == "training":
        folder = driver.attempt if "own folder" in rules else 0
        asked = world.trials[driver.trial][0]
        others = frozenset(m for m in world.models if m[:2] != (driver.trial, folder))
        whole = (driver.trial, folder, asked, True)
        yield put(world._replace(models=others | {whole}), me, driver._replace(at="trained"))
        return
    if not may_write:
        yield put(world, me, Driver())  # one line, code 4; the same command may be started again
        return
    yield from write(world, me, driver, mine, rules)


def write(world: World, me: int, driver: Driver, mine: bool, rules: frozenset[str]) -> Iterator[World]:
    """What only the holder of the lease may do."""
    world = world if mine else world._replace(wrong="a lost lease wrote")
    open_trial = next((n for n, (_, reached) in enumerate(world.trials) if reached is None), None)
    if driver.at == "trained" and world.trials[driver.trial][1] is not None:
        yield world._replace(wrong="a trial was told twice")
    elif driver.at == "trained" or (driver.at == "holds" and open_trial is not None):
        number = driver.trial if driver.at == "trained" else open_trial
        assert number is not None
        found = {m for m in world.models if m[0] == number and (m[3] or "seal" not in rules)}
        if not found:
            yield put(world, me, driver._replace(at="asked", trial=number))
            return
        model = max(found)
        asked = world.trials[number][0]
        trials = (*world.trials[:number], (asked, value(number, model[2])), *world.trials[number + 1 :])
        bad = "" if model[3] and model[2] == asked else "a result of half a model, or of others' parameters"
        yield put(world._replace(trials=trials, wrong=world.wrong or bad), me, driver._replace(at="holds", trial=-1))
    elif len(world.trials) < TRIALS:
        asked = world._replace(trials=(*world.trials, (driver.attempt, None)))
        yield put(asked, me, driver._replace(at="asked", trial=len(world.trials)))
    elif len(world.trials) > TRIALS:
        yield world._replace(wrong="too many were proposed")
    elif world.winner is None or driver.trial != -2:
        yield put(world._replace(winner=best(world.trials)), me, driver._replace(trial=-2))
    else:
        yield put(world._replace(ended=world.ended | {driver.attempt}), me, driver._replace(at="over"))


def explore(rules: frozenset[str]) -> tuple[int, str]:
    """How many worlds there are, and what is wrong in the first where something is."""
    begin = World()
    seen, left = {begin}, [begin]
    while left:
        world = left.pop()
        if world.wrong:
            return len(seen), world.wrong
        after = list(steps(world, rules))
        over = all(driver.at == "over" for driver in world.drivers)
        if not after and not over:
            return len(seen), "it does not go on"
        if over and (world.winner != best(world.trials) or any(reached is None for _, reached in world.trials)):
            return len(seen), "it ended without its winner"
        for one in after:
            if one not in seen:
                seen.add(one)
                left.append(one)
    return len(seen), ""


def test_every_order_of_events_keeps_a_study_right():
    worlds, wrong = explore(RULES)
    assert wrong == ""
    assert worlds > 100_000


@pytest.mark.parametrize(
    ("rules", "broken"),
    [
        (RULES - {"create if absent"}, {"a trial was told twice", "a lost lease wrote"}),
        (RULES - {"own clock", "look before a write"}, {"a lost lease wrote"}),
        (RULES - {"seal"}, {"a result of half a model, or of others' parameters"}),
    ],
)
def test_without_a_rule_an_order_of_events_breaks_it(rules, broken):
    assert explore(rules)[1] in broken
