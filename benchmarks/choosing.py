"""What choosing without boxes costs on test, by selector, method and set, beside what the boxes of validation choose.

    python benchmarks/choosing.py --storage runs --studies cam-imagenette bas-imagenette other-runs/cam-generated

Studies need boxes on validation and test. Each is read once and kept as a line of <out>/selectors.jsonl: the same
command goes on where it was stopped, and adds further studies. `annotated` has the true boxes of those images that
`wsol annotate` would lay out first; `consensus` is with the first other method on the same data. `boxes+NAME` lets
boxes choose the setting: the price is that of the threshold alone. Writes <out>/selectors.md; prints one line of JSON.

Then combinations of selectors are tried: what they are fit on is never the set that they are judged on. (A file named
selectors.py here would stand in the place of Python's own for every benchmark.)
"""

import csv
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.targets import COLUMNS, edges
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation import selection
from wsol_pipeline.storage import Store
from wsol_pipeline.text import format_threshold
from wsol_pipeline.training.model import Model, load_model
from wsol_pipeline.verdict.annotate import order
from wsol_pipeline.verdict.costs import METRICS, choose_by, costs, counted
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import finished_study
from wsol_pipeline.verdict.score import silent

V2, _ = METRICS
ALONE = ("otsu", "evidence", "boxes+evidence", "evidence+otsu", "vote:evidence,otsu", "area:0.3")
VOTERS = ("otsu", "boxes+evidence", "boxes+consensus", "area:0.3")
SCALES = np.arange(6, 31) / 20  # by which a selector's threshold is multiplied
Line = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Which finished studies are read."""

    studies: tuple[str, ...]
    """Their names, with a storage of their own before them if it is another: other-runs/cam."""
    storage: str = "runs"
    """The --storage of those that have no other. Nothing is written there."""
    data: dict[str, str] = field(default_factory=dict)
    """Where a study's dataset is today, by its name, if it was moved: --data cam-imagenette data/imagenette."""
    annotated: int = 30
    """Images whose boxes a person would have drawn."""
    out: Path = Path("runs/selectors")
    """Where lines and table are kept."""


def line(options: Options, study: str, models: dict[str, Model], dataset: Dataset) -> Line:
    """The costs of a study's winner, its threshold by each voter, and its test curve at the setting of boxes."""
    model, judging = models[study], EvaluateOptions(study=(study,), storage=places(options)[study])
    names = [*ALONE, f"annotated:{drawn(options, study, dataset)}"]
    own = places(options)
    if other := partner(study, {name: of for name, of in models.items() if own[name] == own[study]}):
        names += [f"consensus:{other}", f"boxes+consensus:{other}"]
    found = costs(judging, model, dataset, names)
    by_boxes = choose_by("boxes", judging, model, dataset, None, "cpu")
    otsu = choose_by("otsu", judging, model, dataset, by_boxes.readout, "cpu")
    test = counted(judging, model, dataset, by_boxes, "cpu", silent)
    voters = {cost.name.split(":", 1)[0]: cost.threshold for cost in found}
    voters |= {"otsu": otsu.thresholds["gt_known_loc"][0], "area:0.3": voters.pop("area")}
    return {
        "study": study, "set": dataset.manifest.name, "method": model.config.method, "val": dataset.val.num_rows,
        "test": dataset.test().num_rows, "costs": [dataclasses.asdict(cost) for cost in found], "taus": voters,
        "curve": selection.curves(test, V2)[0].mean(0).round(3).tolist(), "grid": test.thresholds.tolist(),
    }  # fmt: skip


def places(options: Options) -> dict[str, str]:
    """The storage of each study by its name. Raises `UsageError` for two of one name."""
    found: dict[str, str] = {}
    for place, _, name in (study.rpartition("/") for study in options.studies):
        if name in found:
            raise UsageError(f"Two studies are called {name!r}: their lines would be one.")
        found[name] = place or options.storage
    return found


def drawn(options: Options, study: str, dataset: Dataset) -> Path:
    """A file of the true boxes of the first images that would be annotated."""
    split, file = dataset.val, options.out / f"{study}-annotated.csv"
    rows = np.sort(order(dataset.val_labels)[: options.annotated])
    with file.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for row in split.shard_set().read(rows, ["id", "boxes"]).to_pylist():
            writer.writerows([row["id"], *edges(tuple(box), split.box_convention)] for box in row["boxes"])
    return file


def partner(study: str, models: dict[str, Model]) -> str:
    """The first study of another method on the same classes and evaluation; "" if there is none."""
    mine = models[study]
    fits = (
        name
        for name, model in models.items()
        if model.config.method != mine.config.method and _evaluation(model) == _evaluation(mine)
    )
    return next(fits, "")


def _evaluation(model: Model) -> tuple[Any, ...]:
    of = model.config
    return model.description["dataset"], of.protocol, of.image_size, of.resize_size


