"""The final evaluation: the test split, opened once per model, after every choice was made on validation.

Two numbers for every metric, never mixed: *transferred*, with readout and thresholds chosen on validation (the honest
number), and *oracle*, with thresholds picked on the test split itself (the field's habit: an upper bound).

Kept below a study's folder, for reports, which never open the test split themselves:

    evaluations/MODEL.json               rows, the counts behind them, provenance
    evaluations/MODEL/images-N.parquet   every single image as row N of them sees it (a `Case` each)
    evaluations/MODEL/pictures.json      some of these images: best, median and worst
    centred-box.json                     the baseline's row
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Metric

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.evaluation.measures import choosing, is_judged, judged_by
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.redaction import redact
from wsol_pipeline.tracking import registry
from wsol_pipeline.tracking.connect import Connect, connect_mlflow
from wsol_pipeline.tracking.runs import StudyRuns, deliver
from wsol_pipeline.training.checkpoint import seal_of
from wsol_pipeline.verdict.costs import Cost
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.pictures import GALLERY, draw
from wsol_pipeline.verdict.placing import somewhere
from wsol_pipeline.verdict.rows import (
    CENTRED_BOX,
    EVALUATIONS,
    Contender,
    Row,
    evaluation_name,
    opened,
    rows_of,
)
from wsol_pipeline.verdict.score import Progress, centred_box, score_here, silent, test_rows


@dataclass(frozen=True)
class Verdict:
    """What the final evaluation found. `rows`: the centred box, others' winners, the first study's; its winner last.

    `tags` say for which data and evaluation that winner was judged; `connect` is the way to MLflow.
    """

    options: EvaluateOptions
    rows: Sequence[Row]
    objective: str  # what validation maximised
    protocol: str
    images: int
    shrunk: int  # photographs that were too large to be read as they are stored
    picture: str  # where the gallery is
    winner: Contender
    tags: dict[str, str]
    connect: Connect
    is_measured: bool = True  # whether test has boxes or masks: without, classes alone are judged
    costs: Sequence[Cost] = ()  # of choosing by other selectors, where they were asked for

    @property
    def measure(self) -> str:
        """The metric that the winner is judged by on test."""
        return judged_by(self.objective, self.rows[-1].transferred)


def judge(options: EvaluateOptions, progress: Progress = silent) -> Verdict:
    """Evaluate the studies' winners on test and keep the result."""
    dataset, judged, models = opened(options.store, options.study, options.data)
    connect = connect_mlflow(options.store, options.experiment)
    rules, main = models[0].protocol, models[-1]
    rows = []
    if (is_measured := is_judged(rules, dataset.test())) and is_judged(choosing(rules, dataset.val), dataset.val):
        rows = [centred_box(options, dataset, rules, test_rows(options, dataset, rules))]
        for study in options.study:
            (options.store / study).write(CENTRED_BOX, json.dumps(dataclasses.asdict(rows[0])).encode())
    for contender in judged:
        rows += judged_rows(options, contender, dataset, rules, progress)
    seen = dict(zip([contender.label for contender in judged], models, strict=True))
    picture = draw(test_rows(options, dataset, rules), dataset, seen, options.store / options.study[0])
    tags = registry.model_tags({**main.description, "dataset": dataset.fingerprint})
    images, shrunk = dataset.test().num_rows, max(shrunk_photographs(options, contender) for contender in judged)
    return Verdict(
        options,
        rows,
        main.config.objective,
        rules.name,
        images,
        shrunk,
        picture,
        judged[-1],
        tags,
        connect,
        is_measured,
    )


def judged_rows(
    options: EvaluateOptions, contender: Contender, dataset: Dataset, rules: Protocol, progress: Progress = silent
) -> list[Row]:
    """The rows of one model: from the kept result if test was opened for it before, else from test, now."""
    folder, name = options.store / contender.study / EVALUATIONS, evaluation_name(contender)
    if not folder.exists(f"{name}.json"):
        result, files = somewhere(score_here, options, contender, dataset, progress=progress)
        for file, data in files.items():
            (folder / name).write(file, data)
        folder.write(f"{name}.json", json.dumps(redact(result), indent=1).encode())
    return rows_of(contender, json.loads(folder.read(f"{name}.json"))["rows"], rules)


def shrunk_photographs(options: EvaluateOptions, contender: Contender) -> int:
    """How many test photographs the model saw shrunk, since they were too large to be read as they are stored."""
    folder = options.store / contender.study / EVALUATIONS
    return json.loads(folder.read(f"{evaluation_name(contender)}.json")).get("shrunk", 0)


def publish(verdict: Verdict) -> tuple[str, str]:
    """Put the verdict on the first study's MLflow run and crown its winner: (what changed, what MLflow lacks).

    Raises `DataError` if it cannot be crowned.
    """
    options, transferred = verdict.options, verdict.rows[-1].transferred
    runs, changes = StudyRuns(verdict.connect, options.study[0], {}, verdict.winner.study_id), []
    first = sorted(transferred, key=lambda metric: metric != verdict.measure)
    figures = {metric: transferred[metric] for metric in first}

    def crown() -> None:
        fingerprint = seal_of(verdict.winner.final)
        changes.append(registry.crown(runs.client, runs.study, fingerprint, verdict.tags, figures))

    steps = {
        "evaluation.json": lambda: _add_rows(runs, verdict.rows),
        "metrics on test": lambda: _add_metrics(runs, verdict.rows[-1]),
        "the gallery": lambda: _add_gallery(runs, verdict),
    }
    missing = deliver(steps | ({"the champion": crown} if options.champion else {}))
    return next(iter(changes), ""), missing


def _add_rows(runs: StudyRuns, rows: Sequence[Row]) -> None:
    values = redact({row.label: dataclasses.asdict(row) for row in rows})
    runs.client.log_dict(runs.parent(), values, "evaluation.json")


def _add_metrics(runs: StudyRuns, winner: Row) -> None:
    run = runs.client.get_run(runs.parent()).info
    metrics = [
        Metric(f"test/{kind}/{metric}", value, run.start_time, 0)  # at one time: written again it is the same
        for kind, values in (("transferred", winner.transferred), ("oracle", winner.oracle))
        for metric, value in values.items()
    ]
    runs.log(run.run_id, metrics, {}, {})


def _add_gallery(runs: StudyRuns, verdict: Verdict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / GALLERY
        picture.write_bytes((verdict.options.store / runs.study).read(GALLERY))
        runs.add_pictures([picture])
