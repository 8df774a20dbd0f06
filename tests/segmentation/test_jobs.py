"""The walk as its jobs run it: what they print, write to MLflow and leave for others."""

import json

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest

from rayjobs import evaluate, refine, seeds, segment
from wsol_pipeline.segmentation import masks
from wsol_pipeline.segmentation.station import finished


@pytest.fixture
def alone(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_the_walk_ends_in_a_registered_network(storage, several, alone, capsys, tmp_path):
    place = ["--storage", storage.uri]
    seeds.main(["--study", "bas", "--scales", "1", "--threshold", "0.3", "--field", "none",
                "--export", str(tmp_path / "out"), *place])  # fmt: skip
    told = capsys.readouterr().out
    assert "% mIoU on validation at threshold 0.300; best possible" in told
    assert "36 label images are in" in told
    assert f"refine --seeds bas-seeds --storage {storage.uri}" in told or "refine.py --seeds bas-seeds" in told
    refine.main(["--seeds", "bas-seeds", "--by", "pamr", *place])
    assert "--masks bas-pamr" in capsys.readouterr().out
    train = ["--masks", "bas-pamr", "--network", "lraspp_mobilenet_v3_large", "--epochs", "1", "--batch-size", "12",
             "--crop", "48", "--freeze-batch-norm", *place]  # fmt: skip
    assert segment.main(train) == 0
    assert "epoch 1: loss" in capsys.readouterr().out
    evaluate.main(["--segmentation", "bas-pamr-lraspp", *place])
    first = capsys.readouterr().out
    assert "bas-pamr-lraspp on test (12 images)" in first
    assert "supervision: labels" in first
    evaluate.main(["--segmentation", "bas-pamr-lraspp", *place])
    assert capsys.readouterr().out == first

    client = mlflow.MlflowClient(f"sqlite:///{storage.uri}/mlflow.db")
    runs = {run.info.run_name: run.data for run in client.search_runs(["1"])}
    assert set(runs) == {"bas-seeds", "bas-pamr", "bas-pamr-lraspp"}
    assert json.loads(runs["bas-pamr"].tags["wsol.sources"]) == [runs["bas-seeds"].tags["wsol.seal"]]
    assert json.loads(runs["bas-pamr-lraspp"].tags["wsol.sources"]) == [runs["bas-pamr"].tags["wsol.seal"]]
    assert runs["bas-seeds"].metrics["val/miou"] > 0
    model = mlflow.pyfunc.load_model("models:/bas-pamr-lraspp/1")
    assert model.predict(np.zeros((2, 40, 48, 3), np.uint8)).shape == (2, 40, 48)

    check_exports(tmp_path / "out", finished(storage.store, "bas-seeds"))


def check_exports(out, found):
    rows = found.read("train", np.arange(36), ["id", "seed"]).to_pylist()
    assert len(list(out.glob("png/**/*.png"))) == 36
    for row in rows[:3]:
        kept = masks.decode((out / "png" / f"{row['id']}.png").read_bytes())
        assert np.array_equal(kept, masks.decode(row["seed"]))
    shown = {(row["id"], int(label)) for row in rows for label in np.unique(masks.decode(row["seed"])) if label}
    table = pq.read_table(out / "masks.parquet").to_pylist()
    assert {(row["id"], row["label"]) for row in table} == shown
    assert len(json.loads((out / "coco.json").read_text())["annotations"]) == len(shown)


def test_a_dry_run_starts_nothing(storage, alone, capsys):
    before = storage.store.list()
    seeds.main(["--study", "bas", "--dry-run", "--storage", storage.uri])
    assert "36 training and 12 validation images of 3 classes" in capsys.readouterr().out
    segment.main(["--study", "bas", "--dry-run", "--storage", storage.uri])
    assert "Nothing was started" in capsys.readouterr().out
    assert storage.store.list() == before


def test_networks_that_options_name_are_those_there_are():
    from wsol_models.segmentation import NETWORKS
    from wsol_pipeline.segmentation import options

    assert set(options.NETWORKS) == set(NETWORKS)
