"""What a report knows: finished models and studies, read from what the jobs have kept. No data is opened."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState

from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.cases import Case
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.measures import judged_by
from wsol_pipeline.evaluation.protocols import Protocol, protocol
from wsol_pipeline.evaluation.selection import Choice
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.standings import CONFIRMS, Standing, first_objective, standings
from wsol_pipeline.study.tuner import final_files, trial_folder
from wsol_pipeline.training import used
from wsol_pipeline.training.checkpoint import CheckpointStore, read_sealed
from wsol_pipeline.training.config import TrainConfig, from_dict
from wsol_pipeline.training.model import DESCRIPTION, VAL_COUNTS, load_model
from wsol_pipeline.verdict.pictures import PICTURES
from wsol_pipeline.verdict.rows import (
    CENTRED_BOX,
    EVALUATIONS,
    Contender,
    Row,
    contenders,
    evaluation_name,
    finished_study,
    over_seeds,
    require_named,
    rows_of,
)
from wsol_pipeline.verdict.score import choices, named

SURFACES = 12  # trials whose readout surface is shown


@dataclass(frozen=True)
class Line:
    """A row of the comparison. Without an evaluation on test it has validation's figures alone.

    Of several seeds the row holds means; the rest is of the first.
    """

    row: Row
    test: Counts | None = None
    cases: tuple[Case, ...] = ()  # none either where an older version evaluated, or class masks are scored


@dataclass(frozen=True)
class Subject:
    """A finished model: what was chosen for it on validation, and what its evaluation on test has kept."""

    contender: Contender
    config: TrainConfig
    choice: Choice
    val: Counts
    lines: tuple[Line, ...]  # as published, if there is such a reading; then as solved
    pictures: tuple[Mapping[str, Any], ...]
    description: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None  # the kept result

    @property
    def protocol(self) -> Protocol:
        return protocol(self.config.protocol, self.config.image_size, self.config.resize_size)


@dataclass(frozen=True)
class Several:
    """What a study of several objectives found: its settings, best first, and how the first was picked, in words."""

    rule: Rule
    ranking: tuple[Standing, ...]
    sentence: str


@dataclass(frozen=True)
class Search:
    """A study's trials, and the validation counts of the best: their whole readout surface."""

    name: str
    trials: tuple[FrozenTrial, ...]  # proposals alone
    winner: int
    counts: Mapping[int, Counts]  # by trial, the best first
    confirmations: tuple[FrozenTrial, ...] = ()
    told: str = ""  # how sure the winner is, and what its training took, in sentences
    several: Several | None = None  # of several objectives; `trials` and `confirmations` hold the first alone


@dataclass(frozen=True)
class Facts:
    """Everything a report shows. The last of the subjects is the winner of the first study."""

    subjects: tuple[Subject, ...]
    searches: tuple[Search, ...]
    centred_box: Row | None
    gallery: bytes | None  # a PNG, the same test images through every model

    @property
    def main(self) -> Subject:
        return self.subjects[-1]

    @property
    def objective(self) -> str:
        return self.main.config.objective

    @property
    def measure(self) -> str:
        """What models are compared by: the objective, or PxAP on test where boxes chose for masks."""
        row = self.main.lines[-1].row
        return judged_by(self.objective, row.transferred or row.val)

    @property
    def lines(self) -> list[Line]:
        """The comparison, the winner last."""
        first = [Line(self.centred_box)] if self.centred_box else []
        return first + [line for subject in self.subjects for line in subject.lines]


def gather(store: Store, studies: tuple[str, ...], study_db: str | None = None) -> Facts:
    """Read what the jobs have kept of finished `studies`. Raises `DataError` if one is not finished or they differ."""
    winners = {name: finished_study(store, name) for name in studies}
    subjects = tuple(_subject(store, contender) for contender in contenders(winners))
    _require_comparable(subjects)
    found = [_search(store / name, name, winner, study_db) for name, winner in winners.items()]
    folder = store / studies[0]
    judged = subjects[-1].evaluation is not None
    centred = folder.read(CENTRED_BOX) if judged and folder.exists(CENTRED_BOX) else None
    return Facts(
        subjects,
        tuple(search for search in found if search),
        Row(**json.loads(centred)) if centred else None,
        folder.read("gallery.png") if judged and folder.exists("gallery.png") else None,
    )


