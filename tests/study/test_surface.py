"""A trial's readout search as a table, a picture and numbers, from counts small enough to do by hand."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.storage import Store
from wsol_pipeline.study import surface
from wsol_pipeline.training.checkpoint import write_sealed
from wsol_pipeline.training.config import TrainConfig

PRESET = "bas-ext/table1/cub/resnet50"  # k = 200 and threshold 0.1, of top-k


def counts(settings=(1, 2)) -> Counts:
    """10 images, thresholds 0, 0.1, 0.2; the second setting is best at 0.2 for IoU 0.3 and at 0.1 for the others."""
    hits_SIT = np.array(
        [[[1, 2, 3], [1, 1, 1], [0, 0, 0]], [[4, 5, 9], [2, 6, 1], [1, 3, 0]]][: len(settings)], np.int64
    )
    ten_S = np.full(len(settings), 10)
    return Counts(
        "wsol-v1", settings, (0.3, 0.5, 0.7), np.array([0.0, 0.1, 0.2]), hits_SIT, hits_SIT, hits_SIT, ten_S, ten_S,
        ten_S,
    )  # fmt: skip


def test_what_solving_was_worth(tmp_path):
    values = surface.write_surface(counts(), TrainConfig(method="bas", readout="topk"), PRESET, tmp_path)
    assert values == pytest.approx(
        {
            "solved": (90 + 60 + 30) / 3,  # k = 2, each IoU at its best threshold
            "fixed_setting": (30 + 10 + 0) / 3,  # k = 1, likewise
            "published": (50 + 60 + 30) / 3,  # k = 200 is the last here, all at 0.1
            "gain": (90 - 50) / 3,
        }
    )
    assert (tmp_path / surface.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_published_choice_is_worth_what_its_own_threshold_gives():
    choice = surface.published_choice(counts(), "max_box_acc_v2", (200, 0.1))
    assert choice.value == pytest.approx((50 + 60 + 30) / 3)  # and not the 60 of the best thresholds


def test_a_published_setting_without_a_threshold_is_read_at_the_best(tmp_path):
    """B-CAM names how its maps are read, and takes the best of all thresholds: here those of the first setting."""
    config = TrainConfig(method="bcam", readout="bcam")
    values = surface.write_surface(counts(), config, "b-cam/table1/cub/resnet50/bcam-p", tmp_path)
    assert values["published"] == pytest.approx((30 + 10 + 0) / 3)
    assert values["gain"] == pytest.approx((180 - 40) / 3)
    choice = surface.published_choice(counts(), "max_box_acc_v2", (None, None))
    assert (choice.readout, choice.value) == (1, pytest.approx(40 / 3))
    assert choice.thresholds["max_box_acc_v2"] == (0.2, 0.0, 0.0)


@pytest.mark.parametrize(("readout", "preset"), [("topk", None), ("topk", "own settings"), ("suppression", PRESET)])
def test_without_a_published_reading_the_gain_is_over_the_fixed_setting(tmp_path, readout, preset):
    values = surface.write_surface(counts(), TrainConfig(method="bas", readout=readout), preset, tmp_path)
    assert "published" not in values
    assert values["gain"] == pytest.approx((180 - 40) / 3)


def test_the_table_has_every_setting_at_every_threshold(tmp_path):
    surface.write_surface(counts(), TrainConfig(method="bas"), PRESET, tmp_path)
    rows = pq.read_table(tmp_path / surface.TABLE).to_pylist()
    assert [row["setting"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert rows[5] == pytest.approx(
        {"setting": 2, "threshold": 0.2, "max_box_acc_v2": 100 / 3, "iou30": 90, "iou50": 10, "iou70": 0}
    )


def test_a_table_of_many_settings_leaves_out_thresholds(monkeypatch):
    monkeypatch.setattr(surface, "MOST_ROWS", 5)
    assert surface.surface_table(counts(), "max_box_acc_v2")["threshold"].to_pylist() == pytest.approx([0, 0.2, 0, 0.2])


def test_a_single_setting_by_name_and_a_single_curve(tmp_path):
    config = TrainConfig(method="cam", readout="cam", objective="gt_known_loc")
    values = surface.write_surface(counts(settings=("cam",)), config, None, tmp_path)
    assert values == pytest.approx({"solved": 10, "fixed_setting": 10, "gain": 0})
    assert pq.read_table(tmp_path / surface.TABLE).column_names == ["setting", "threshold", "gt_known_loc"]


def test_the_finished_model_speaks_before_any_rung(tmp_path):
    store, kept = Store.at(tmp_path), counts()
    assert surface.kept_counts(store) is None
    for folder, settings in (("attempt-0002/rung", (7, 8)), ("attempt-0001/rung", (5, 6))):
        store.write(f"{folder}/val_counts.json", json.dumps({**kept.to_dict(), "settings": settings}).encode())
    assert surface.kept_counts(store).settings == (7, 8)
    write_sealed(store / "attempt-0001/final", {"val_counts.json": json.dumps(kept.to_dict()).encode()})
    assert surface.kept_counts(store).settings == (1, 2)
    store.write("attempt-0001/final/val_counts.json", b"altered")
    assert surface.kept_counts(store) is None
