"""Where text and code of a paper differ, every row that the difference touches says so, and what it has itself.

The list is kept here by hand: heading of the note, words of it, and the rows (a pattern of ids, and what else holds of
them) that it belongs to. A row to which a difference does not apply must not bear its note.
"""

import re

import pytest

from search_spaces import Preset, presets

ROWS = presets()
BAS_BOXES = r"bas(-ext)?/.*/(cub|ilsvrc)/"
BCAM = r"b-cam/(table1|table2|table3|table4|table7|table8|table9|table10)/"
VOC_BCAM = r"b-cam/table5/voc12"
MLDFR_CODE = r"mldfr/(?!.*/paper$)(?!.*voc07)"


def of(pattern: str, **fields: str):
    """Rows whose id starts with `pattern` and whose fields are these."""
    return lambda row: re.match(pattern, row.id) and all(getattr(row, name) == value for name, value in fields.items())


def bas(row: Preset) -> bool:
    return row.method == "bas" and row.id.startswith("bas")


def seeds(row: Preset) -> bool:
    return bas(row) and row.dataset in ("voc12", "coco14")


DIFFERENCES = {
    # B-CAM
    "s^b": ("Loss", "cross-entropy against no class at all", of(r"b-cam/", method="bcam")),
    "detached background terms": ("Background terms", "through the attention alone", of(r"b-cam/", method="bcam")),
    "detached stage 2": ("Background terms", "features of stage 2 constant", of(VOC_BCAM, method="bcam")),
    "equal heads": ("Heads", "they never differ", of(BCAM, method="bcam")),
    "unstarted heads": ("Heads", "that of the background never", of(VOC_BCAM, method="bcam")),
    "rate of biases": ("Learning rate", "20 times", of(BCAM, method="bcam")),
    "u and v": ("Maps", "each classifier's difference", of(BCAM, method="bcam")),
    "rules of gradients": ("Maps", "another rule for each dataset", of(BCAM, method="bcam")),
    "boxes of B-CAM": ("Boxes", "all contours", of(BCAM, method="bcam")),
    "soft labels": ("Labels", "soft_topk 5", of(r"b-cam/table4/ilsvrc", method="bcam")),
    "recipe of VOC2012": ("Recipe", "differs from the text's", of(VOC_BCAM, method="bcam")),
    "network of VOC2012": ("Network", "ResNet38", of(VOC_BCAM, method="bcam")),
    "maps of VOC2012": ("Maps", "object classifier's alone", of(VOC_BCAM, method="bcam")),
    # BagCAMs
    "Eq. 12": ("Maps", "PCS without ReLU", lambda row: row.readout["name"] == "bagcams"),
    "raw logit": ("Log", "raw logit", lambda row: row.readout["name"] == "bagcams"),
    "guided ReLU": ("Gradients", "through a ReLU", lambda row: row.readout["name"] == "bagcams"),
    "weightings": ("Weighting", "ours3 alone", of(r"bagcams/table8/.*/ours[12]$")),
    "Grad-CAM++": ("Weights", "exponential and the ReLU", lambda row: row.readout["name"] == "gradcampp"),
    "DA losses for all": ("Domain adaptation", "oversight", of("bagcams/")),
    "images of ILSVRC": ("Images", "50,000", of("bagcams/", dataset="ilsvrc")),
    # BAS
    "clamp": ("λ's term", "cuts it at 1", lambda row: bas(row) and not seeds(row)),
    "pooled map": ("α's term", "2x2", lambda row: bas(row) and not seeds(row)),
    "detached S and F": ("Suppression", "as constants", bas),
    "top-k": ("Top-k", "counts the true class in", lambda row: bas(row) and not seeds(row)),
    "geometry": ("Images", "cuts out 224", of(BAS_BOXES)),
    "α of 0": ("α", "weight 0 here", lambda row: bas(row) and row.backbone == "vgg16" and row.dataset == "cub"
               and "figure4/cub/vgg16/baseline" not in row.id),
    "β of the text": (
        "β",
        "the text has α + λ",
        lambda row: (
            row.id.startswith("bas-ext")
            and row.backbone != "resnet50"
            and row.method_options["beta"] != row.method_options["alpha"] + row.method_options["lambda_"]
        ),
    ),
    "epochs of OpenImages": ("Epochs", "120", of("bas-ext/.*openimages")),
    "masks of OpenImages": ("Maps", "before they are enlarged", of("bas-ext/.*openimages")),
    "selected on test": ("Which epoch", "best on test", lambda row: row.id.startswith("bas-ext") and not seeds(row)
                         and row.dataset != "ilsvrc"),
    "unknown epoch": ("Which epoch", "not known", of("bas-ext/.*ilsvrc")),
    "V2 at one threshold": ("MaxBoxAccV2", "one threshold for all IoUs", of("bas-ext/table4/")),
    "optimizer of seeds": ("Optimizer", "for a momentum", seeds),
    "threshold of an image": ("Thresholds", "one for each image", of("bas-ext/table15/.*image-specific")),
    # mLDFR
    "norm in SA": ("Recalibration", "batch norm in both of its parts", of("mldfr/")),
    "order in SA": ("Recalibration", "maximum first", of("mldfr/")),
    "bias of fc": ("Class maps", "biases", of("mldfr/")),
    "start": ("Start", "after they were changed", of("mldfr/")),
    "names of checkpoints": ("Batch", "names of its files", lambda row: row.method == "mldfr"
                             and row.backbone in ("vgg16_bn", "resnet50", "densenet161")),
    "GoogLeNet's SA": ("Recalibration's name", "does not have", of("mldfr/", backbone="googlenet")),
    "DenseNet's SA": ("Third recalibration", "transition3", of("mldfr/", backbone="densenet161")),
    "MobileNetV2": ("MobileNetV2", "as we read the text", of("mldfr/", backbone="mobilenet_v2")),
    "recipe of mLDFR": ("Recipe", "a plateau of the loss", of(MLDFR_CODE)),
    "boxes of mLDFR": ("Boxes", "takes one box", of("mldfr/")),
    "tenth of train": ("Thresholds", "a tenth of the training images", of("mldfr/")),
    "no batch norm": ("Batch norm", "no network without", lambda row: row.method == "mldfr"
                      and not row.method_options["bn"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_row_that_a_difference_touches_says_so_and_no_other(name):
    heading, words, touches = DIFFERENCES[name]
    noted = {id for id, row in ROWS.items() if any(n.startswith(f"{heading}: ") and words in n for n in row.notes)}
    assert noted == {id for id, row in ROWS.items() if touches(row)}
    assert noted


def test_a_note_says_what_the_row_has_and_stands_once():
    for id, row in ROWS.items():
        assert len(set(row.notes)) == len(row.notes), id
        for note in row.notes:
            assert re.match(r"[^:]+: .+", note), (id, note)
            assert "Here: " in note or note.startswith("Recipe: the text's"), (id, note)
