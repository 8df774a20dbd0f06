"""Pictures of MLflow's pages with a study on them: a study of 20 trials on embedded data, judged, then looked at.

    make screenshots            (needs a Chromium: CHROMIUM=/path/to/it if it is not the `chromium` on the path)

A study of that name in that storage which is finished is only looked at.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import mlflow
import tyro
from playwright.sync_api import Error, Page, sync_playwright

from rayjobs import evaluate, tune_bas
from wsol_pipeline.tracking.runs import PARENT, STUDY_TAG, TRIAL_TAG

SIZE = {"width": 1400, "height": 860}  # pixels of a picture
SECONDS = 10  # that a page may take to draw itself after it has loaded


@dataclass(frozen=True)
class Options:
    """What is shown, and where pictures go."""

    storage: str = "runs"
    """Where the study is, or is made. Its MLflow file is what is served."""
    name: str = "mlflow-pages"
    """The study."""
    trials: int = 20
    """Its trials, if it is made."""
    out: Path = Path("docs/images")
    """Folder of the PNG files."""
    seconds: float = SECONDS
    """That a page may take to draw itself after it has loaded."""


@contextlib.contextmanager
def server(storage: Path) -> Iterator[str]:
    """An MLflow server over the files in `storage`, on this machine alone; its address. Ended by its process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{storage / 'mlflow.db'}",
            "--artifacts-destination", str(storage / "mlflow-artifacts"), "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
                break
            time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def pages(address: str, name: str) -> dict[str, str]:
    """Name of a picture -> address of its page."""
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("wsol")
    assert experiment is not None, "no experiment 'wsol'"
    found = client.search_runs([experiment.experiment_id], f"tags.`{STUDY_TAG}` = '{name}'", max_results=1000)
    runs = {run.data.tags[TRIAL_TAG]: run.info.run_id for run in found}
    version = client.get_model_version_by_alias(name, "champion")
    here = f"{address}/#/experiments/{experiment.experiment_id}/runs"
    trials = json.dumps([run for trial, run in runs.items() if trial != PARENT])
    return {
        "mlflow-trials": f"{here}?viewStateShareKey={name}",
        "mlflow-study": f"{here}/{runs[PARENT]}",
        "mlflow-trial": f"{here}/{version.run_id}",
        "mlflow-readout": f"{here}/{version.run_id}/artifacts/readout/surface.png",
        "mlflow-compare": f"{address}/#/compare-runs?runs={quote(trials)}&experiments="
        + quote(json.dumps([experiment.experiment_id])),
        "mlflow-model": f"{address}/#/models/{name}/versions/{version.version}",
    }


def look(page: Page, address: str, seconds: float, file: Path) -> None:
    """Open a page, put away what is about MLflow and not about us, take the picture."""
    page.goto(f"{address}{'&' if '?' in address else '?'}workflowType=machine_learning", timeout=90_000)
    page.wait_for_timeout(1000 * seconds)
    with contextlib.suppress(Error):  # neither is on every page
        page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]').click(timeout=1000)
    for path in page.get_by_text("Path:").all():  # of this machine
        path.evaluate("element => element.parentElement.style.visibility = 'hidden'")
    page.wait_for_timeout(1500)
    page.screenshot(path=file)
    print(file, flush=True)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert chromium, "no chromium on the path: set CHROMIUM"
    study = ["--storage", options.storage]
    tune_bas.main(["--name", options.name, "--trials", str(options.trials), "--epochs", "4", *study])
    evaluate.main(["--study", options.name, *study])
    options.out.mkdir(parents=True, exist_ok=True)
    with server(Path(options.storage).resolve()) as address, sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        for name, where in pages(address, options.name).items():
            look(page, where, options.seconds, options.out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
