"""Studies whose drivers are processes of their own."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import optuna
import psutil
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from optuna.trial import FrozenTrial

from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[2]
KILLED = Path(__file__).with_name("killed_driver.py")
OPTIONS = "--trials 3 --epochs 3 --batch-size 16 --image-size 32 --resize-size 36 --checkpoint-batches 1"


@dataclass(frozen=True)
class Driven:
    """A study of `tune_bas.py` on local Ray, as its processes, files, ledger and MLflow show it."""

    storage: Path
    data: str
    environment: dict[str, str] = field(repr=False)
    options: tuple[str, ...] = ()
    name: str = "s"

    def start(self, *job: str) -> "subprocess.Popen[str]":
        """Start the study's command; `job` is another script than tune_bas.py, with arguments of its own."""
        options = f"--name {self.name} --data {self.data} --storage {self.storage} {OPTIONS}".split()
        return subprocess.Popen(
            [sys.executable, *(job or ["rayjobs/tune_bas.py"]), *options, *self.options],
            cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self) -> "subprocess.CompletedProcess[str]":
        """The command to its end, which must be a good one."""
        ended = finish(self.start())
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    def kill_at(self, point: str, passing: int = 1) -> list[psutil.Process]:
        """Run until the driver dies at that passing of `point`; those of its processes that outlived it."""
        ended = finish(self.start(str(KILLED), point, str(passing)))
        assert ended.returncode == -9, ended.stdout + ended.stderr
        return [psutil.Process(pid) for pid in json.loads(ended.stdout.splitlines()[-1]) if psutil.pid_exists(pid)]

    def trials(self) -> list[FrozenTrial]:
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.storage / self.name / 'study.db'}")
        return optuna.load_study(study_name=self.name, storage=storage).trials

    def states(self) -> list[str]:
        """State of each trial, by number."""
        return [trial.state.name for trial in self.trials()]

    def checkpoints(self, number: int) -> CheckpointStore:
        return CheckpointStore(Store.at(self.storage / self.name / f"trials/{number:04d}"), 0)

    def finals(self) -> dict[str, tuple[str, int]]:
        """SHA-256 and time of change of every file of finished models."""
        found = (self.storage / self.name / "trials").rglob("final/*")
        return {str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in found}

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.storage / 'mlflow.db'}")

    def runs(self) -> list[Run]:
        experiment = self.client.get_experiment_by_name("wsol")
        return list(self.client.search_runs([experiment.experiment_id]))

    def versions(self) -> list[ModelVersion]:
        return list(self.client.search_model_versions(f"name = '{self.name}'"))


def finish(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=800)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
