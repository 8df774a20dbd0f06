"""A published row, trained as its paper did with several seeds, and each model judged once on test.

The seeds are a study whose only setting is the row's, confirmed with further seeds: it continues like any other. The
test split is opened when all of them have ended. What comes out is plain: figures by seed, and what was done otherwise.
"""

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean
from typing import Any

from mlflow.entities import Metric, RunTag

import search_spaces
import wsol_models
from search_spaces import Preset
from wsol_pipeline.data.published import Deviation, data_deviations, is_paper_data
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import errors
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import home
from wsol_pipeline.study.mlflow_view import study_tags
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.outcome import Outcome
from wsol_pipeline.study.plan import Plan, make_plan
from wsol_pipeline.study.tuner import trial_folder
from wsol_pipeline.tracking.connect import connect_mlflow
from wsol_pipeline.tracking.runs import STORAGE_TAG, StudyRuns, deliver
from wsol_pipeline.training import cluster
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import TrainConfig, to_dict
from wsol_pipeline.training.model import ARITHMETIC, DESCRIPTION, TRAINING_IMAGES
from wsol_pipeline.training.options import RunOptions
from wsol_pipeline.training.resolve import resolve
from wsol_pipeline.verdict.judge import judged_rows
from wsol_pipeline.verdict.options import AUTO, EvaluateOptions, ReproduceOptions
from wsol_pipeline.verdict.rows import EVALUATIONS, Contender, Row, evaluation_name
from wsol_pipeline.verdict.score import Progress, silent

AS_PUBLISHED, ORACLE, TRANSFERRED = READINGS = ("as published", "oracle", "transferred")
# Not what a paper trained with: how it runs here, and what our choices on validation aim at.
_OURS = ("seed", "rungs", "objective", "channels_last", "deterministic", "compile", "fixed_setting")


@dataclass(frozen=True)
class SeedRun:
    """A judged model: its seed and trial, how it is read, and every metric (percent) by reading, as it was judged.

    "as published" is there if the row names a setting or a threshold and the run reads maps as the row does.
    """

    seed: int
    trial: int
    readout: str
    validation: float  # the objective
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Reproduction:
    """A finished reproduction. `is_paper_data`: the data are the row's; if not, no difference says anything."""

    row: Preset
    config: TrainConfig
    is_paper_data: bool
    deviations: tuple[Deviation, ...]
    runs: tuple[SeedRun, ...]
    images: Mapping[str, int]  # by split
    provenance: Mapping[str, str]

    @property
    def is_alike(self) -> bool:
        """Whether the metrics are those of the paper: another protocol or split has others by the same name."""
        return self.config.protocol == self.row.protocol and not self.row.elsewhere


def find_row(name: str) -> Preset:
    """The published row of that id, or of another name that it has. An unknown one is answered with the nearest."""
    rows = search_spaces.presets()
    id = search_spaces.ALIASES.get(name, name)
    if id not in rows:
        known = [*rows, *search_spaces.ALIASES]
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise UsageError(f"Unknown row {name!r}. The nearest: {', '.join(near) or 'none'}. All of them: --list.")
    return rows[id]


def find_rows(texts: tuple[str, ...]) -> dict[str, Mapping[str, float]]:
    """Published figures of the rows whose ids hold all of `texts`. Raises `UsageError` if there is none."""
    rows = sorted(search_spaces.presets().items())
    found = {id: row.published for id, row in rows if all(text in id for text in texts)}
    if not found:
        raise UsageError(f"No row's id holds {' and '.join(map(repr, texts))}; --list alone shows all of them.")
    return found


def study_name(id: str) -> str:
    """A row's id as the name of a study."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", id)


def plan_row(options: ReproduceOptions, row: Preset) -> Plan:
    """The study of the row: one setting, its own, and a confirmation for each further seed."""
    shared = {field.name for field in dataclasses.fields(StudyOptions)} & set(vars(options))
    study = StudyOptions(
        **{name: getattr(options, name) for name in shared - {"name", "preset"}},
        name=study_name(row.id) if options.name == AUTO else options.name,
        preset=row.id,
        trials=1,
        published=1,
        pruner="none",
        confirm=int(options.seeds > 1),
        confirm_seeds=max(options.seeds - 1, 1),
    )
    return make_plan(study, row.method, lambda trial: {})


def judge_seeds(plan: Plan, row: Preset, outcome: Outcome, progress: Progress = silent) -> Reproduction:
    """Open the test split, once for each model, and gather what stands beside the row's figures."""
    if outcome.best is None:
        raise DataError(outcome.damaged)
    if "RAY_ADDRESS" in os.environ:
        cluster.connect(nested=False)
    manifest = plan.dataset.manifest
    standing = outcome.ranking[0][0]
    runs = tuple(_judged(plan, row, number, progress) for number in standing.trials)
    return Reproduction(
        row=row,
        config=plan.config,
        is_paper_data=is_paper_data(manifest, row.dataset),
        deviations=(*data_deviations(manifest, row.dataset), *deviations(row, plan.config)),
        runs=runs,
        images={role.value: split.rows for role, split in manifest.splits.items()},
        provenance=_provenance(plan, outcome.best),
    )


