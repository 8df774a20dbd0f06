"""A study as MLflow shows it: where it is tracked, its tags, its trials."""

import functools
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from mlflow.entities import Metric
from optuna.trial import FrozenTrial, TrialState

import search_spaces
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.redaction import redact
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.ledger import FAILURE, PUBLISHED, Ledger
from wsol_pipeline.study.plan import Plan
from wsol_pipeline.study.standings import CONFIRMS, SEED
from wsol_pipeline.study.surface import kept_counts, write_surface
from wsol_pipeline.study.tuner import trial_folder
from wsol_pipeline.text import format_value, metric_name, parameter_name
from wsol_pipeline.tracking.projection import StudyView, TrialView
from wsol_pipeline.tracking.provenance import provenance
from wsol_pipeline.tracking.registry import SELECTED_TAG, selected_on
from wsol_pipeline.tracking.runs import PARENT, STUDY_TAG, TRIAL_TAG
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import TrainConfig, as_kept

logger = logging.getLogger(__name__)

NOTE = "mlflow.note.content"  # a run's description, in Markdown
SHOWN = 10  # trials of the study's table
ENDS = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def study_tags(plan: Plan) -> dict[str, str]:
    """Where the study's numbers come from, by our names and by those that MLflow's pages know."""
    sources = provenance()
    return {
        "wsol.data": plan.options.store.relative(plan.dataset.uri),
        "wsol.data_fingerprint": plan.dataset.fingerprint,
        "wsol.val_fingerprint": plan.dataset.val.fingerprint,
        "wsol.method": plan.config.method,
        "wsol.backbone": plan.config.backbone,
        "wsol.protocol": plan.config.protocol,
        "wsol.training_images": plan.training_images,
        SELECTED_TAG: selected_on(as_kept(plan.config)),
        "wsol.objective": ", ".join(plan.rule.objectives) if plan.rule else plan.config.objective,
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": sources["code.revision"],
        **sources,
    }


def trial_views(plan: Plan, ledger: Ledger, lease: Lease, ended: Container[int] = ()) -> Iterator[TrialView]:
    """Started trials but those that `ended` as MLflow shows them; none any more once another driver writes them."""
    for trial in ledger.trials():
        if lease.lost:
            return
        if trial.number not in ended:
            yield _trial_view(plan, ledger, trial)


def _trial_view(plan: Plan, ledger: Ledger, trial: FrozenTrial) -> TrialView:
    """Parameters that differ between trials alone: the others are the study's, and would crowd comparisons."""
    attrs = trial.user_attrs
    tags = {"wsol.seed": str(plan.config.seed + attrs.get(SEED, 0)), "wsol.published": str(attrs.get(PUBLISHED, ""))}
    if CONFIRMS in attrs:
        tags["wsol.confirms"] = str(attrs[CONFIRMS])
    if FAILURE in attrs:
        tags["wsol.failure"] = "{kind}: {message}".format(**attrs[FAILURE])
    folder = trial_folder(plan.folder, trial.number)
    records = CheckpointStore(folder, 0).records()
    if records and records[-1]["final"]:
        tags["wsol.readout"] = json.dumps(records[-1]["choice"])
        if plan.config.searches_each_epoch:
            tags |= {"wsol.epochs": str(records[-1]["epoch"]), "wsol.kept_epoch": str(records[-1]["kept_epoch"])}
    counts = kept_counts(folder) if trial.state.is_finished() and records else None
    readout = functools.partial(write_surface, counts, plan.config, published_preset(plan)) if counts else None
    parameters = {name.rstrip("_"): value for name, value in ledger.parameters(trial.number).items()}
    tags[NOTE] = _trial_note(plan, trial, counts)
    return TrialView(trial.number, trial.state.name, parameters, tags, records, readout)


def _trial_note(plan: Plan, trial: FrozenTrial, counts: Counts | None) -> str:
    """What a trial's run is, for its page."""
    attrs, objective = trial.user_attrs, metric_name(plan.config.objective)
    kind = f"proposed by {plan.options.sampler}"
    if PUBLISHED in attrs:
        kind = f"a first trial: {attrs[PUBLISHED]}"
    if CONFIRMS in attrs:
        kind = f"trial {attrs[CONFIRMS]} again with another seed"
    told = f"**Trial {trial.number} of study {plan.options.name}**, {kind}. *objective* is {objective} on validation."
    if counts:
        when = "at its end" if trial.state is TrialState.COMPLETE else "at its last rung"
        told += (
            f"\n\nThe readout was solved {when} over {len(counts.settings)} setting(s) and all thresholds, not "
            "trained: *readout/* among the artifacts has the whole surface, *readout/gain* what that was worth."
        )
    return f"{told}\n\nParameters that all trials share are those of the study's run, its parent."


