"""A report as one HTML page that needs nothing beside it. Jinja escapes whatever users have named."""

import base64
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from wsol_pipeline.evaluation.cases import KINDS
from wsol_pipeline.redaction import printable, redact
from wsol_pipeline.report import charts
from wsol_pipeline.report.facts import Facts, Line, Search, Subject
from wsol_pipeline.report.significance import compare
from wsol_pipeline.report.summary import FEW_TRIALS, by_size, gain, gain_sentence, kinds, size_edges
from wsol_pipeline.report.tables import PAIRED, PAIRED_HEAD, comparison_table, figure, paired_cells
from wsol_pipeline.study.ledger import FAILURE, PUBLISHED, SPENT
from wsol_pipeline.study.standings import front as pareto_front
from wsol_pipeline.study.standings import standings
from wsol_pipeline.text import format_threshold, metric_name, parameter_name
from wsol_pipeline.tracking.provenance import provenance
from wsol_pipeline.training.config import to_dict
from wsol_pipeline.training.model import ARITHMETIC, TRAINING_IMAGES
from wsol_pipeline.verdict.rows import against_box

SURFACE = "All settings (down) at all thresholds (across), validation, %; the cross is the choice."
GROUPS = {"best": "Best", "median": "Median", "worst": "Worst"}


def render(facts: Facts, storage: str) -> str:
    """The page. `storage` is what its commands name as --storage."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=shown, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return templates.get_template("page.html").render(**_context(facts, storage))


def shown(value: Any) -> Any:
    """What a page shows of a value: its text without secrets and without what would turn a line around, markup as
    markup."""
    if isinstance(value, Markup):
        return Markup(printable(redact(str(value))))
    return printable(redact(value)) if isinstance(value, str) else redact(value)


def _context(facts: Facts, storage: str) -> dict[str, Any]:
    main, lines = facts.main, facts.lines
    studies = list(dict.fromkeys(subject.contender.study for subject in reversed(facts.subjects)))
    seen = [line for line in lines if line.cases]
    return {
        "title": main.contender.study,
        "others": studies[1:],
        "today": datetime.date.today().isoformat(),
        "main": main,
        "metric": metric_name(facts.objective),
        "headline": _headline(facts),
        "evaluate": f"python rayjobs/evaluate.py --study {' '.join(studies)} --storage {storage}",
        "not_judged": [s.contender.label for s in facts.subjects if s.evaluation is None],
        "table": comparison_table(lines, facts.objective),
        "paired": [paired_cells(of) for of in compare(lines)],
        "paired_head": PAIRED_HEAD,
        "paired_told": PAIRED,
        "comparison": Markup(charts.comparison(lines, facts.measure)),
        "gain": gain_sentence(facts),
        "steps": Markup(charts.steps(gain(facts), facts.measure)) if gain(facts) else "",
        "searches": [_search(s, facts.objective) for s in facts.searches if any(trial.params for trial in s.trials)],
        "readout": _readout(main, facts.objective),
        "images": _images(seen) if seen else None,
        "galleries": [_gallery(subject) for subject in reversed(facts.subjects) if subject.pictures],
        "gallery": _as_jpeg(facts.gallery) if facts.gallery else "",
        "provenance": _provenance(facts),
        "configuration": json.dumps(redact(to_dict(main.config)), indent=1),
    }


def _headline(facts: Facts) -> str:
    row, metric = facts.main.lines[-1].row, facts.measure
    who = f"The winner of {facts.main.contender.study}" + (f", over {row.seeds} seeds," if row.seeds > 1 else "")
    if not row.transferred:
        reached = f"{figure(row, 'val', metric)} % {metric_name(metric)}"
        return f"{who} reaches {reached} on validation; test was not opened yet."
    low_high = row.intervals.get("transferred", {}).get(metric)
    told = f" (95 % interval {low_high[0]:.1f} to {low_high[1]:.1f})" if low_high else ""
    images = facts.main.evaluation["images"] if facts.main.evaluation else 0
    sentence = f"{who} reaches {figure(row, 'test', metric)} % {metric_name(metric)} on {images} test images{told}."
    if facts.centred_box and metric in facts.centred_box.transferred:
        sentence += f" A centred box has {facts.centred_box.transferred[metric]:.1f} %."
    return f"{sentence} {against_box(row, facts.centred_box, metric)}".strip()


def _search(search: Search, objective: str) -> dict[str, Any]:
    """What the page shows of one study."""
    names = sorted({name for trial in search.trials for name in trial.params})
    states = [trial.state for trial in search.trials]
    complete = [trial for trial in search.trials if trial.state is TrialState.COMPLETE]
    told = [(TrialState.COMPLETE, "complete"), (TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")]
    enough = len(complete) >= FEW_TRIALS and len({trial.value for trial in complete}) > 1 and len(names) > 1
    of = {trial.number: trial for trial in search.trials}
    several = search.several
    ranking = several.ranking if several else standings([*search.trials, *search.confirmations])
    objectives = several.rule.objectives if several else (objective,)
    best = pareto_front(several.ranking, several.rule) if several else []
    rows = {s.number: _trial(of[s.number], names, search.winner, s.cells(objectives)) for s in ranking}
    rest = [
        _trial(trial, names, search.winner, ["" if trial.value is None else f"{trial.value:.2f}"])
        for trial in search.trials
        if trial.state is not TrialState.COMPLETE
    ]
    hours = sum(trial.user_attrs.get(SPENT, 0.0) for trial in [*search.trials, *search.confirmations]) / 3600
    counted = ", ".join(f"{states.count(state)} {name}" for state, name in told)
    again = f"; {len(search.confirmations)} more with further seeds" if search.confirmations else ""
    spent = f"; {hours:.3g} device hours" if hours else ""
    return {
        "name": search.name,
        "balance": f"{len(states)} trials: {counted}{again}{spent}",
        "told": search.told,
        "sensitivity": [Markup(charts.sensitivity(search, name, objective)) for name in names],
        "importance": Markup(charts.importance(search)) if enough else "",
        "complete": len(complete),
        "too_few": f"Importance needs at least {FEW_TRIALS} complete trials that differ, over two or more "
        f"hyper-parameters; here are {len(complete)} and {len(names)}.",
        "names": [parameter_name(name) for name in names],
        "objectives": [charts.objective_name(name) for name in objectives],
        "rule": several.sentence if several else "",
        "front": [rows[standing.number] for standing in best],
        "front_charts": [Markup(charts.front(search, several, k)) for k in range(1, len(objectives)) if several],
        "trials": [*rows.values(), *rest],
        "surfaces": [
            Markup(charts.surface(counts, None, objective, f"{search.name}/{number}", f"trial {number}"))
            for number, counts in search.counts.items()
            if len(counts.settings) > 1
        ],
    }  # fmt: skip


def _trial(trial: FrozenTrial, names: Sequence[str], winner: int, reached: Sequence[str]) -> dict[str, Any]:
    notes = ["winner"] if trial.number == winner else []
    notes += [str(trial.user_attrs[PUBLISHED])] if PUBLISHED in trial.user_attrs else []
    notes += ["{kind}: {message}".format(**trial.user_attrs[FAILURE])[:160]] if FAILURE in trial.user_attrs else []
    values = [trial.params.get(name, "") for name in names]
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "values": [f"{value:.3g}" if isinstance(value, float) else value for value in values],
        "reached": reached,
        "note": "; ".join(notes),
    }


def _readout(subject: Subject, objective: str) -> dict[str, Any]:
    counts, choice = subject.val, subject.choice
    several = len(counts.settings) > 1
    words = all(not isinstance(setting, int | float) for setting in counts.settings)
    return {
        "setting": str(choice.readout),
        "settings": len(counts.settings),
        "threshold": format_threshold(choice.threshold),
        "charts": [
            (Markup(svg), caption)
            for svg, caption in (
                (charts.surface(counts, choice, objective, "winner") if several else "", SURFACE),
                (charts.settings_curve(counts, choice, objective) if several else "", "Each at its best thresholds."),
                (charts.grid_of_parts(counts, objective) if words else "", "The same as a grid."),
                (
                    charts.threshold_curves(subject),
                    "At the chosen setting; dotted: the thresholds that validation chose.",
                ),
            )
            if svg
        ],
    }


def _images(lines: Sequence[Line]) -> dict[str, Any]:
    """Distribution, sizes and failures of all lines that know their single images, the winner's first."""
    edges = size_edges(lines[-1].cases)
    counted = [(line.row.label, kinds(line.cases), len(line.cases)) for line in reversed(lines)]
    return {
        "distribution": Markup(charts.iou_distribution(lines)),
        "sizes": Markup(charts.accuracy_by_size({line.row.label: by_size(line.cases, edges) for line in lines})),
        "labels": [label for label, _, _ in counted],
        "kinds": [
            (name, told, [(of[name], 100 * of[name] / images) for _, of, images in counted])
            for name, told in KINDS.items()
        ],
    }