def table(lines: Sequence[Line]) -> str:
    """Markdown: of each study and selector what test has, and the cost."""
    heads = ["set", "method", "chosen by", "readout > threshold", "V2", "oracle", "cost", "GT-known", "cost"]
    text = [f"| {' | '.join(heads)} |", "|---|---|---|---|---:|---:|---:|---:|---:|"]
    for model, cost in [(of, cost) for of in lines for cost in of["costs"]]:
        readout = f"{cost['readout']} > {format_threshold(cost['threshold'])}"
        cells = [model["set"], model["method"], _name(cost), readout]
        for metric in METRICS:
            low, high = cost["intervals"][metric]
            told = f"{cost['cost'][metric]:+.1f} [{low:+.1f}, {high:+.1f}]" if cost["name"] != "boxes" else ""
            cells += [
                f"{cost['transferred'][metric]:.1f}",
                *([f"{cost['oracle'][V2]:.1f}"] if metric == V2 else []),
                told,
            ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def _name(cost: Line) -> str:
    name = cost["name"].split(":")[0] if cost["name"].startswith("annotated") else cost["name"]
    return f"{name} (abstains)" if cost["reason"] else name


Rule = Callable[[Line], float]  # a line to a threshold


def medians() -> dict[str, Rule]:
    """The lower median of two or more selectors' thresholds: nothing in it is fit."""

    def median(names: Sequence[str]) -> Rule:
        return lambda of: sorted(of["taus"][name] for name in names)[(len(names) - 1) // 2]

    some = (names for count in (1, 2, 3, 4) for names in itertools.combinations(VOTERS, count))
    return {f"median of {', '.join(names)}" if len(names) > 1 else names[0]: median(names) for names in some}


def scaled(name: str, factor: float) -> Rule:
    """A selector's threshold times a factor; `name` "" stands for 1, so for one fixed threshold."""
    return lambda of: factor * (of["taus"][name] if name else 1.0)


def price(rule: Rule, of: Line) -> float:
    """Points of MaxBoxAccV2 that a rule's one threshold costs against what boxes choose, negative."""
    at = int(np.abs(np.array(of["grid"]) - rule(of)).argmin())
    return float(of["curve"][at] - of["costs"][0]["transferred"][V2])


def fitted(name: str, others: Sequence[Line]) -> Rule:
    """The factor with the best mean price on other sets."""
    rules = [scaled(name, factor) for factor in SCALES * (0.5 if not name else 1.0)]
    return max(rules, key=lambda rule: np.mean([price(rule, of) for of in others]))


def combinations(lines: Sequence[Line]) -> list[tuple[str, list[float]]]:
    """(rule, its price on each line), best mean first. Fit rules are fit anew for each set, on all others."""
    found = [(name, [price(rule, of) for of in lines]) for name, rule in medians().items()]
    sets = {of["set"] for of in lines}
    for name in ("", *VOTERS) if len(sets) > 1 else ():
        fit = {held: fitted(name, [of for of in lines if of["set"] != held]) for held in sets}
        found.append((f"fit factor × {name or '1'}", [price(fit[of["set"]], of) for of in lines]))
    return sorted(found, key=lambda of: -np.mean(of[1]))


def combination_table(lines: Sequence[Line]) -> str:
    """Markdown: the mean and the worst price of each combination, and the mean on each set."""
    sets = list(dict.fromkeys(of["set"] for of in lines))
    text = [f"| one threshold by | mean | worst | {' | '.join(sets)} |", f"|---|{'---:|' * (2 + len(sets))}"]
    for name, prices in combinations(lines):
        means = [np.mean([p for p, of in zip(prices, lines, strict=True) if of["set"] == held]) for held in sets]
        text.append(f"| {name} | {' | '.join(f'{value:+.1f}' for value in (np.mean(prices), min(prices), *means))} |")
    return "\n".join(text) + "\n"


def main(options: Options) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "selectors.jsonl"
    winners = {study: finished_study(Store.at(place), study) for study, place in places(options).items()}
    models = {study: load_model(Store(winner["model"])) for study, winner in winners.items()}
    done = {of["study"] for of in map(json.loads, kept.read_text().splitlines())} if kept.exists() else set()
    for study in (name for name in winners if name not in done):
        found = line(options, study, models, open_dataset(options.data.get(study, winners[study]["data"])))
        with kept.open("a") as file:
            file.write(json.dumps(found) + "\n")
    lines = [json.loads(text) for text in kept.read_text().splitlines()]
    complete = [of for of in lines if {*VOTERS} <= {*of["taus"]}]
    (options.out / "selectors.md").write_text(f"{table(lines)}\n{combination_table(complete) if complete else ''}")
    worst: dict[str, float] = {}
    for cost in (cost for of in lines for cost in of["costs"]):
        name = cost["name"].split(":")[0]
        worst[name] = min(worst.get(name, 0.0), cost["cost"][V2])
    print(json.dumps({"benchmark": "choosing", "studies": len(lines), "worst_v2": worst}))


if __name__ == "__main__":
    main(tyro.cli(Options))
