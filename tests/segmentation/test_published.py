"""Published rows as options of the stations."""

import pytest

import search_spaces
from wsol_pipeline.errors import UsageError
from wsol_pipeline.segmentation.options import RefineOptions, SeedOptions
from wsol_pipeline.segmentation.published import ROWS, with_row


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_every_row_is_of_a_study_and_of_options_that_there_are(row):
    assert row.study in search_spaces.presets()
    seeds = with_row(SeedOptions(), row.id, "seeds")
    assert (seeds.foreground_at, seeds.background_at) == (0.30, 0.17)
    masks = with_row(RefineOptions(seeds="s"), row.id, "refine")
    assert (masks.by, masks.power, masks.backbone, masks.weights) == (("irn",), 1.5, "resnet50", "imagenet")


def test_what_is_given_wins():
    asked = with_row(SeedOptions(agnostic="replace"), "bas-ext/table13/voc12/average", "seeds")
    assert asked.agnostic == "replace"
    assert with_row(SeedOptions(), "bas-ext/table13/voc12/average", "seeds").agnostic == "average"
    assert with_row(SeedOptions(), "", "seeds") == SeedOptions()


def test_the_nearest_row_is_named():
    with pytest.raises(UsageError, match="Did you mean 'bas-ext/table13/voc12/average'"):
        with_row(SeedOptions(), "bas-ext/table13/voc12/averag", "seeds")