def _subject(store: Store, contender: Contender) -> Subject:
    files = read_sealed(contender.final, DESCRIPTION, VAL_COUNTS)
    description = json.loads(files[DESCRIPTION])
    require_named(contender, description)
    config = from_dict(TrainConfig, description["train"])
    val = Counts.from_dict(json.loads(files[VAL_COUNTS]))
    folder, name = store / contender.study / EVALUATIONS, evaluation_name(contender)
    result = json.loads(folder.read(f"{name}.json")) if folder.exists(f"{name}.json") else None
    rules = protocol(config.protocol, config.image_size, config.resize_size)
    others = [CheckpointStore(trial_folder(store / contender.study, n), 0).final() for n in contender.confirmations]
    seeds = [contender, *(replace(contender, final=final) for final in others if final)]
    rows = _over_seeds([_rows(store, seed, rules) for seed in seeds])
    if result is None:
        lines = [Line(row) for row in rows]
    else:
        kept = result.get("counts", [None] * len(result["rows"]))  # an earlier version kept none
        counts = [Counts.from_dict(of) if of else None for of in kept]
        cases = [_cases(folder / name, number) for number in range(len(result["rows"]))]
        lines = [Line(*of) for of in zip(rows, counts, cases, strict=True)]
    pictures = json.loads((folder / name).read(PICTURES)) if (folder / name).exists(PICTURES) else []
    choice = Choice.from_dict(description["choice"])
    return Subject(contender, config, choice, val, tuple(lines), tuple(pictures), description, result)


def _rows(store: Store, contender: Contender, rules: Protocol) -> list[Row]:
    """The rows of a model's evaluation, or those of validation alone."""
    folder, name = store / contender.study / EVALUATIONS, f"{evaluation_name(contender)}.json"
    kept = json.loads(folder.read(name))["rows"] if folder.exists(name) else _validation_rows(contender)
    return rows_of(contender, kept, rules)


def _over_seeds(rows: Sequence[Sequence[Row]]) -> list[Row]:
    """Each row of a model as the mean over its seeds; of the first alone, and said so, if not all are judged alike."""
    first = rows[0]
    if len({bool(row.transferred) for of_seed in rows for row in of_seed}) > 1:
        return [replace(row, label=f"{row.label}, one seed of {len(rows)}") for row in first]
    return [over_seeds(of) for of in zip(*rows, strict=True)] if len(rows) > 1 else list(first)


def _validation_rows(contender: Contender) -> list[dict[str, Any]]:
    val = Counts.from_dict(json.loads(contender.final.read(VAL_COUNTS)))
    readings = choices(contender, load_model(contender.final))
    nothing: dict[str, Any] = {"transferred": {}, "oracle": {}, "intervals": {}}
    return [
        {"label": label, "readout": named(choice), "val": selection.transferred(val, choice), **nothing}
        for label, choice in readings.items()
    ]


def _cases(folder: Store, number: int) -> tuple[Case, ...]:
    file = f"images-{number}.parquet"
    if not folder.exists(file):
        return ()
    return tuple(Case(**row) for row in pq.read_table(io.BytesIO(folder.read(file))).to_pylist())


def _require_comparable(subjects: tuple[Subject, ...]) -> None:
    seen = {(subject.protocol, subject.description["dataset"]): subject.contender.study for subject in subjects}
    if len(seen) > 1:
        told = "; ".join(
            f"{study}: {rules.name} at {rules.image_size} px, data {data[:12]}" for (rules, data), study in seen.items()
        )
        raise DataError(f"One report holds one evaluation of one dataset but got {told}.")


def _search(folder: Store, name: str, winner: Mapping[str, Any], study_db: str | None) -> Search | None:
    """The study in `folder`; None for what was solved for a finished model, which has no trials."""
    if study_db is None and not folder.exists("study.db") and not folder.list("journal"):
        return None
    try:
        study = optuna.load_study(study_name=name, storage=open_storage(folder, study_db))
    except KeyError:
        return None
    started = [t for t in study.get_trials(deepcopy=False) if t.state is not TrialState.WAITING]
    rule = Rule(tuple(winner["objectives"]), winner["tolerance"]) if "objectives" in winner else None
    ranking = standings(started, rule)
    several = Several(rule, tuple(ranking), winner["rule"]) if rule else None
    of_first = first_objective(started)
    trials = tuple(trial for trial in of_first if CONFIRMS not in trial.user_attrs)
    confirmations = tuple(trial for trial in of_first if CONFIRMS in trial.user_attrs)
    best = [standing.number for standing in ranking[:SURFACES]]
    files = final_files(folder, VAL_COUNTS)
    counts = {n: _counts(folder / files[n].removesuffix(f"/{VAL_COUNTS}")) for n in best if n in files}
    told = [*map(winner.get, ("doubt", "certainty", "standing", "kept")), used.told(_records(folder, winner["trial"]))]
    return Search(name, trials, winner["trial"], counts, confirmations, " ".join(filter(None, told)), several)


def _records(folder: Store, number: int) -> list[dict[str, Any]]:
    return CheckpointStore(trial_folder(folder, number), 0).records()


def _counts(final: Store) -> Counts:
    return Counts.from_dict(json.loads(read_sealed(final, VAL_COUNTS)[VAL_COUNTS]))
