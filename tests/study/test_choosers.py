"""What selectors bring is looked at before anything starts: files of boxes, another study."""

import json
from dataclasses import replace

import pytest

from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.measures import Truth
from wsol_pipeline.storage import Store
from wsol_pipeline.study.choosers import check_consensus, choosers
from wsol_pipeline.study.identity import WINNER
from wsol_pipeline.study.plan import check_buildable, chosen_by
from wsol_pipeline.training.checkpoint import seal_of
from wsol_pipeline.training.options import SelectionOptions

BY_CAM = SelectionOptions("consensus:cam")


@pytest.fixture
def store(fit, make_config, tmp_path):
    """A store with a finished study "cam"."""
    final = fit(make_config("cam", epochs=1)).final
    store = Store.at(tmp_path / "runs")
    record = {"model": final.uri, "seal": seal_of(final)}
    store.write(f"cam/{WINNER}", json.dumps(record).encode())
    return store


def test_a_consensus_is_with_a_finished_study_of_another_method_and_the_same_data(store, dataset, make_config):
    found = choosers(BY_CAM, dataset, store)
    assert list(found.sources) == ["consensus:cam"]
    assert len(found.truth) == 64
    check_consensus(found, make_config("bas"), dataset)
    with pytest.raises(UsageError, match="consensus:cam is a study of cam too"):
        check_consensus(found, make_config("cam"), dataset)
    others = replace(dataset, manifest=replace(dataset.manifest, classes=("a", "b", "c")))
    with pytest.raises(UsageError, match="trained on other data or classes"):
        check_consensus(found, make_config("bas"), others)
    with pytest.raises(UsageError, match="is of another evaluation"):
        check_consensus(found, make_config("bas", image_size=40, resize_size=40), dataset)


def test_a_study_that_is_not_there_is_refused_by_name(dataset, tmp_path):
    with pytest.raises(UsageError, match="consensus:cam needs a finished study of that name"):
        choosers(BY_CAM, dataset, Store.at(tmp_path))


@pytest.mark.parametrize("kind", ["pseudo", "proposals", "detector"])
def test_what_is_brought_is_part_of_what_was_chosen_by(dataset, tmp_path, kind):
    def read(corner):
        file = tmp_path / "boxes.csv"
        lines = [f"{id},0,0,{corner},20\n" for id in dataset.val_labels.ids]
        file.write_text("path,x0,y0,x1,y1\n" + "".join(lines))
        return choosers(SelectionOptions(f"{kind}:{file}"), dataset, Store.at(tmp_path))

    one, other = read(20), read(21)
    assert one.rank.recorded == kind  # no place
    assert one.truth != other.truth
    assert one.of_val(Truth(25, 0, 0, False)) == Truth(25, 25, 0, False)
    assert f"{kind}: boxes of 25 of 25 validation images (100%)" in one.notes[0]
    assert choosers(SelectionOptions(), dataset, Store.at(tmp_path)).truth == ""


@pytest.mark.parametrize("modes", [None, ["mask"], ["object", "mask"]])
def test_own_masks_are_asked_of_readouts_that_cut_them_before_anything_starts(dataset, make_config, tmp_path, modes):
    found = choosers(SelectionOptions("own-mask"), dataset, Store.at(tmp_path))
    asked = make_config("bcam", readout="bcam", readout_options={"modes": modes} if modes else {})
    config = chosen_by(asked, None, dataset, found)
    if modes == ["mask"]:
        check_buildable(config, dataset, found)
    else:
        with pytest.raises(
            UsageError, match=r"""own-mask needs .* --readout-options modes '\["mask"\]' cuts its own"""
        ):
            check_buildable(config, dataset, found)
