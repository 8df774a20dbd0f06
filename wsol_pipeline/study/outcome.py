"""What a study found, as data and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import search_spaces
from wsol_pipeline.data.published import PAPER_DATA, is_paper_data
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.study.doubt import Doubt, sentence
from wsol_pipeline.study.ledger import PUBLISHED, SCHEMA, Ledger
from wsol_pipeline.study.pareto import COST, Rule
from wsol_pipeline.study.plan import Plan
from wsol_pipeline.study.standings import Standing, compared, front
from wsol_pipeline.study.tuner import trial_folder
from wsol_pipeline.text import format_parameters
from wsol_pipeline.tracking.registry import selected_on
from wsol_pipeline.training.checkpoint import CheckpointStore, seal_of
from wsol_pipeline.training.config import to_dict


def ranking_markdown(
    ranking: Sequence[Ranked], objectives: Sequence[str], published: Mapping[str, Mapping[str, float]], sure: str = ""
) -> str:
    """The study's table as Markdown, with what the papers report for the settings among its trials below it.

    Args:
        published: preset id -> the paper's figures, measured on its own data and protocol.
        sure: by what rule the first was picked, and how sure that is, in sentences.
    """
    heads = " | ".join(name if name == COST else f"{name} (validation)" for name in objectives)
    lines = [f"| trial | setting | parameters | {heads} |", "|---" * (3 + len(objectives)) + "|"]
    lines += [
        f"| {standing.number} | {note} | {format_parameters(p)} | {' | '.join(standing.cells(objectives))} |"
        for standing, note, p in ranking
    ]
    lines += ["", sure] if sure else []
    if published:
        lines += ["", "Published, on the paper's own data and protocol:", "", "| setting | figures |", "|---|---|"]
        lines += [f"| {name} | {format_parameters(figures)} |" for name, figures in published.items()]
    return "\n".join(lines) + "\n"


def on_front(ranking: Sequence[Ranked], rule: Rule) -> list[Ranked]:
    """The settings of a study of several objectives that no other beats, best first."""
    found = front([standing for standing, _, _ in ranking], rule)
    return [row for row in ranking if row[0] in found]


Ranked = tuple[Standing, str, dict[str, Any]]  # of one setting: how it stands, which published one it is, parameters


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    `ranking`: the completed proposals, best first; `doubt`: how sure the first is, in a sentence or none; `standing`:
    the first beside the centred box, and which epoch's model it is, likewise; `stopped`: the limit it ran into, if any;
    `rule`: of several objectives, how the first was picked, in a sentence;
    `damaged`: what kept `doubt` from being known; `used`: what the first one's time went to, in a sentence or none;
    `notes`: what files of boxes are like that have chosen, a line each.
    """

    balance: dict[str, int]
    ranking: list[Ranked]
    best: Store | None  # the final folder of the best trial, unless it is damaged
    failures: dict[int, dict[str, str]]
    device_hours: float
    hours: float = 0.0  # that this run of the command took
    doubt: str = ""
    standing: str = ""
    rule: str = ""
    stopped: str = ""
    damaged: str = ""
    used: str = ""
    notes: tuple[str, ...] = ()


def winner_record(
    plan: Plan, ledger: Ledger, ranking: Sequence[Standing], final: Store, doubt: Doubt | None
) -> dict[str, Any]:
    """What the final evaluation needs to know of a study: the winner, the first of `ranking`, and the published setting
    it is compared with; by what each is known again: the study's id, and the SHA-256 of a model's seal. Places are
    relative to the storage if they lie in it.

    With how sure the winner is: values over seeds where there are several, and how often which trial wins redraws.
    """
    rows, compared = search_spaces.presets(), None
    for trial in ledger.trials():
        if trial.user_attrs.get(PUBLISHED) not in rows:
            continue
        folder = CheckpointStore(trial_folder(plan.folder, trial.number), 0).final()
        if folder is not None:
            compared = {
                **model_named(folder, plan.options.store),
                "preset": trial.user_attrs[PUBLISHED],
                "trial": trial.number,
            }
            break
    best = ranking[0]
    sure: dict[str, Any] = {}
    if len(best.values) > 1:
        over = {"values": best.values, "mean": best.mean, "std": best.std, "n": len(best.values)}
        sure["confirmed"] = {**over, "trials": best.trials}
    if doubt:
        sure |= {"wins": doubt.wins, "doubt": sentence(doubt)}
    if plan.rule:
        sure |= several_objectives(ranking, plan.rule)
    record = {
        "schema": SCHEMA,
        "study": ledger.home.id,
        "method": plan.config.method,
        "selected_on": selected_on(to_dict(plan.config)),
        **model_named(final, plan.options.store),
        "trial": best.number,
        "trials": len(ledger.proposals()),
        "published": compared,
        "data": plan.options.store.relative(plan.dataset.uri),
        "paper_data": [name for name in PAPER_DATA if is_paper_data(plan.dataset.manifest, name)],
    }
    return redact(sure | record)


def epochs_told(records: Sequence[Mapping[str, Any]], epochs: int) -> str:
    """Which epoch's model was kept of a finished training, and when it ended, where either is not the last it was to
    have."""
    if not records or records[-1].get("kept_epoch") is None:
        return ""
    ended, kept = records[-1]["epoch"], records[-1]["kept_epoch"]
    early = f"Training ended after {ended} of {epochs} epochs: none had been better for long." if ended < epochs else ""
    best = f"The model is of epoch {kept}, the best that was searched." if kept < ended else ""
    return f"{early} {best}".strip()


def model_named(final: Store, storage: Store) -> dict[str, str]:
    """Where a finished model is in `storage`, and which it is."""
    return {"model": storage.relative(final.uri), "seal": seal_of(final)}


def several_objectives(ranking: Sequence[Standing], rule: Rule) -> dict[str, Any]:
    """What `winner.json` says of a study of several objectives: names, values, rule and front, means over seeds."""
    kind = "settings" if len(ranking[0].values) == 1 else "confirmed settings"
    return {
        "objectives": rule.objectives,
        "tolerance": rule.tolerance,
        "values": dict(zip(rule.objectives, ranking[0].means, strict=True)),
        "rule": rule.sentence({standing.number: standing.means for standing in compared(ranking)}, kind),
        "front": [{"trial": s.number, "seeds": len(s.trials), "values": s.means} for s in front(ranking, rule)],
    }


def published_figures(ranking: Sequence[Ranked]) -> dict[str, Mapping[str, float]]:
    """What the papers report for the published settings among the trials, by preset id."""
    rows = search_spaces.presets()
    return {note: rows[note].published for _, note, _ in ranking if note in rows}
