"""Parameters, map sizes and multiply-adds of every network, as counted on the reference implementations.

On the meta device: neither memory nor arithmetic. `reference_numbers.json` has all rows by source; the networks of a
method join as entries of `TABLE`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import wsol_models
from wsol_models._layers import LocalizationMethod, Output

MEASURED = json.loads((Path(__file__).parent / "reference_numbers.json").read_text())
NAMES = {"vgg": "vgg16", "resnet": "resnet50", "mobilenet": "mobilenet_v1", "inception": "inception_v3"}


@dataclass(frozen=True)
class Rows:
    """Rows of one source that are the networks of one method.

    source: how its name in the file begins. pattern: of the rows' names; groups `backbone`, `classes`, maybe `large`.
    extra: multiply-adds of what the reference computes beyond our forward, from the method and its output.
    """

    source: str
    pattern: str
    method: str
    options: dict[str, Any]
    extra: Callable[[LocalizationMethod, Any], int]
    training: bool = False


def nothing(method: LocalizationMethod, output: Output) -> int:
    return 0


def dense_head(method: LocalizationMethod, output: Output) -> int:
    """The linear layer at every position and then the mean, where ours takes the mean first."""
    return (output.features_BCHW[0, 0].numel() - 1) * method.head_weight_KC.numel()


def dense_classifiers(method: Any, output: Any) -> int:
    """Maps of both of B-CAM's classifiers, which ours leaves to its readout."""
    return output.features_BCHW[0, 0].numel() * 2 * method.head_weight_KC.numel()


def maps_of_all_classes(method: Any, output: Any) -> int:
    """The generator's maps of all classes in training, where ours makes one."""
    return output.foreground_BHW.numel() * method.classifier_loc.weight.numel()


SIZED = r"(?P<backbone>{})/{}large=(?P<large>\w+)/C=(?P<classes>\d+)"
SCALED = r"(?P<backbone>\w+)(?:\(patched .*\))?/C=(?P<classes>\d+)/in=\d+"
PLAIN = r"(?P<backbone>\w+)/C=(?P<classes>\d+)"
CONFERENCE = {"relu_class_maps": True}
TABLE = [
    Rows("clovaai/wsolevaluation", SIZED.format("vgg16|resnet50", "cam/"), "cam", {}, nothing),
    Rows("clovaai/wsolevaluation", SIZED.format("inception_v3", "cam/"), "cam", {}, dense_head),
    Rows("clovaai/wsolevaluation", SIZED.format("vgg16|resnet50", "adl/"), "adl", {}, nothing),
    Rows("clovaai/wsolevaluation", SIZED.format("inception_v3", "adl/"), "adl", {}, dense_head),
    Rows("clovaai/wsolevaluation", SIZED.format(r"\w+", "acol/"), "acol", {}, nothing),
    Rows("clovaai/wsolevaluation", SIZED.format(r"\w+", "spg/"), "spg", {}, dense_head, training=True),
    Rows("zh460045050/BagCAMs", SIZED.format(r"\w+", ""), "cam", {}, dense_head),
    Rows("zh460045050/BCAM(return_cam", SIZED.format(r"\w+", "bcam/"), "bcam", {}, dense_classifiers),
    Rows("zh460045050/BCAM(training", SIZED.format(r"\w+", "bcam-train-forward/"), "bcam", {}, nothing, training=True),
    Rows("wpy1999/BAS CUB", PLAIN, "bas", CONFERENCE, maps_of_all_classes, training=True),
    Rows("wpy1999/BAS ILSVRC", PLAIN, "bas", CONFERENCE, maps_of_all_classes, training=True),
    Rows("wpy1999/BAS-Extension", PLAIN, "bas", {}, nothing),
    Rows("wangbo2016/wsol-mLDFR-2020", SCALED, "mldfr", {}, nothing),
]


def cases() -> list[Any]:
    found = []
    for rows in TABLE:
        source = next(name for name in MEASURED if name.startswith(rows.source))
        matches = [(re.fullmatch(rows.pattern, name), row) for name, row in MEASURED[source].items()]
        chosen = [pytest.param(rows, match, row, id=f"{rows.source}/{match[0]}") for match, row in matches if match]
        assert chosen, rows
        found += chosen
    return found


def multiply_adds(counter: FlopCounterMode) -> float:
    """Of convolutions and linear layers; the counter has two operations for each."""
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if str(operation) in ("aten.convolution", "aten.addmm")) / 2


def sizes_of(output: Any) -> dict[str, list[int]]:
    """Height and width of the maps, by the names they have in the file."""
    deep = list(output.features_BCHW.shape[2:])
    own = getattr(output, "foreground_BHW", output.maps_BKHW)
    own_size = list(own.shape[-2:]) if own is not None else []
    return {"map": deep, "feature_map": deep, "M_fg": own_size, "cam": own_size}


@pytest.mark.parametrize(("rows", "match", "row"), cases())
def test_network(rows, match, row):
    groups = match.groupdict()
    options = rows.options | ({"large": groups["large"] == "True"} if "large" in groups else {})
    name, layers = NAMES.get(groups["backbone"], groups["backbone"]), row.get("layers", {})
    with torch.device("meta"):
        method = wsol_models.build(rows.method, backbone=name, num_classes=int(groups["classes"]), **options)
        images, targets = torch.zeros(1, 3, row["input"], row["input"]), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        output = method.train(rows.training)(images, targets, taps=tuple(layers))
    expected = row.get("params_excluding_frozen_copies", row["params"])
    assert sum(parameter.numel() for parameter in method.parameters()) == expected
    assert multiply_adds(counter) + rows.extra(method, output) == pytest.approx(row["macs"] * 1e9, rel=0.005)
    for key, size in sizes_of(output).items():
        assert row.get(key, size)[-2:] == size, key
    assert {stage: list(features.shape) for stage, features in output.taps.items()} == layers