def published_preset(plan: Plan) -> str | None:
    """The first of the settings tried first that is a paper's row."""
    rows = search_spaces.presets(plan.config.method)
    return next((name for name in plan.published if name in rows), None)


def study_view(plan: Plan, ledger: Ledger, lease: Lease) -> StudyView | None:
    """The study so far: how many trials ended how, the best of them after each end; None once another driver writes."""
    if lease.lost:
        return None
    ended = sorted((t for t in ledger.trials() if t.state.is_finished()), key=lambda t: (t.datetime_complete, t.number))
    tags = {NOTE: _study_note(plan, ledger), "wsol.trials": "{started} started = {complete} complete + {pruned} pruned "
            "+ {fail} failed + {running} running".format(**ledger.balance())}  # fmt: skip
    searched = _searched(plan)
    page = _page(plan.options.name, searched)
    shared = {name: value for name, value in flat_parameters(plan.config).items() if name not in searched}
    return StudyView(shared, tags, _progress(ended, published_preset(plan)), page)


def _progress(ended: Sequence[FrozenTrial], preset: str | None) -> list[Metric]:
    """Counts of ends, and the best objective so far after each end, in their order. Confirmations are no proposals.

    Once the published setting `preset` is complete, also the best one's gain over it, both with the readout solved:
    what searching the training was worth.
    """
    counts, best, published, metrics = Counter[TrialState](), -math.inf, math.nan, []
    for step, trial in enumerate(ended, start=1):
        counts[trial.state] += 1
        values: dict[str, float] = {f"trials/{name}": counts[state] for name, state in ENDS.items()}
        if trial.state is TrialState.COMPLETE and CONFIRMS not in trial.user_attrs:
            best = max(best, trial.values[0])
            if preset and trial.user_attrs.get(PUBLISHED) == preset:
                published = trial.values[0]
        if best > -math.inf:
            values["best_objective"] = best
        if not math.isnan(published):
            values["gain_from_training"] = best - published
        assert trial.datetime_complete is not None
        when = int(trial.datetime_complete.timestamp() * 1000)
        metrics += [Metric(name, value, when, step) for name, value in values.items()]
    return metrics


def _study_note(plan: Plan, ledger: Ledger) -> str:
    """What the study is, how it stands, how the best was chosen and what to do next, for its run's page."""
    options, config = plan.options, plan.config
    ranking = ledger.ranking()[:SHOWN]
    lines = [
        f"**{options.name}**: {config.method} on {config.backbone}, tuned for {metric_name(config.objective)} under "
        f"protocol {config.protocol}. A child run is a trial; readout and thresholds are solved inside each.",
        "",
        "Everything here was chosen on the validation split. Test is opened once, by "
        f"`python rayjobs/evaluate.py --study {options.name} --storage {redact(options.storage)}`.",
        "",
        f"All trials with their parameters: the experiment's page of runs with `?viewStateShareKey="
        f"{options.name}` after its address.",
    ]
    if ranking:
        names = list(ledger.parameters(ranking[0].number))
        head = ["trial", *(parameter_name(name) for name in names), metric_name(config.objective)]
        lines += ["", "Best so far:", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for standing in ranking:
            parameters = ledger.parameters(standing.number)
            shown = [format_value(parameters[name]) for name in names]
            lines.append(f"| {' | '.join([str(standing.number), *shown, str(standing)])} |")
    return "\n".join(lines)


def _searched(plan: Plan) -> list[str]:
    """Names of the parameters that trials differ in."""
    return list(plan.space(optuna.create_study().ask()))


def _page(study: str, parameters: Sequence[str]) -> dict[str, Any]:
    """MLflow's page of runs with the study's trials, best first, in columns that say something.

    The state is that of the page of MLflow 3.17, which ignores what it does not know.
    """
    columns = ["metrics.`objective`", "metrics.`readout/gain`"]
    columns += [f"params.`{name.rstrip('_')}`" for name in parameters]
    trials = f"tags.`{STUDY_TAG}` = '{study}' and tags.`{TRIAL_TAG}` != '{PARENT}'"
    return {
        "searchFilter": trials,
        "orderByKey": "metrics.`objective`", "orderByAsc": False, "startTime": "ALL", "lifecycleFilter": "Active",
        "selectedColumns": columns, "runsHiddenMode": "SHOWALL",
    }  # fmt: skip


def flat_parameters(config: TrainConfig) -> dict[str, Any]:
    """A training configuration as MLflow parameters: the method's options and the recipe by their own names."""
    data = as_kept(config)
    return data.pop("options") | data.pop("recipe") | data
