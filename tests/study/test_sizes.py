"""Sizes of a machine's boxes beside those that a first model guesses."""

import numpy as np
import pytest

from wsol_pipeline.data.targets import Targets
from wsol_pipeline.selectors import parse
from wsol_pipeline.study.certainty import sizes_of
from wsol_pipeline.study.choosers import Choosers
from wsol_pipeline.training.guesses import compared, guesses
from wsol_pipeline.training.model import load_model

SIZES = np.array([0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("factor", "told"),
    [(1.0, ""), (1.5, ""), (1 / 1.5, ""), (1.6, "1.6 times larger in the median"), (0.5, "2.0 times smaller")],
)
def test_medians_that_differ_by_over_half_are_a_bias(factor, told):
    said = compared("pseudo", factor * SIZES, SIZES)
    assert "this model's at Otsu's threshold 0.25, 0.30, 0.35 (3 images)" in said
    assert ("Size bias" in said) == bool(told)
    assert told in said


def test_a_study_by_a_machines_boxes_says_their_size_beside_its_winners(fit, make_config, dataset, reading):
    final = fit(make_config("cam", epochs=1)).final
    ids = dataset.val_labels.ids

    def told(kind, box):
        targets = Targets(kind, "exclusive0", {key: [box] for key in ids}, {key: [0] for key in ids}, "f" * 64)
        return sizes_of(
            final, dataset, Choosers(parse(f"{kind}:f"), None, {kind: targets.to_dict()}), reading.cache_dir
        )

    model = load_model(final)
    guessed = guesses(model, dataset, range(len(ids)), reading.cache_dir)
    median = np.median([(x1 - x0) * (y1 - y0) / 1600 for x0, y0, x1, y1 in guessed.values()])
    side = 40 * float(np.sqrt(median))
    assert "Size bias" not in told("proposals", (0, 0, side, side))
    assert "detector: boxes take 0.00, 0.00, 0.00 of the image" in told("detector", (0, 0, 1, 1))
    assert "times smaller" in told("detector", (0, 0, 1, 1))
    assert told("annotated", (0, 0, 1, 1)) == ""
