"""What choosing without boxes costs: by NAME beside boxes, with intervals in the same redraws."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation import labelfree
from wsol_pipeline.storage import Store
from wsol_pipeline.training.model import load_model
from wsol_pipeline.verdict.costs import costs
from wsol_pipeline.verdict.options import EvaluateOptions


def test_each_selector_stands_beside_what_boxes_choose(dataset, reading, make_config, fit):
    model = load_model(fit(make_config("cam", epochs=1)).final)
    options = EvaluateOptions(batch_size=12, cache_dir=reading.cache_dir)
    first, *others = costs(options, model, dataset, ("otsu", "area:0.3", "evidence+otsu", "boxes+area:0.3"))
    assert (first.name, first.cost, first.threshold) == (
        "boxes",
        {"max_box_acc_v2": 0, "gt_known_loc": 0},
        model.threshold,
    )
    assert set(first.intervals.values()) == {(0.0, 0.0)}
    assert [other.name for other in others] == ["otsu", "area:0.3", "evidence+otsu", "boxes+area:0.3"]
    assert others[3].transferred == others[1].transferred  # the objective too takes the second one's
    assert (others[0].threshold, others[2].threshold) == ("otsu", "otsu")
    assert others[0].transferred == others[2].transferred  # the same rule at the only setting
    for other in others:
        assert other.cost == {name: other.transferred[name] - first.transferred[name] for name in first.cost}
        low, high = other.intervals["gt_known_loc"]
        assert low <= other.cost["gt_known_loc"] + 1e-9
        assert high >= other.cost["gt_known_loc"] - 1e-9
        assert np.isfinite([low, high]).all()
    assert first.oracle["max_box_acc_v2"] >= first.transferred["max_box_acc_v2"]  # the thresholds that test likes best
    assert others[0].oracle == others[0].transferred  # a rule has no threshold to pick anew


def test_what_several_selectors_share_is_looked_at_once(dataset, reading, make_config, fit, monkeypatch):
    """At the only setting, closely: evidence by itself, Otsu for the threshold of two."""
    model = load_model(fit(make_config("cam", epochs=1)).final)
    options = EvaluateOptions(batch_size=12, cache_dir=reading.cache_dir)
    _, alone = costs(options, model, dataset, ("evidence+otsu",))
    looks, observe = [], labelfree.observe
    monkeypatch.setattr(
        labelfree, "observe", lambda of, *args, **named: looks.append(of) or observe(of, *args, **named)
    )
    passes = []

    @contextmanager
    def progress(what, images):
        passes.append([what, images])
        yield lambda more: passes[-1].append(more)

    _, *others = costs(options, model, dataset, ("otsu", "evidence", "evidence+otsu"), progress=progress)
    looked = [what for what, *_ in passes if "on test" not in what]
    assert looked == ["chosen by boxes", "chosen by otsu", "chosen by evidence"]
    for _, images, *done in passes:  # what is taken from before is not announced
        assert sum(done) == images
    assert [of.score for of in looks] == ["separability", "evidence_gain"]
    assert others[2] == alone


def test_without_boxes_there_is_nothing_to_compare_with(dataset, reading, make_config, fit, tmp_path):
    model = load_model(fit(make_config("cam", epochs=1)).final)
    splits = {role: replace(info, boxes=0) for role, info in dataset.manifest.splits.items()}
    Store.at(tmp_path / "bare").write("manifest.json", replace(dataset.manifest, splits=splits).to_json())
    with pytest.raises(UsageError, match="val and test need boxes"):
        costs(EvaluateOptions(), model, open_dataset(str(tmp_path / "bare")), ("otsu",))


def test_a_name_that_is_no_selector_is_refused_before_test_is_opened():
    with pytest.raises(UsageError, match="Unknown selector 'ostu'"):
        EvaluateOptions(selectors=("evidence+ostu",))
