"""Which models are judged, and a row for each way to read one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import search_spaces
from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.errors import DataError, MismatchError
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.storage import Store
from wsol_pipeline.study.outcome import WINNER
from wsol_pipeline.training.checkpoint import seal_of
from wsol_pipeline.training.model import Model

EVALUATIONS, CENTRED_BOX = "evaluations", "centred-box.json"


@dataclass(frozen=True)
class Contender:
    """A finished model to be judged. `preset` names the published setting it was trained with, if it was; its study
    knows it by `study_id` and `seal`."""

    label: str
    study: str
    final: Store
    preset: str | None = None
    study_id: str = ""
    seal: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the verdict: metrics in percent; intervals are 95 % bootstrap intervals over test images.

    `published` is what the paper reports for the setting `preset` under the same protocol, on its own data.
    """

    label: str
    readout: str
    val: Mapping[str, float]
    transferred: dict[str, float]
    oracle: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    preset: str | None = None
    published: Mapping[str, float] = field(default_factory=dict)


def finished_study(store: Store, study: str) -> dict[str, Any]:
    """The winner's record of a study. Raises `DataError` with the finished ones if it is not among them."""
    try:
        record = json.loads((store / study).read(WINNER))
    except FileNotFoundError:
        known = sorted({name.split("/")[0] for name in store.list() if name.endswith(f"/{WINNER}")})
        raise DataError(
            f"{store.uri} has no finished study {study!r}; finished ones: {', '.join(known) or 'none'}."
        ) from None
    if not {"study", "seal"} <= record.keys():
        raise DataError(
            f"Study {study!r} was finished by another version of this code: judge it with that one, or begin it anew."
        )
    return record


def same_dataset(winners: Mapping[str, Mapping[str, Any]]) -> Dataset:
    """The one dataset of all `winners`. Raises `DataError` for several."""
    places = {winner["data"] for winner in winners.values()}
    if len(places) > 1:
        raise DataError(f"Studies of different datasets cannot stand in one table: {', '.join(sorted(places))}.")
    return open_dataset(places.pop())


def contenders(winners: Mapping[str, Mapping[str, Any]]) -> list[Contender]:
    """Others' winners first, then the first study's published setting, then its winner; one line if it is both."""
    first, *others = winners
    found = [_contender("winner", name, winners[name], winners[name]) for name in others]
    main, published = winners[first], winners[first]["published"]
    if published and published["model"] == main["model"]:
        return [*found, _contender("winner, as published", first, main, published)]
    if published:
        found.append(_contender("published", first, main, published))
    return [*found, _contender("winner", first, main, main)]


def _contender(what: str, study: str, winner: Mapping[str, Any], named: Mapping[str, Any]) -> Contender:
    final = Store(named["model"])
    return Contender(f"{study}: {what}", study, final, named.get("preset"), winner["study"], named["seal"])


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
            raise DataError(f"{dataset.uri} is not the data any more that {contender.study} was tuned on.")


def evaluation_name(contender: Contender) -> str:
    """What a model's kept result is called: a model has one, and another if it is read as published too."""
    return f"{seal_of(contender.final)[:16]}{'-published' if contender.preset else ''}"


def rows_of(contender: Contender, rows: Sequence[Mapping[str, Any]], rules: Protocol) -> list[Row]:
    """Rows of one model, as they are kept, with its label before theirs and the paper's figures beside them."""
    beside = {"preset": contender.preset, "published": paper_figures(contender.preset, rules)}
    return [Row(**{**row, "label": f"{contender.label}{row['label']}", **beside}) for row in rows]


def paper_figures(preset: str | None, rules: Protocol) -> Mapping[str, float]:
    """What the paper reports for a preset, if under these rules; under others the same name is another measure."""
    row = search_spaces.presets().get(preset or "")
    return row.published if row and row.protocol == rules.name else {}
