"""Which models are judged, and a row for each way to read one."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from scipy.stats import t as student

import search_spaces
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.errors import DataError, MismatchError
from wsol_pipeline.evaluation.baseline import verdict_on_box
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.pareto import deviation
from wsol_pipeline.training.checkpoint import seal_of
from wsol_pipeline.training.model import Model, load_model

EVALUATIONS, CENTRED_BOX = "evaluations", "centred-box.json"
BASELINE = "centred box"  # the label of its row
OTHER_DATA = "NOT THE PAPER'S DATA"


@dataclass(frozen=True)
class Contender:
    """A finished model to be judged. `preset` names the published setting it was trained with, if it was; its study
    knows it by `study_id` and `seal`.

    `other_data`: it was trained on other data than the paper's; `confirmations`: trials of its setting, further seeds.
    """

    label: str
    study: str
    final: Store
    preset: str | None = None
    study_id: str = ""
    seal: str = ""
    other_data: bool = False
    confirmations: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of the verdict: metrics in percent; intervals are 95 % bootstrap intervals over test images.

    `published` is what the paper reports for the setting `preset` under the same protocol, on its own data, which
    `other_data` says these are not. Over several `seeds` metrics are means, `deviations` those of single seeds (n - 1)
    by "val", "transferred" and "oracle", and there are no intervals.
    """

    label: str
    readout: str
    val: Mapping[str, float]
    transferred: dict[str, float]
    oracle: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    preset: str | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    other_data: bool = False
    seeds: int = 1
    deviations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def finished_study(store: Store, study: str) -> dict[str, Any]:
    """The winner's record of a study, with places as they are today.

    Raises `DataError` with the finished ones if it is not among them.
    """
    try:
        record = json.loads((store / study).read(WINNER))
    except FileNotFoundError:
        known = sorted({name.split("/")[0] for name in store.list() if name.endswith(f"/{WINNER}")})
        raise DataError(
            f"{store.uri} has no finished study {study!r}; finished ones: {', '.join(known) or 'none'}."
        ) from None
    if record.get("schema") != SCHEMA:
        raise DataError(
            f"Study {study!r} was finished by another version of this code (format {record.get('schema')!r}; this one "
            f"has {SCHEMA!r}): judge it with that version, or begin it anew by another --name."
        )
    published = record.get("published") and _placed(record["published"], store)
    return _placed(record, store) | {"published": published}


def _placed(record: Mapping[str, Any], store: Store) -> dict[str, Any]:
    return {**record, **{name: store.resolve(record[name]).uri for name in ("model", "data") if name in record}}


def same_dataset(winners: Mapping[str, Mapping[str, Any]], place: str | None = None) -> Dataset:
    """The one dataset of all `winners`, at its `place` of today if that is given. Raises `DataError` for several."""
    places = {place} if place else {winner["data"] for winner in winners.values()}
    if len(places) > 1:
        raise DataError(f"Studies of different datasets cannot stand in one table: {', '.join(sorted(places))}.")
    return dataset_at(places.pop())


def dataset_at(place: str) -> Dataset:
    """The dataset at `place`, which may have been its place only when a study was run."""
    try:
        return open_dataset(place)
    except DataError as error:
        raise DataError(f"{error} If it was moved, say where to by --data.") from error


def opened(
    store: Store, studies: Sequence[str], place: str | None, device: str = "cpu"
) -> tuple[Dataset, list[Contender], list[Model]]:
    """The data of finished studies, their models as they stand in one table, and these models loaded.

    Raises `DataError` or `MismatchError` for what cannot stand there together, or is not what a study has named.
    """
    winners = {name: finished_study(store, name) for name in studies}
    dataset, judged = same_dataset(winners, place), contenders(winners)
    models = [load_model(contender.final, device) for contender in judged]
    for contender, model in zip(judged, models, strict=True):
        require_named(contender, model.description)
    require_comparable(dataset, judged, models)
    return dataset, judged, models


def contenders(winners: Mapping[str, Mapping[str, Any]]) -> list[Contender]:
    """Others' winners first, then the first study's published setting, then its winner; one line if it is both."""
    first, *others = winners
    found = [_contender("winner", name, winners[name], winners[name]) for name in others]
    main, published = winners[first], winners[first]["published"]
    winner = _contender("winner", first, main, main)
    if not published:
        return [*found, winner]
    row = search_spaces.presets().get(published["preset"])
    other_data = row is None or row.dataset not in main.get("paper_data", ())
    if published["model"] == main["model"]:
        label = f"{winner.label}, as published"
        return [*found, replace(winner, label=label, preset=published["preset"], other_data=other_data)]
    first_trial = replace(_contender("published", first, main, published), other_data=other_data, confirmations=())
    return [*found, first_trial, winner]


