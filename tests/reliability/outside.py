"""What must hold of a study whatever struck it, told from its files alone: nothing of the project is imported here.

    python -I tests/reliability/outside.py FOLDER

`FOLDER/runs/s` is the study, `FOLDER/runs/mlflow.db` its MLflow, `FOLDER/expected.json` what is known of it beforehand:
"trials", the data's "fingerprint", the "reference" study's database (or none), "places" that must have stayed empty.
Prints each thing that does not hold on a line, and ends with 1 if there is one.
"""

import contextlib
import hashlib
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

ENDS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}  # of a trial, and of its run


def rows(database: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ledger(database: Path) -> dict[int, dict[str, Any]]:
    """Every trial of a study's database by number: state, parameters, values, intermediate values."""
    trials = {id: {"number": number, "state": state, "parameters": {}, "values": [], "curve": {}}
              for id, number, state in rows(database, "SELECT trial_id, number, state FROM trials")}  # fmt: skip
    assert len({trial["number"] for trial in trials.values()}) == len(trials), "a number was given twice"
    for id, name, value in rows(database, "SELECT trial_id, param_name, param_value FROM trial_params"):
        trials[id]["parameters"][name] = value
    for id, value in rows(database, "SELECT trial_id, value FROM trial_values ORDER BY objective"):
        trials[id]["values"].append(value)
    for id, step, value in rows(
        database, "SELECT trial_id, step, intermediate_value FROM trial_intermediate_values ORDER BY step"
    ):
        trials[id]["curve"][step] = value
    return {trial["number"]: trial for trial in trials.values()}


def sealed(folder: Path) -> bool:
    """Whether every file of a folder is what its seal says."""
    try:
        seal = json.loads((folder / "seal.json").read_bytes())
        return all(sha256(folder / name) == digest for name, digest in seal.items())
    except (OSError, ValueError):
        return False


def finals(study: Path, number: int) -> list[Path]:
    return [path for path in study.glob(f"trials/{number:04d}/attempt-*/final") if sealed(path)]


def proposals(trials: dict[int, dict[str, Any]], expected: dict[str, Any]) -> list[str]:
    """Each proposal once, each at an end."""
    wrong = []
    if sorted(trials) != list(range(expected["trials"])):
        wrong.append(f"trials are {sorted(trials)}, not {expected['trials']}")
    asked = [json.dumps(trial["parameters"], sort_keys=True) for trial in trials.values()]
    if len(set(asked)) < len(asked):
        wrong.append("parameters were proposed twice")
    return wrong + [f"trial {number} is {t['state']}" for number, t in trials.items() if t["state"] not in ENDS]


def results(study: Path, trials: dict[int, dict[str, Any]], expected: dict[str, Any]) -> list[str]:
    """Each result from a sealed model of this study, of its own parameters and of the study's data."""
    wrong, id = [], json.loads((study / "study.json").read_bytes())["id"]
    for number, trial in trials.items():
        found = finals(study, number)
        if trial["state"] != "COMPLETE":
            continue
        if not found:
            wrong.append(f"trial {number} is COMPLETE without a sealed model")
        for folder in found:
            model = json.loads((folder / "model.json").read_bytes())
            trained = model["train"]["recipe"] | model["train"]["options"]
            asked = {name: trained.get(name) for name in trial["parameters"]}
            if asked != trial["parameters"]:
                wrong.append(f"trial {number} has {trial['parameters']}, its model was trained with {asked}")
            if (model["study"], model["dataset"]) != (id, expected["fingerprint"]):
                wrong.append(f"the model of trial {number} is of another study or other data")
            reached = json.loads((folder / "records.json").read_bytes())[-1]["value"]
            if [reached] != trial["values"]:
                wrong.append(f"trial {number} has {trial['values']}, its model reached {reached}")
    return wrong


def winner(study: Path, trials: dict[int, dict[str, Any]]) -> list[str]:
    """The winner is the best of the complete ones, and its model is the sealed one."""
    complete = [trial for trial in trials.values() if trial["state"] == "COMPLETE"]
    if not complete:
        return ["there is a winner.json though no trial is complete"] if (study / "winner.json").exists() else []
    best = min(complete, key=lambda trial: (-trial["values"][0], trial["number"]))["number"]
    told = json.loads((study / "winner.json").read_bytes())
    if told["trial"] != best:
        return [f"winner.json names trial {told['trial']}, the best is {best}"]
    if not any(sha256(folder / "seal.json") == told["seal"] for folder in finals(study, best)):
        return [f"winner.json names another model than trial {best} has"]
    return []


def mlflow(database: Path, trials: dict[int, dict[str, Any]]) -> list[str]:
    """One run for each trial, ended as it did and with its value; one parent; one registered model, the winner's."""
    wrong, runs = [], {}
    for run, status, trial in rows(
        database, "SELECT r.run_uuid, r.status, t.value FROM runs r JOIN tags t ON r.run_uuid = t.run_uuid "
        "WHERE t.key = 'wsol.trial' AND r.lifecycle_stage = 'active'"
    ):  # fmt: skip
        runs.setdefault(trial, []).append((run, status))
    if sorted(runs) != sorted(["study", *map(str, trials)]):
        wrong.append(f"MLflow has runs of {sorted(runs)}")
    wrong += [f"MLflow has {len(of)} runs of {trial}" for trial, of in runs.items() if len(of) != 1]
    for number, trial in trials.items():
        for run, status in runs.get(str(number), []):
            if status != ENDS.get(trial["state"]):
                wrong.append(f"MLflow has trial {number} {status}, it is {trial['state']}")
            value = rows(database, f"SELECT value FROM latest_metrics WHERE run_uuid = '{run}' AND key = 'objective'")
            # its pages show six digits
            reached = f"{trial['values'][0]:.6g}" if trial["state"] == "COMPLETE" else ""
            if reached and [f"{shown:.6g}" for (shown,) in value] != [reached]:
                wrong.append(f"MLflow has {value} of trial {number}, it reached {trial['values']}")
            steps = [s for (s,) in rows(
                database, f"SELECT step FROM metrics WHERE run_uuid = '{run}' AND key = 'train/loss'")]  # fmt: skip
            if len(set(steps)) < len(steps):
                wrong.append(f"MLflow has epochs {sorted(steps)} of trial {number}")
    return wrong


def registered(study: Path, database: Path) -> list[str]:
    """The winner's model is registered, and nothing else."""
    if not (study / "winner.json").exists():
        return []
    best = str(json.loads((study / "winner.json").read_bytes())["trial"])
    found = rows(database, "SELECT t.value FROM model_versions v JOIN tags t ON v.run_id = t.run_uuid "
                 "WHERE t.key = 'wsol.trial' AND v.current_stage != 'Deleted_Internal'")  # fmt: skip
    return [] if found == [(best,)] else [f"the registry has models of trials {found}, not of {best} alone"]


def reference(trials: dict[int, dict[str, Any]], expected: dict[str, Any]) -> list[str]:
    """What an undisturbed study of the same seed found is what this one found."""
    if not expected["reference"]:
        return []
    right = ledger(Path(expected["reference"]))
    return [f"trial {n} is {t}, undisturbed {right.get(n)}" for n, t in trials.items() if t != right.get(n)]


def places(root: Path, expected: dict[str, Any]) -> list[str]:
    """No file lies where none belongs, and the data is what it was."""
    strays = [str(path.relative_to(root)) for place in expected["places"] for path in (root / place).rglob("*")]
    wrong = [f"files outside of the storage: {strays[:5]}"] if strays else []
    return wrong + [f"{name} of the data has changed" for name, digest in expected["data"].items()
                    if sha256(root / "data" / name) != digest]  # fmt: skip


def check(root: Path) -> list[str]:
    """Everything that does not hold of the study below `root`."""
    expected = json.loads((root / "expected.json").read_bytes())
    study, tracked = root / "runs/s", root / "runs/mlflow.db"
    trials = ledger(study / "study.db")
    found = [*proposals(trials, expected), *results(study, trials, expected), *winner(study, trials)]
    return [*found, *mlflow(tracked, trials), *registered(study, tracked), *reference(trials, expected),
            *places(root, expected)]  # fmt: skip


if __name__ == "__main__":
    told = check(Path(sys.argv[1]))
    print("\n".join(told))
    sys.exit(bool(told))
