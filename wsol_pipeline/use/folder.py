"""A finished model as a folder that goes anywhere: weights and JSON, a card, licences, and no place of its making."""

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mlflow
import safetensors.torch

from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.selectors import said
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.text import metric_name
from wsol_pipeline.tracking.registry import REQUIREMENTS, figures_on_test
from wsol_pipeline.training.checkpoint import SEAL, write_sealed
from wsol_pipeline.training.model import DESCRIPTION, WEIGHTS, Model, ModelFiles
from wsol_pipeline.use.models import REGISTRY, named
from wsol_pipeline.use.options import UNKNOWN, ExportOptions
from wsol_pipeline.verdict.rows import EVALUATIONS, contenders, evaluation_name, finished_study

CARD, LICENSES, NEEDS = "README.md", "LICENSES.md", "requirements.txt"
CLASSES_SHOWN = 40


@dataclass(frozen=True)
class Judged:
    """What the final evaluation measured: percents on test, with their 95 % intervals where there are some; nothing if
    there was none."""

    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


def save_model(model: Model | str | os.PathLike[str], out: str | os.PathLike[str], license: str = UNKNOWN) -> None:
    """Write a model as a folder that `load_model` reads anywhere: a loaded one, or what `load_model` takes.

    `license`: terms of the weights, for the card. Raises `UsageError` if another model lies there.
    """
    if isinstance(model, Model):
        weights = {name: tensor.contiguous().cpu() for name, tensor in model.method.state_dict().items()}
        files = ModelFiles(safetensors.torch.save(weights), json.dumps(model.description, indent=1).encode())
        _write(files, Store.at(out), None, license)
    else:
        write_folder(ExportOptions(str(model), out=str(out), license=license), Store.at(out))


def write_folder(options: ExportOptions, out: Store) -> list[str]:
    """Write the folder of the model that is asked for; its files. Raises `UsageError` if another model lies there."""
    return _write(named(options), out, judged(options), options.license)


def _write(files: ModelFiles, out: Store, test: Judged | None, license: str) -> list[str]:
    if out.exists(SEAL) and out.exists(DESCRIPTION) and out.read(DESCRIPTION) != files.description:
        raise UsageError(f"{out.uri} holds another model: give another --out.")
    description = json.loads(files.description)
    written = {
        WEIGHTS: files.weights,
        DESCRIPTION: files.description,
        CARD: card(description, test, files.sha256, license).encode(),
        LICENSES: licenses(description, license).encode(),
        NEEDS: "".join(f"{name}=={version(name)}\n" for name in ("wsol", *REQUIREMENTS)).encode(),
    }
    write_sealed(out, written)
    return [out.path(name) for name in (*written, SEAL)]


def judged(options: ExportOptions) -> Judged | None:
    """What was measured on the test split, as a study or a version of MLflow's registry knows; None of a mere model."""
    if options.model.startswith(REGISTRY):
        return _of_version(options.model.removeprefix(REGISTRY))
    study = Store.at(options.storage) / options.study if options.study else Store.at(options.model)
    if not study.exists(WINNER):
        return None
    contender = contenders({study.name: finished_study(Store(study.uri.rpartition("/")[0]), study.name)})[-1]
    folder, name = study / EVALUATIONS, f"{evaluation_name(contender)}.json"
    if not folder.exists(name):
        return Judged({}, {})
    row = json.loads(folder.read(name))["rows"][-1]
    bounds = row["intervals"].get("transferred", {})
    return Judged(row["transferred"], {metric: tuple(bound) for metric, bound in bounds.items()})


def _of_version(named: str) -> Judged | None:
    """What the final evaluation wrote on NAME@ALIAS or NAME/3: figures without intervals."""
    name, at, alias = named.partition("@")
    client = mlflow.MlflowClient()
    if at:
        return Judged(figures_on_test(client.get_model_version_by_alias(name, alias)), {})
    name, _, number = named.rpartition("/")
    return Judged(figures_on_test(client.get_model_version(name, number)), {}) if number.isdecimal() else None


def card(description: Mapping[str, Any], test: Judged | None, sha256: str, license: str) -> str:
    """The model's card in Markdown: what it is for, what it was made of and chosen by, what was measured and not."""
    train, choice, classes = description["train"], description["choice"], description["classes"]
    shown = ", ".join(classes[:CLASSES_SHOWN])
    more = f" and {len(classes) - CLASSES_SHOWN} more" if len(classes) > CLASSES_SHOWN else ""
    selected = said(description.get("selected_on", "val, by boxes or masks"))
    return textwrap.dedent("""\
        # {method} on {backbone}: where an object is, learned from labels alone

        ```python
        import wsol
        model = wsol.load_model("this folder")
        for found in model.predict(["photo.jpg"]):
            print(found.label, found.score, found.box)   # x0, y0, x1, y1 in pixels, half-open
        ```

        - **Classes** ({count}): {classes}
        - **Data**: {name}, fingerprint `{data}`; validation split `{val}`
        - **Protocol**: {protocol}, {geometry}
        - **Chosen on** {selected}: {metric} {value:.2f} %. Readout {readout} (setting `{setting}`)
        - **Measured on test**: {figures}
        - **Licence**: {license} (LICENSES.md)
        - **Identity**: SHA-256 of weights and description `{sha256}`

        ## Limits

        Boxes are cut from a map that learned from labels: they hold what tells classes apart, which can be a part of an
        object, or what is always beside it. An image without any of the classes gets one of them all the same: use
        `conf`. Not measured: other kinds of images than the data's, small objects, several objects of a class in an
        image, and the probability as a measure of how good a box is.{views}
        """).format(
        method=train["method"], backbone=train["backbone"], count=len(classes), classes=shown + more,
        name=description["data"], data=description["dataset"][:16], val=description["val_split"][:16],
        protocol=train["protocol"],
        geometry=f"images of {train['image_size']} px ({train['resize_size']} before a crop)", selected=selected,
        metric=metric_name(choice["metric"]), value=choice["value"], readout=train["readout"],
        views=_VIEWS if protocol(train["protocol"]).geometry == "resize_crop" else "",
        setting=choice["readout"], figures=_figures(test), license=license, sha256=sha256,
    )  # fmt: skip


_VIEWS = """

Its protocol crops: the network sees the centre of an image, as it was judged. `--views resize` shows it all of an
image, as it was not."""


def _figures(test: Judged | None) -> str:
    if test is None or not test.figures:
        what = "not known here (an export by --study says it)" if test is None else "nothing"
        return f"{what}. What validation says is above; it chose the model, and is too high by that."
    told = []
    for metric, value in test.figures.items():
        low_high = test.intervals.get(metric)
        interval = f" (95 % {low_high[0]:.1f} to {low_high[1]:.1f})" if low_high else ""
        told.append(f"{metric_name(metric)} {value:.2f} %{interval}")
    return "; ".join(told)


def licenses(description: Mapping[str, Any], license: str) -> str:
    """What is known of the terms of code, weights and data."""
    start = description["train"].get("weights")
    imagenet = "from weights of ImageNet, whose images are for research"
    began = {None: "from scratch, or as its study says", "imagenet": imagenet}
    return (
        "# Licences\n\n- Code (wsol): Apache-2.0\n"
        f"- These weights: {license}. They began {began.get(start, f'from {start}')}.\n"
        "- The data they learned from: not known here; ask who made it.\n"
    )
