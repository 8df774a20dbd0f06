"""Finished models: what is loaded is what was trained; boxes come in pixels of the image; MLflow serves it."""

import contextlib
import json
import os
import pickle
import pickletools
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.io import decode_image

from wsol_models import readouts
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation.evaluate import count
from wsol_pipeline.images import normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.tracking import registry
from wsol_pipeline.tracking.connect import connect
from wsol_pipeline.tracking.runs import StudyRuns
from wsol_pipeline.training.build import build_method
from wsol_pipeline.training.model import Model, load_model, load_model_files
from wsol_pipeline.verdict.pictures import _seen


@pytest.fixture
def trained(make_config, fit):
    return fit(make_config("bas"))


def test_the_loaded_model_is_the_trained_one(trained, make_config):
    model = load_model(trained.final)
    assert model.classes == ("cross", "ring", "triangle")
    assert not model.method.training
    method = build_method(make_config("bas"), 3).eval()
    method.load_state_dict(trained.weights)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.method(images).logits_BK, method(images).logits_BK)


@pytest.fixture
def kernels():
    """Flags of PyTorch's GPU kernels, as somebody who trains may leave them; asking tells how they are."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = products.allow_tf32 = cudnn.benchmark = True
    yield lambda: (cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark)
    cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize("reads", ["search", "localize"])
def test_maps_are_read_alike_in_a_study_and_wherever_its_model_is(trained, dataset, kernels, monkeypatch, reads):
    model, seen = load_model(trained.final), set()
    forward = model.method.forward
    monkeypatch.setattr(model.method, "forward", lambda *args, **more: seen.add(kernels()) or forward(*args, **more))
    if reads == "localize":
        model.predict(Image.new("RGB", (32, 32)))
    else:
        rows = eval_rows(dataset.val, ReadConfig(resize_size=36, image_size=32), model.protocol.geometry, 8)
        count(model.method, model.readout, rows, model.protocol)
    assert seen == {(False, False, False)}
    assert kernels() == (True, True, True)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_an_altered_file_is_refused_and_named(trained, name):
    data = bytearray(trained.final.read(name))
    data[-2] ^= 1
    trained.final.write(name, bytes(data))
    with pytest.raises(DataError, match=f"{name} was altered"):
        load_model(trained.final)


def test_a_model_of_another_version_is_refused_with_what_it_lacks(trained, tmp_path):
    description = json.loads(trained.final.read("model.json"))
    del description["multilabel"]
    (tmp_path / "model.json").write_text(json.dumps(description))
    (tmp_path / "model.safetensors").write_bytes(trained.final.read("model.safetensors"))
    with pytest.raises(DataError, match="lacks multilabel: another version"):
        load_model_files(tmp_path)


def test_the_weights_of_a_finished_model_start_another_run(trained, make_config):
    where = trained.final.path("backbone.safetensors")
    method = build_method(make_config("cam", weights=where), 3)
    mine, theirs = dict(method.named_parameters()), trained.weights
    assert torch.equal(mine["backbone.block1.0.weight"], theirs["F1.block1.0.weight"])


class HandMade:
    """A readout whose map is 1 on the lower right quarter; keeps the images it was handed."""

    def maps(self, method, images_BCHW, classes_B, setting, output=None):
        self.images_BCHW = images_BCHW
        maps_BHW = torch.zeros(len(images_BCHW), 8, 8)
        maps_BHW[:, 4:, 4:] = 1
        return maps_BHW


@pytest.mark.parametrize("rules", ["wsol-v1", "bas-ext"])
def test_a_localization_is_in_pixels_of_the_image(trained, make_config, fit, monkeypatch, rules):
    """An image of 120 x 60. The quarter from (16, 16) of the 32 px seen: (60, 30) of a straight resize, and of the
    centre too."""
    model = load_model(fit(make_config("bas", protocol=rules), "other").final)
    monkeypatch.setattr(readouts, "readout", lambda name, **options: HandMade())
    monkeypatch.setattr(Model, "threshold", 0.5)
    images_BHW3 = np.random.default_rng(0).integers(0, 256, (2, 60, 120, 3), np.uint8)
    end = {"wsol-v1": (120, 60), "bas-ext": (120 * 34 / 36, 60 * 34 / 36)}[rules]  # the crop ends at 34 of 36 px
    for found in model.predict(images_BHW3):
        assert found.box == pytest.approx((60, 30, *end), abs=120 / 32)
        assert found.map_HW.shape == (32, 32)
        assert found.map_HW[24, 24] > 0.8  # a cubic resize overshoots at the edge, which then is the peak
        assert found.map_HW[4, 4] < 0.2
        assert found.label in model.classes
        assert 1 / 3 <= found.score <= 1
        seen = {"wsol-v1": (0, 0, 120, 60), "bas-ext": (120 * 2 / 36, 60 * 2 / 36, 120 * 34 / 36, 60 * 34 / 36)}[rules]
        assert found.window == pytest.approx(seen)


def test_gradient_maps_are_enlarged_as_by_their_authors_wherever_they_are_shown(fit, make_config, dataset, reading):
    """Bilinearly to what the network sees, then min-max; the evaluation's own cubic resize finds nothing to do."""
    model = load_model(fit(make_config("cam", readout="gradcam", epochs=1)).final)
    rows = eval_rows(dataset.val, ReadConfig(36, 32, cache_dir=reading.cache_dir), model.protocol.geometry, 8)
    batch = next(iter(rows.batches()))
    images = normalize(batch.images_BCHW)
    classes = model.method(images).logits_BK.argmax(1)
    coarse = model.readout.coarse_maps(model.method, images, classes, "block4")
    large = interpolate(coarse[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0].numpy()
    for found, map_HW in zip(model.predict(batch.images_BCHW.permute(0, 2, 3, 1).numpy()), large, strict=True):
        expected = (map_HW - map_HW.min()) / max(map_HW.max() - map_HW.min(), 1e-30)
        np.testing.assert_allclose(found.map_HW, expected, atol=1e-6)
    counted = []
    count(
        model.method, model.readout, rows, model.protocol, settings=["block4"],
        on_maps=lambda rows_B, of, maps_BHW, *_: counted.append((of, maps_BHW)),
    )  # fmt: skip
    of, maps = counted[0]
    coarse = model.readout.coarse_maps(model.method, normalize(of.images_BCHW), of.labels_B, "block4")
    torch.testing.assert_close(maps, interpolate(coarse[:, None], (32, 32), mode="bilinear")[:, 0])


def test_a_mask_of_two_maps_is_served_and_drawn_as_one(fit, make_config):
    """B-CAM's m: 1 where the object's map is higher than the background's, in a prediction and in the gallery."""
    reading = {"readings": ("plain",), "modes": ("mask",)}
    config = make_config("bcam", readout="bcam", readout_options=reading, options={"heads": 2}, epochs=1)
    model = load_model(fit(config).final)
    images_BHW3 = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    images_BCHW = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2)
    seen = normalize(images_BCHW)
    labels = model.method(seen).logits_BK.argmax(1)
    both = model.readout.maps(model.method, seen, labels, "plain/mask")
    truths = [np.array([[4.0, 4, 20, 20]])] * 3
    batch = SimpleNamespace(images_BCHW=images_BCHW, labels_B=labels, stored_BCHW=None)
    drawn = _seen(model, batch, [0, 1, 2], truths, [(32, 32)] * 3)
    for found, shown, (above, below) in zip(model.predict(images_BHW3), drawn, both, strict=True):
        np.testing.assert_array_equal(found.map_HW, (above > below).numpy())
        np.testing.assert_array_equal(shown.map_HW, found.map_HW)


