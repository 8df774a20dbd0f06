"""A model that is handed on: a folder that goes anywhere and says nothing of where it was, and equal graphs."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import onnxruntime
import pytest
import torch

import wsol
from rayjobs import export
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.training.checkpoint import seal_of, write_sealed
from wsol_pipeline.training.model import local_files, sealed_files
from wsol_pipeline.use import folder, graph
from wsol_pipeline.use.options import ExportOptions

ROOT = Path(__file__).parents[2]
IMAGES = [np.random.default_rng(seed).integers(0, 256, (40 + 9 * seed, 64, 3), np.uint8) for seed in range(3)]


@pytest.fixture(scope="module")
def made(final, tmp_path_factory):
    """The exported folder."""
    place = tmp_path_factory.mktemp("export") / "model"
    assert export.main(["--model", final.uri, "--out", str(place)]) == 0
    return place


@pytest.fixture
def on_val(dataset):
    return ["--images", f"{dataset.uri}:val"]


def answers(where):
    return [(one.label, one.class_score, one.box) for one in wsol.load_model(where, "cpu").predict(IMAGES)]


def test_a_folder_predicts_the_same_bits_moved_renamed_zipped_or_read_only(made, final, tmp_path):
    expected = answers(final.uri)
    moved = tmp_path / "another name"
    shutil.copytree(made, moved)
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for path in made.iterdir():
            archive.write(path, f"model/{path.name}")
    for path in moved.iterdir():
        path.chmod(0o444)
    moved.chmod(0o555)
    assert answers(moved) == answers(tmp_path / "model.zip") == answers(made) == expected
    moved.chmod(0o755)


def test_a_folder_works_in_a_process_that_knows_nothing_else(made, tmp_path):
    shutil.copytree(made, tmp_path / "model")
    code = "import wsol, numpy; print(wsol.load_model('model').predict(numpy.zeros((9, 9, 3), numpy.uint8))[0].label)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.stdout.strip() in ("cross", "ring", "triangle"), ended.stderr


def test_a_folder_holds_no_place_and_says_what_it_is(made, dataset, final):
    assert {path.name for path in made.iterdir()} == {
        "model.safetensors", "model.json", "README.md", "LICENSES.md", "requirements.txt", "seal.json"}  # fmt: skip
    text = "".join(path.read_text() for path in made.iterdir() if path.suffix != ".safetensors")
    assert "/tmp" not in text
    assert dataset.uri not in text
    assert not re.search(r"(^|[\s\"'(])/(home|root|work|tmp|data)/", text)
    card = (made / "README.md").read_text()
    assert "cross, ring, triangle" in card
    assert dataset.fingerprint[:16] in card
    assert "Measured on test**: not known here (an export by --study says it)" in card
    assert "Apache-2.0" in (made / "LICENSES.md").read_text()
    assert "torch==" in (made / "requirements.txt").read_text()
    assert json.loads((made / "model.json").read_text())["format"] == 1


def test_the_card_has_the_figures_of_test_with_their_intervals(final):
    description = json.loads(final.read("model.json"))
    test = folder.Judged({"gt_known_loc": 71.25, "max_box_acc_v2": 60.0}, {"gt_known_loc": (65.0, 77.04)})
    told = folder.card(description, test, "0" * 64, "CC-BY-4.0")
    assert "GT-known Loc 71.25 % (95 % 65.0 to 77.0); MaxBoxAccV2 60.00 %" in told
    assert "CC-BY-4.0" in told
    assert "--views" not in told
    cropping = {**description, "train": {**description["train"], "protocol": "bas-ext"}}
    assert "`--views resize` shows it all of an\nimage, as it was not" in folder.card(cropping, test, "0" * 64, "x")
    assert "ImageNet, whose images are for research" in folder.licenses({"train": {"weights": "imagenet"}}, "x")


def test_a_loaded_model_and_a_named_one_are_saved_as_one_folder(made, final, tmp_path):
    wsol.save_model(wsol.load_model(final.uri, "cpu"), tmp_path / "loaded", license="CC0-1.0")
    wsol.save_model(final.uri, tmp_path / "named", license="CC0-1.0")
    for path in (tmp_path / "named").iterdir():
        assert (tmp_path / "loaded" / path.name).read_bytes() == path.read_bytes()
    assert local_files(tmp_path / "named") == local_files(made)
    assert "CC0-1.0" in (tmp_path / "named/LICENSES.md").read_text()


def test_the_card_of_a_studys_folder_has_what_its_evaluation_measured(final, tmp_path):
    storage = Store.at(tmp_path / "runs")
    record = {"schema": SCHEMA, "study": "x", "published": None, "data": "d", **model_named(final, storage)}
    storage.write("bas/winner.json", json.dumps(record).encode())
    asked = ExportOptions(f"{storage.uri}/bas", out="o")
    assert folder._figures(folder.judged(asked)).startswith("nothing. ")
    row = {"transferred": {"gt_known_loc": 71.25}, "intervals": {"transferred": {"gt_known_loc": [65.0, 77.0]}}}
    storage.write(f"bas/evaluations/{seal_of(final)[:16]}.json", json.dumps({"rows": [row]}).encode())
    told = "GT-known Loc 71.25 % (95 % 65.0 to 77.0)"
    assert folder._figures(folder.judged(asked)) == told
    assert folder._figures(folder.judged(ExportOptions(study="bas", storage=storage.uri, out="o"))) == told


def test_the_card_of_a_registered_model_has_what_crowned_it(monkeypatch):
    tags = {"wsol.test.max_box_acc_v2": "60.25", "wsol.objective": "max_box_acc_v2"}

    class Client:
        def get_model_version_by_alias(self, name, alias):
            return SimpleNamespace(tags=tags if (name, alias) == ("bas", "champion") else {})

        def get_model_version(self, name, number):
            return SimpleNamespace(tags=tags if (name, number) == ("bas", "3") else {})

    monkeypatch.setattr(folder.mlflow, "MlflowClient", Client)
    for uri in ("models:/bas@champion", "models:/bas/3"):
        assert folder._figures(folder.judged(ExportOptions(uri, out="o"))) == "MaxBoxAccV2 60.25 %"
    assert folder._figures(folder.judged(ExportOptions("models:/bas/2", out="o"))).startswith("nothing. ")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "README.md"])
def test_an_altered_or_missing_file_is_refused_by_name(made, tmp_path, name):
    shutil.copytree(made, tmp_path / "model")
    data = (made / name).read_bytes()
    (tmp_path / "model" / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if name != "README.md":  # anyone may write into a card
        with pytest.raises(DataError, match=f"{name} was altered"):
            wsol.load_model(tmp_path / "model")
        (tmp_path / "model" / name).unlink()
        with pytest.raises(DataError, match=f"is not complete: .*{name}"):
            wsol.load_model(tmp_path / "model")


def test_a_newer_format_is_refused(made, tmp_path):
    files = local_files(made)
    newer = json.dumps(json.loads(files.description) | {"format": 2}).encode()
    write_sealed(Store.at(tmp_path), {"model.json": newer, "model.safetensors": files.weights})
    with pytest.raises(DataError, match="has format 2; this code reads 1: use a newer wsol"):
        wsol.load_model(tmp_path)


def test_another_model_in_its_place_is_refused(made, tmp_path, final):
    files = sealed_files(final)
    other = replace(files, description=files.description.replace(b'"ring"', b'"disc"'))
    write_sealed(Store.at(tmp_path / "other"), {"model.json": other.description, "model.safetensors": other.weights})
    shutil.copytree(made, tmp_path / "model")
    with pytest.raises(UsageError, match="holds another model"):
        export.main(["--model", str(tmp_path / "other"), "--out", str(tmp_path / "model")])


def test_mlflows_form_predicts_the_same(final, tmp_path):
    assert export.main(["--model", final.uri, "--format", "mlflow", "--out", str(tmp_path / "pyfunc")]) == 0
    served = mlflow.pyfunc.load_model(str(tmp_path / "pyfunc"))
    (answer,) = served.predict(IMAGES[0][None])
    (expected,) = wsol.load_model(final.uri).predict(IMAGES[0])
    assert (answer["label"], tuple(answer["box"])) == (expected.label, expected.box)
    with pytest.raises(UsageError, match="exists"):
        export.main(["--model", final.uri, "--format", "mlflow", "--out", str(tmp_path / "pyfunc")])


def test_torch_export_is_the_model_on_real_images(final, dataset, tmp_path, capsys):
    place = tmp_path / "runs/model.pt2"
    storage = Store.at(tmp_path / "runs")
    record = {"schema": SCHEMA, "published": None, "data": dataset.uri, **model_named(final, storage)}
    storage.write("bas/winner.json", json.dumps(record).encode())
    assert (
        export.main(["--study", "bas", "--storage", storage.uri, "--format", "torch-export", "--out", str(place)]) == 0
    )
    told = capsys.readouterr().out
    assert "parity on 25 images of the study's validation split" in told
    extra = {"threshold": "", "classes": ""}
    loaded = torch.export.load(place, extra_files=extra).module()
    model = wsol.load_model(final.uri)
    assert json.loads(extra["threshold"]) == model.threshold
    assert json.loads(extra["classes"]) == list(model.classes)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    logits, scores, maps = loaded(images, torch.tensor([-1, 0, 1, 2, -1]))
    assert (logits.shape, scores.shape, len(maps)) == ((5, 3), (5, 3), 5)
    torch.testing.assert_close(scores.sum(1), torch.ones(5))


@pytest.fixture(scope="module")
def as_onnx(final, dataset, tmp_path_factory):
    """The graph as ONNX, made once: its exporter takes seconds."""
    place = tmp_path_factory.mktemp("onnx") / "my-model.onnx"
    where = ["--model", final.uri, "--images", f"{dataset.uri}:val", "--out", str(place)]
    assert export.main([*where, "--format", "onnx"]) == 0
    return place


def test_onnx_is_the_model_on_real_images_in_batches_of_any_size(final, as_onnx):
    session = onnxruntime.InferenceSession(as_onnx.read_bytes())
    model = wsol.load_model(final.uri)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["threshold"]) == model.threshold
    for many in (1, 3, 8):
        images = np.random.default_rng(many).integers(0, 256, (many, 3, 32, 32), np.uint8)
        logits, _, maps = session.run(None, {"images": images, "classes": np.full(many, -1)})
        with torch.no_grad():
            expected = graph.Graph(model)(torch.from_numpy(images), torch.full((many,), -1))
        np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(maps, expected[2].numpy(), atol=1e-4 * np.ptp(expected[2].numpy()))


def test_the_reader_beside_a_graph_makes_the_models_boxes_of_its_maps(final, as_onnx):
    spec = importlib.util.spec_from_file_location("reader", as_onnx.parent / "my_model_reader.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    session = onnxruntime.InferenceSession(as_onnx.read_bytes())
    facts = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    model = wsol.load_model(final.uri, "cpu")
    for image in IMAGES:
        (expected,) = model.predict(image)
        shown = model.prepare(torch.from_numpy(image).permute(2, 0, 1)).image_CHW.numpy()
        assert np.abs(reader.shown(image, facts).astype(int) - shown).max() <= 1
        logits, _, maps = session.run(None, {"images": shown[None], "classes": np.array([-1])})
        assert facts["classes"][logits[0].argmax()] == expected.label
        assert reader.box(maps[0], image.shape[1::-1], facts) == expected.box


def test_an_opset_that_lacks_an_op_and_missing_onnx_are_said(final, on_val, tmp_path, monkeypatch):
    to_onnx = ["--model", final.uri, *on_val, "--format", "onnx", "--out", str(tmp_path / "m.onnx")]
    with pytest.raises(UsageError, match="ONNX cannot hold this model at --opset 3"):
        export.main(
            ["--model", final.uri, *on_val, "--format", "onnx", "--opset", "3", "--out", str(tmp_path / "m.onnx")]
        )
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"needs onnxruntime: pip install 'wsol\[export\]'"):
        export.main(to_onnx)
    assert not (tmp_path / "m.onnx").exists()


def test_a_graph_that_differs_is_not_written(final, on_val, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "LOGIT", -1.0)
    with pytest.raises(DataError, match="The graph is not the model, and was not written: parity on 25"):
        export.main(["--model", final.uri, *on_val, "--format", "torch-export", "--out", str(tmp_path / "m.pt2")])
    assert not (tmp_path / "m.pt2").exists()


def test_a_readout_of_gradients_has_no_graph_and_is_named(fit, make_config, tmp_path):
    gradient = fit(make_config("cam", readout="gradcam", epochs=1)).final
    with pytest.raises(UsageError, match="Readout 'gradcam' needs more than a forward pass.*: cam, own, topk"):
        export.main(["--model", gradient.uri, "--format", "torch-export", "--out", str(tmp_path / "m.pt2")])


def test_a_folder_has_no_images_to_compare_on(made, tmp_path):
    with pytest.raises(UsageError, match="name some by --images FOLDER, or the model by --study NAME"):
        export.main(["--model", str(made), "--format", "torch-export", "--out", str(tmp_path / "m.pt2")])
