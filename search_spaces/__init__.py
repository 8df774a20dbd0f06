"""Search spaces, one file per method, and the home of every published setting.

    from search_spaces import preset, presets, space_for
    space_for("bas")(trial)                          # suggested values of one trial
    preset("bas-ext/table1/cub/resnet50").recipe     # what the paper trained with

A file has `space(trial, ...) -> dict` over the training constants that a paper varies, with the ranges of its
sensitivity figures, and `PUBLISHED: dict[id, Preset]`, its settings, which a study tries first. What only changes how a
map is read (top-k, threshold) is in no space: it is solved inside every trial.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Space = Callable[[Any], dict[str, Any]]  # what a trial of Optuna proposes, by parameter


@dataclass(frozen=True)
class Preset:
    """One row of a paper's table.

    id: paper/table/dataset/backbone[/variant].
    method, dataset, backbone: names, as in the id.
    method_options: fields of the method's `Config`.
    recipe: epochs, batch_size (images, over all devices), learning_rate, weight_decay, nesterov (SGD, momentum 0.9),
        decay_every (epochs; the rate falls to a tenth at the start of every epoch divisible by it, counted from
        decay_counts_from, 0 or 1; epoch 0 excepted), and what else a recipe may have.
    readout: name of the readout, its options, its published setting (None: the first), and the published threshold; a
        row that names neither is read as validation finds.
    protocol: name of the paper's evaluation, which a run of this preset uses unless told otherwise.
    published: what it reports under that protocol, in percent; bears a metric's name where it is that metric.
    source: where the values stand.
    image_size: pixels a side of what the network sees.
    resize_size: pixels a side of the image that training crops are cut from; 32 more than image_size if None.
    split: the images that the published figures are of, if they are not those that are judged here and the id's dataset
        does not say so ("openimages-val").
    notes: where text and code of the paper differ or say nothing, and what the row has.
    """

    id: str
    method: str
    dataset: str
    backbone: str
    method_options: Mapping[str, Any]
    recipe: Mapping[str, Any]
    readout: Mapping[str, Any]
    protocol: str
    published: Mapping[str, float]
    source: str
    image_size: int = 224
    resize_size: int | None = None
    split: str = ""
    notes: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> str:
        """The split that the figures are of, if it is not our test; VOC2012's validation images are that."""
        split = self.split or self.id.split("/")[2].removeprefix(self.dataset).removeprefix("-")
        return split if split in ("train", "trainval", "val") and (split, self.dataset) != ("val", "voc12") else ""


# Names that tables of published figures have for rows that stand here under another: a table repeats a model of another
# one, or leaves out the network.
ALIASES = {
    **{f"bagcams/table4/cub/resnet50/{model}": f"bagcams/table2/cub/resnet50/{model}"
       for model in ("cam", "has", "cutmix", "adl", "daol")},
    "bagcams/table8/cub/resnet50/cam": "bagcams/table2/cub/resnet50/cam",
    **{f"b-cam/table5/voc12-{split}/{variant}": f"b-cam/table5/voc12-{split}/resnet50/{variant}"
       for split in ("train", "val") for variant in ("bcam-p", "bcam-m")},
    **{f"bas-ext/table15/voc12/bas/{threshold}": f"bas-ext/table15/voc12/resnet50/{threshold}"
       for threshold in ("global", "image-specific")},
}  # fmt: skip


def spaces() -> tuple[str, ...]:
    """Methods that have a search space."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def space_for(method: str) -> Callable[..., dict[str, Any]]:
    """The `space` function of a method. Raises `ValueError` for a method without one."""
    if method not in spaces():
        raise _unknown("search space", method, spaces())
    return importlib.import_module(f"{__name__}.{method}").space


def presets(method: str | None = None) -> dict[str, Preset]:
    """Published settings by id, of all methods or of one: first its own file's, then those that read its maps anew."""
    found: dict[str, Preset] = {}
    for name in sorted(spaces(), key=lambda name: name != method):
        found |= importlib.import_module(f"{__name__}.{name}").PUBLISHED
    return {key: row for key, row in found.items() if method in (None, row.method)}


def preset(id: str) -> Preset:
    """One published setting. Raises `ValueError` for an unknown id."""
    found = presets()
    if id not in found:
        raise _unknown("preset", id, found)
    return found[id]


def _unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