@pytest.mark.parametrize("rules", ["wsol-v1", "bas-ext"])
def test_an_image_is_seen_as_validation_saw_it(dataset, reading, make_config, fit, monkeypatch, rules):
    model = load_model(fit(make_config("bas", protocol=rules)).final)
    readout = HandMade()
    monkeypatch.setattr(readouts, "readout", lambda name, **options: readout)
    stored = dataset.val.shard_set(reading.cache_dir).read(np.arange(3), ["image"])["image"].to_pylist()
    decoded = [decode_image(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)).permute(1, 2, 0) for jpeg in stored]
    model.predict(torch.stack(decoded).numpy())
    rows = eval_rows(dataset.val, ReadConfig(36, 32, cache_dir=reading.cache_dir), model.protocol.geometry, 3)
    assert torch.equal(readout.images_BCHW, normalize(next(rows.batches()).images_BCHW))


def is_pickle(data: bytes) -> bool:
    """Whether the bytes are a pickle of any protocol, or a zip with one as `torch.save` writes it."""
    if data.startswith(b"PK"):
        return True
    try:
        return len(list(pickletools.genops(data))) > 0
    except ValueError:
        return False


@contextlib.contextmanager
def without_pickle():
    """Whoever reads a pickle in here fails."""
    readers = [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (cloudpickle, "load")]
    with pytest.MonkeyPatch.context() as patch:
        for module, name in readers:
            patch.setattr(module, name, lambda *_, **__: pytest.fail("a pickle was read"))
        yield


