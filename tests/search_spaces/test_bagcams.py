"""BagCAMs' rows are the models of other rows, read in another way."""

from collections import Counter

from search_spaces import preset, presets, space_for
from search_spaces.bagcams import MODELS, PUBLISHED
from wsol_models import build
from wsol_models.readouts import readout


def test_there_is_nothing_to_train():
    assert space_for("bagcams")(None) == {}


def test_every_table_of_each_model_is_there():
    """Two tables of three datasets; four readouts; four readouts at four stages of two networks; three weightings."""
    tables = Counter(id.split("/")[1] for id, row in PUBLISHED.items() if row.method == "cam")
    assert tables == {"table2": 3, "table3": 3, "table4": 4, "table5": 16, "table6": 16, "table8": 3}


def test_a_row_differs_from_its_model_by_how_maps_are_read():
    row, model = preset("bagcams/table2/cub/resnet50/cam+bagcams"), MODELS["bagcams/table2/cub/resnet50/cam"]
    assert (row.method_options, row.recipe, row.protocol) == (model.method_options, model.recipe, "wsol-v2")
    assert row.readout == {"name": "bagcams", "options": {"stages": ("layer3",)}}
    assert row.published == {
        "top1_loc": 70.89, "gt_known_loc": 87.44, "max_box_acc_v2": 76.22, "piou": 64.40, "pxap": 84.38,
    }  # fmt: skip
    mask = preset("bagcams/table6/cub/inception_v3/gradcam++/mixed_6e")
    assert (mask.protocol, mask.published) == ("wsol-mask", {"pxap": 68.0})
    assert preset("bagcams/table8/cub/resnet50/ours2").readout["options"]["weightings"] == ("ours2",)


def test_published_stages_and_weightings_are_settings_of_their_networks():
    methods = {name: build("cam", backbone=name, num_classes=2).eval() for name in ("resnet50", "inception_v3")}
    for row in PUBLISHED.values():
        settings = readout(row.readout["name"], **row.readout["options"]).settings(methods[row.backbone])
        assert len(settings) == (4 if "/table4/" in row.id and "+bagcams" not in row.id else 1)


def test_a_models_own_row_comes_before_those_that_read_it_anew():
    assert next(iter(presets("cam"))) == "bagcams/table2/cub/resnet50/cam"