def _contender(what: str, study: str, winner: Mapping[str, Any], named: Mapping[str, Any]) -> Contender:
    trials = winner.get("confirmed", {}).get("trials", ())
    return Contender(
        f"{study}: {what}", study, Store(named["model"]), named.get("preset"), confirmations=tuple(trials[1:]),
        study_id=winner["study"], seal=named["seal"],
    )  # fmt: skip


def require_named(contender: Contender, description: Mapping[str, Any]) -> None:
    """Raise `MismatchError` if another model lies there than its study has named, or one of another study."""
    if (seal := seal_of(contender.final)) != contender.seal:
        raise MismatchError(
            f"{contender.final.uri} holds another model (seal {seal[:12]}) than study {contender.study!r} has named "
            f"({contender.seal[:12]}): the study's command names it anew."
        )
    if description["study"] != contender.study_id:
        raise MismatchError(
            f"{contender.final.uri} is of study {description['study']}, not of {contender.study!r} "
            f"({contender.study_id})."
        )


def require_comparable(dataset: Dataset, contenders: list[Contender], models: list[Model]) -> None:
    """Raise `DataError` for models of another evaluation, or trained on other data than lies there today."""
    for contender, model in zip(contenders, models, strict=True):
        if model.protocol != models[0].protocol:
            raise DataError(
                f"{contender.study} was tuned under {model.protocol.name} at {model.protocol.image_size} px, "
                f"{contenders[0].study} under {models[0].protocol.name} at {models[0].protocol.image_size} px: "
                "one table holds one evaluation."
            )
        if model.description["dataset"] != dataset.fingerprint:
            raise DataError(
                f"{dataset.uri} is not the data that {contender.study} was tuned on (any more): its fingerprint is "
                f"{dataset.fingerprint[:12]}, not {model.description['dataset'][:12]}."
            )


def evaluation_name(contender: Contender) -> str:
    """What a model's kept result is called: a model has one, and another if it is read as published too."""
    return f"{seal_of(contender.final)[:16]}{'-published' if contender.preset else ''}"


def rows_of(contender: Contender, rows: Sequence[Mapping[str, Any]], rules: Protocol, split: str = "test") -> list[Row]:
    """Rows of one model, as they are kept, with its label before theirs; beside them the paper's figures of a split."""
    beside = {
        "preset": contender.preset,
        "published": paper_figures(contender.preset, rules, split),
        "other_data": contender.other_data,
    }
    return [Row(**{**row, "label": f"{contender.label}{row['label']}", **beside}) for row in rows]


def paper_figures(preset: str | None, rules: Protocol, split: str = "test") -> Mapping[str, float]:
    """What the paper reports for a preset, if under these rules; under others the same name is another measure.

    Nor are there any that are of another split: `split` is "test", or "train" for the images that trained the models.
    """
    row = search_spaces.presets().get(preset or "")
    if row is None or row.protocol != rules.name:
        return {}
    is_there = row.elsewhere.startswith("train") if split == "train" else not row.elsewhere
    return row.published if is_there else {}


def against_box(winner: Row, box: Row | None, metric: str) -> str:
    """What `verdict_on_box` says of a winner on test; of several seeds, whose mean has no interval of images, with the
    95 % interval of a mean of so many."""
    if box is None or metric not in box.transferred or metric not in winner.transferred:
        return ""
    value, interval = winner.transferred[metric], winner.intervals.get("transferred", {}).get(metric)
    if winner.seeds > 1 and not interval:
        half = student.ppf(0.975, winner.seeds - 1) * winner.deviations["transferred"][metric] / math.sqrt(winner.seeds)
        interval = (value - half, value + half)
    return verdict_on_box(value, interval, box.transferred[metric])


def over_seeds(rows: Sequence[Row]) -> Row:
    """One row of the same model trained with several seeds: means, and the deviations of single seeds."""
    first = rows[0]
    return replace(
        first,
        label=f"{first.label}, {len(rows)} seeds",
        readout=first.readout if len({row.readout for row in rows}) == 1 else "each seed's own",
        val=_each(fmean, [row.val for row in rows]),
        transferred=_each(fmean, [row.transferred for row in rows]),
        oracle=_each(fmean, [row.oracle for row in rows]),
        intervals={},
        seeds=len(rows),
        deviations={
            "val": _each(deviation, [row.val for row in rows]),
            "transferred": _each(deviation, [row.transferred for row in rows]),
            "oracle": _each(deviation, [row.oracle for row in rows]),
        },
    )


def _each(of: Callable[[list[float]], float], seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {metric: of([values[metric] for values in seeds]) for metric in seeds[0]}
