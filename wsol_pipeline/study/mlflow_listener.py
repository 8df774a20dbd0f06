"""A listener that keeps MLflow up to date with a study: its trials while they run, the winner's model at the end."""

import contextlib
import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsol_pipeline.errors import ResourceError
from wsol_pipeline.study.charts import draw_front, draw_study
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.ledger import Ledger
from wsol_pipeline.study.mlflow_view import study_tags, study_view, trial_views
from wsol_pipeline.study.options import CONFIG
from wsol_pipeline.study.outcome import Outcome, published_figures, ranking_markdown
from wsol_pipeline.study.plan import Plan
from wsol_pipeline.tracking import registry
from wsol_pipeline.tracking.connect import AWAY, CONNECT_SECONDS, Connect, connect_mlflow, within
from wsol_pipeline.tracking.projection import Projection
from wsol_pipeline.tracking.runs import STORAGE_TAG, StudyRuns, deliver
from wsol_pipeline.training.config import to_dict


class MlflowListener:
    """Projects a study into MLflow from a thread of its own; no trial waits for it.

    `version` is that of the registered winner once the study has ended, `missing` what MLflow lacks then, in words.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.version, self.page, self.missing = plan, "", "", ""
        self._connect: Connect | None = None
        self._answered = False
        self._ledger: Ledger | None = None
        self._projection: Projection | None = None

    @property
    def away(self) -> bool:
        """Whether MLflow could not be reached the last time."""
        return self._projection is not None and self._projection.away

    def __call__(self, event: str, trial: int | None, details: Mapping[str, Any]) -> None:
        match event:
            case "leased":
                self._connect = self._connected()
            case "opened":
                self._begin(details["ledger"], details["lease"])
            case "found":
                self._deliver(details["outcome"])
            case "closed":
                self._end(details["error"])

    def _connected(self) -> Connect:
        """The way to MLflow. Raises `UsageError` if it holds other models under this study's name."""
        plan = self.plan
        connect = connect_mlflow(plan.options.store, plan.options.experiment)
        tags = registry.model_tags({"train": to_dict(plan.config), "dataset": plan.dataset.fingerprint})

        def check() -> None:
            registry.check_name_is_free(connect()[0], plan.options.name, tags)

        with contextlib.suppress(ResourceError, *AWAY):  # it is asked again when the winner is registered
            within(CONNECT_SECONDS, check)
            self._answered = True
        return connect

    def _begin(self, ledger: Ledger, lease: Lease) -> None:
        """Write from now on. Raises `UsageError` if MLflow holds another study of this name."""
        assert self._connect
        tags = study_tags(self.plan) | {STORAGE_TAG: ledger.home.storage}
        runs = StudyRuns(self._connect, self.plan.options.name, tags, ledger.home.id, ledger.home.before)
        if self._answered:  # it is asked again with each turn
            with contextlib.suppress(ResourceError, *AWAY):
                within(CONNECT_SECONDS, runs.parent)
        views = functools.partial(trial_views, self.plan, ledger, lease, runs.ended)
        summary = functools.partial(study_view, self.plan, ledger, lease)
        self._ledger, self._projection = ledger, Projection(runs, views, summary)
        self._projection.start()

    def _end(self, error: BaseException | None) -> None:
        if self._projection and error:  # who is interrupted waits for a last turn, not for a server that is away
            self._projection.stop(seconds=5)

    def _deliver(self, outcome: Outcome) -> None:
        """Write what is missing, the study's pictures and table, and register the winner, unless that is damaged."""
        projection, ledger, plan = self._projection, self._ledger, self.plan
        assert projection
        assert ledger
        projection.stop()
        ledger.confirm_driver()
        if outcome.best is None:
            return
        runs, best, final = projection.runs, outcome.ranking[0][0].number, outcome.best
        names = plan.rule.objectives if plan.rule else (plan.config.objective,)
        sure = " ".join(filter(None, (outcome.rule, outcome.doubt, outcome.standing)))
        table = ranking_markdown(outcome.ranking, names, published_figures(outcome.ranking), sure)

        def register() -> None:
            ledger.confirm_driver()
            runs.forget()  # a copy may have taken them over meanwhile
            self.version = registry.register(runs, plan.options.name, best, final)
            self.page = f"/#/experiments/{runs.experiment_id}/runs?viewStateShareKey={plan.options.name}"

        def close() -> None:
            ledger.confirm_driver()
            runs.close_parent()

        with tempfile.TemporaryDirectory() as folder:
            pictures = [*draw_study(ledger.study, Path(folder))]
            if plan.rule:
                pictures.append(draw_front([standing for standing, _, _ in outcome.ranking], plan.rule, Path(folder)))
            projection.hurry()
            missing = deliver({
                "trials": projection.write,
                "the winner's model": register,
                "ranking.md": lambda: runs.add_text("ranking.md", table),
                "pictures": lambda: runs.add_pictures(pictures),
                CONFIG: lambda: _add_config(runs, plan),
                "the study's end": close,
            })  # fmt: skip
        self.missing = f"{missing}: the same command writes it." if missing else ""


def _add_config(runs: StudyRuns, plan: Plan) -> None:
    """The study's options as a job kept them; a notebook's study has none."""
    if plan.folder.exists(CONFIG):
        runs.add_text(CONFIG, plan.folder.read(CONFIG).decode())