def _judged(plan: Plan, row: Preset, number: int, progress: Progress) -> SeedRun:
    options, folder = plan.options, plan.folder
    final = CheckpointStore(trial_folder(folder, number), 0).final()
    assert final is not None  # its trial is complete
    seed = json.loads(final.read(DESCRIPTION))["train"]["seed"]
    asked = EvaluateOptions(
        (options.name,), options.storage, device=options.device, cache_dir=options.cache_dir,
        experiment=options.experiment, cluster_may_grow=options.cluster_may_grow,
    )  # fmt: skip
    rules = protocol(plan.config.protocol, plan.config.image_size, plan.config.resize_size)
    contender = Contender(f"seed {seed}", options.name, final, row.id)
    *published, solved = judged_rows(asked, contender, plan.dataset, rules, progress)
    read = {AS_PUBLISHED: _at_published(row, published[0])} if published and is_read_alike(row, plan.config) else {}
    read |= {ORACLE: with_ois(solved.oracle), TRANSFERRED: solved.transferred}
    metrics = {reading: {**values, **errors(values)} for reading, values in read.items()}
    return SeedRun(seed, number, solved.readout, solved.val[plan.config.objective], metrics)


def _at_published(row: Preset, published: Row) -> Mapping[str, float]:
    """Metrics at the row's threshold; where it names none, at those that are best on test, as its paper's are."""
    return published.transferred if "threshold" in row.readout else with_ois(published.oracle)


def is_read_alike(row: Preset, config: TrainConfig) -> bool:
    """Whether the row's threshold means here what it means there: the same maps, normalised alike."""
    paper = _as_published(row)
    return (config.protocol, config.readout, config.readout_options) == (
        paper.protocol, paper.readout, paper.readout_options,
    )  # fmt: skip


def with_ois(oracle: Mapping[str, float]) -> dict[str, float]:
    """`oracle` with its figures at the best threshold of every single image by the names they have in rows."""
    if "ois_iou50" not in oracle:
        return {**oracle}
    at_30, at_50, at_70 = (oracle[f"ois_iou{iou}"] for iou in (30, 50, 70))
    single = {"ois_max_box_acc_iou30": at_30, "ois_gt_known_loc": at_50, "ois_max_box_acc_iou70": at_70}
    return {**oracle, **single, "ois_max_box_acc_v2": fmean(single.values())}


def deviations(row: Preset, config: TrainConfig) -> list[Deviation]:
    """What a run has otherwise than the row, apart from its data. The paper's weights are ImageNet's."""
    theirs, mine = _settings(_as_published(row)), _settings(config)
    other = [Deviation("evaluated on", f"the {row.elsewhere} split", "the test split")] if row.elsewhere else []
    names = (name for name in mine if mine[name] != theirs[name])
    return other + [Deviation(name.replace("_", " "), _shown(theirs[name]), _shown(mine[name])) for name in names]


def _as_published(row: Preset) -> TrainConfig:
    return resolve(RunOptions(name="paper", preset=row.id, weights="imagenet", precision="float32"), row.method)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """A configuration by names of options, those of method and readout with their defaults, without what is ours."""
    data = to_dict(config)
    defaults = to_dict(wsol_models.method_module(config.method).Config())
    options = {f"option {name}": value for name, value in {**defaults, **data.pop("options")}.items()}
    weights = {None: "none, from scratch", "imagenet": "ImageNet"}
    data["weights"] = weights.get(config.weights, f"the file {PurePath(config.weights or '').name}")
    flat = data.pop("recipe") | data | options
    return {name: value for name, value in flat.items() if name not in _OURS}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _provenance(plan: Plan, final: Store) -> dict[str, str]:
    """Where the numbers come from, in pairs of words."""
    config, dataset = plan.config, plan.dataset
    kept = evaluation_name(Contender("", plan.options.name, final, plan.options.preset))
    result = json.loads((plan.folder / EVALUATIONS).read(f"{kept}.json"))
    described = json.loads(final.read(DESCRIPTION))
    told = {
        "folder": plan.folder.uri,
        "data": dataset.uri,
        "fingerprint of the data": dataset.fingerprint,
        "fingerprint of test": result["test_fingerprint"],
        "protocol": f"{config.protocol} at {config.image_size} px",
        "readout and thresholds": f"transferred: chosen on {dataset.val.num_rows} validation images, the readout by "
        f"{config.objective}; oracle: the same readout, thresholds of the test images themselves",
        "checkpoint": f"the {config.keep} epoch" + " by validation" * (config.keep == "best"),
        "network": f"{config.method} on {config.backbone}, {described[ARITHMETIC]}",
        "training images": described.get(TRAINING_IMAGES, "not known"),
        "evaluated on": result["device"],
    }
    return redact(told | result["provenance"])


def to_mlflow(plan: Plan, row: Preset, report: str, means: Mapping[str, float]) -> str:
    """Put the report and its means (reading/metric) on the study's run, tagged with the row that it reproduces.

    Returns what MLflow lacks of it.
    """
    own, options = home(plan.folder), plan.options
    tags = study_tags(plan) | {STORAGE_TAG: own.storage}
    runs = StudyRuns(connect_mlflow(options.store, options.experiment), options.name, tags, own.id, own.before)

    def add() -> None:
        run = runs.client.get_run(runs.parent()).info
        metrics = [Metric(f"test/{name}", value, run.start_time, 0) for name, value in means.items()]
        runs.client.log_batch(run.run_id, metrics, tags=[RunTag("wsol.reproduces", row.id)])
        runs.add_text("reproduction.md", report)

    return deliver({"the reproduction": add})