def test_what_is_a_pickle_is_known(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt")
    assert is_pickle((tmp_path / "state.pt").read_bytes())
    assert all(is_pickle(pickle.dumps({"a": [1]}, protocol)) for protocol in range(6))
    assert not is_pickle(b'{"a": 1}')
    assert not is_pickle(Path(__file__).read_bytes())
    with pytest.raises(pytest.fail.Exception), without_pickle():
        torch.load(tmp_path / "state.pt", weights_only=True)


def test_mlflow_serves_the_winner_without_pickle(trained, tmp_path):
    store = Store.at(tmp_path / "mlflow")
    client, experiment = connect(f"sqlite:///{tmp_path}/mlflow.db", "tests", str(store))
    runs = StudyRuns(lambda: (client, experiment), "bas-tiny", {"wsol.protocol": "wsol-v1"})
    assert registry.register(runs, "bas-tiny", 3, trained.final) == "1"
    assert registry.register(runs, "bas-tiny", 3, trained.final) == "1"  # a second time changes nothing
    client.set_registered_model_alias("bas-tiny", registry.CHAMPION, "1")
    with without_pickle():
        served = mlflow.pyfunc.load_model("models:/bas-tiny@champion")
    images_BHW3 = np.random.default_rng(0).integers(0, 256, (2, 40, 80, 3), np.uint8)
    answers, expected = served.predict(images_BHW3), load_model(trained.final).predict(images_BHW3)
    for answer, found in zip(answers, expected, strict=True):
        assert answer["label"] == found.label
        assert answer["box"] == pytest.approx(list(found.box))
        assert np.array(answer["map"]) == pytest.approx(found.map_HW)
        assert answer["window"] == [0, 0, 80, 40]
    assert served.predict(images_BHW3[:0]) == []
    assert len(store.list()) > 50
    assert not [name for name in store.list() if is_pickle(store.read(name))]
    assert f"torch=={version('torch')}" in next(
        store.read(name).decode() for name in store.list() if name.endswith("requirements.txt")
    )


def test_the_lines_of_the_readme_work_anywhere(trained, tmp_path):
    """Typed in a fresh process, in a folder of its own, that knows nothing but the tracking address."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    connection = connect(uri, "tests", str(tmp_path / "mlflow"))
    registry.register(StudyRuns(lambda: connection, "bas-cub", {}), "bas-cub", 0, trained.final)
    connection[0].set_registered_model_alias("bas-cub", registry.CHAMPION, "1")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    lines = re.search(r"```python\n(import wsol.*?)```", readme, re.DOTALL)[1]
    (tmp_path / "elsewhere").mkdir()
    photographs = [tmp_path / "elsewhere" / name for name in ("a.jpg", "b.png")]
    for seed, photograph in enumerate(photographs):
        pixels_HW3 = np.random.default_rng(seed).integers(0, 256, (60, 90, 3), np.uint8)
        Image.fromarray(pixels_HW3).save(photograph)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PYTHON"))}
    ended = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path / "elsewhere", text=True, capture_output=True,
        env=environment | {"MLFLOW_TRACKING_URI": uri},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    expected = load_model(trained.final).predict(photographs)
    assert ended.stdout.splitlines()[-2:] == [f"{found.label} {found.score} {found.box}" for found in expected]
    assert Image.open(tmp_path / "elsewhere/seen.png").size == (90, 60)