def _gallery(subject: Subject) -> dict[str, Any]:
    return {
        "label": subject.lines[-1].row.label,
        "groups": [
            (title, [_tile(picture) for picture in subject.pictures if picture["group"] == group])
            for group, title in GROUPS.items()
        ],
    }


def _tile(picture: Mapping[str, Any]) -> dict[str, Any]:
    """An image and its map over it, with boxes as (x, y, width, height) in `size`, the evaluation's pixels."""
    image = _decoded(picture["image"], cv2.IMREAD_COLOR)[..., ::-1]
    over = charts.overlay(_decoded(picture["map"], cv2.IMREAD_GRAYSCALE), image)
    jpeg = cv2.imencode(".jpg", over[..., ::-1])[1].tobytes()
    return {
        "class": picture["class"],
        "id": picture["id"],
        "iou": f"{picture['iou']:.2f}",
        "size": picture["pixels"],
        "image": picture["image"],
        "overlay": base64.b64encode(jpeg).decode(),
        "truth": [_corner_and_size(box) for box in picture["truth"]],
        "box": [_corner_and_size(picture["box"])] if picture["box"] else [],
    }


def _as_jpeg(png: bytes) -> str:
    """A large picture in a fifth of the space, in base64."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    jpeg = cv2.imencode(".jpg", np.asarray(picture), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return base64.b64encode(jpeg.tobytes()).decode()


def _decoded(file: str, flag: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(base64.b64decode(file), np.uint8), flag), np.uint8)


def _corner_and_size(box: Sequence[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return x0, y0, max(x1 - x0 + 1, 0), max(y1 - y0 + 1, 0)


def _provenance(facts: Facts) -> dict[str, str]:
    """Where the numbers come from, as pairs of words."""
    main, rules, config = facts.main, facts.main.protocol, facts.main.config
    result = main.evaluation or {}
    told = {
        "data": main.description["data"],
        "fingerprint of the data": main.description["dataset"],
        "fingerprint of validation": main.description["val_split"],
        "fingerprint of test": result.get("test_fingerprint", "not opened"),
        "protocol": f"{rules.name}: {rules.geometry} to {rules.image_size} px, boxes by {rules.box_rule}, "
        f"maps normalised {rules.normalise!r}, {rules.num_thresholds} thresholds",
        "objective": facts.objective,
        "chosen on": "validation: trial, readout and thresholds",
        "method": f"{config.method}, {config.backbone}, seed {config.seed}, {main.description[ARITHMETIC]}",
        "training images": main.description.get(TRAINING_IMAGES, "not known"),
        "readout": f"{main.config.readout}, setting {main.choice.readout}",
        "model": main.contender.final.uri,
        "evaluated on": result.get("device", "not evaluated"),
    }
    evaluated = {f"evaluation: {name}": text for name, text in result.get("provenance", {}).items()}
    told |= evaluated | {"this page: code.revision": provenance()["code.revision"]}
    return redact({name: str(text) for name, text in told.items()})
