"""From options to a `TrainConfig`: the preset's values, under what was given beside them."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import search_spaces
from wsol_pipeline.errors import UsageError, unknown
from wsol_pipeline.evaluation.protocols import Protocol, protocol
from wsol_pipeline.evaluation.selection import objectives
from wsol_pipeline.training.config import Reading, Recipe, TrainConfig, require
from wsol_pipeline.training.options import RunOptions


@dataclass(frozen=True)
class Start:
    """What is trained how, before anything is given beside it: a preset's values, or ours where there is none."""

    name: str
    backbone: str
    recipe: Recipe
    image_size: int
    resize_size: int


LAPTOP = Start(
    "for a laptop (neither --preset nor --weights)",
    "tiny",
    Recipe(epochs=4, learning_rate=0.003, clip_norm=1.0),
    64,
    72,
)
# A rate by which new layers, at ten times it, learn a few hundred photographs and pretrained ones survive; batches that
# a laptop holds: of MobileNetV2 with large maps an image of 224 px takes 0.27 GB while it is trained on.
PHOTOGRAPHS = Start(
    "fine-tuning on photographs (--weights, no --preset)",
    "resnet50",
    Recipe(batch_size=16, learning_rate=0.001, clip_norm=1.0),
    224,
    256,
)


def resolve(options: RunOptions, method: str) -> TrainConfig:
    """The training configuration: what it starts from (`start`), under what was given beside it."""
    preset, presets = _preset(options.preset, method), search_spaces.presets(method)
    base = start(options, method)
    recipe = base.recipe
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Recipe)}
    recipe = dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})
    require(
        options.reading not in ("cached", "shrunk") or recipe.train_geometry != "random_resized_crop_stored",
        "random_resized_crop_stored cuts stored images, which no cache holds: reading must be auto or streaming",
        options.reading,
    )
    published = next((row.readout for row in [preset or next(iter(presets.values()), None)] if row), {})
    image_size = options.image_size or base.image_size
    own = options.readout in (None, published.get("name"))
    rules = protocol(options.protocol or (preset.protocol if preset else "wsol-v1"))
    return TrainConfig(
        method=method,
        backbone=options.backbone or base.backbone,
        weights=_absolute(options.weights),
        options={**(preset.method_options if preset else {}), **plain_values(options.options)},
        readout=options.readout or published.get("name", "cam"),
        readout_options={**(published.get("options", {}) if own else {}), **plain_values(options.readout_options)},
        fixed_setting=published.get("setting") if preset and own else None,
        protocol=rules.name,
        objective=options.objective or _objective(rules, preset),
        recipe=recipe,
        image_size=image_size,
        resize_size=options.resize_size or round(base.resize_size * image_size / base.image_size),
        keep=options.keep,
        patience=options.patience,
        freeze_batch_norm=options.freeze_batch_norm,
        sync_batch_norm=options.sync_batch_norm,
        precision=options.precision,
        channels_last=options.channels_last,
        deterministic=options.deterministic,
        compile=options.compile,
        seed=options.seed,
    )


def start(options: RunOptions, method: str) -> Start:
    """The preset's values; without one a recipe for pretrained weights, or the laptop's for networks from scratch."""
    if preset := _preset(options.preset, method):
        resized = preset.resize_size or preset.image_size + 32
        name = f"preset {preset.id}"
        return Start(name, preset.backbone, Recipe(**preset.recipe), preset.image_size, resized)
    if not options.weights or options.backbone == "tiny":
        return LAPTOP
    is_told = options.backbone or options.weights == "imagenet"
    require(bool(is_told), "--weights of a file need --backbone, the network that they are of,", options.weights)
    return PHOTOGRAPHS


def _absolute(weights: str | None) -> str | None:
    """Weights as a worker finds them: it runs in another folder than the command was given in."""
    return str(Path(weights).expanduser().absolute()) if weights and weights != "imagenet" else weights


def _objective(rules: Protocol, preset: search_spaces.Preset | None) -> str:
    """V2 of boxes; of masks the first metric that the row reports: what is cut already has no PxAP."""
    known = ["max_box_acc_v2"] if rules.ious else objectives(rules)
    return next((metric for metric in known if preset and metric in preset.published), known[0])


def _preset(name: str | None, method: str) -> search_spaces.Preset | None:
    known = search_spaces.presets(method)
    if name is not None and name not in known:
        if other := search_spaces.presets().get(name):
            raise UsageError(f"Preset {name!r} is of method {other.method!r}, not of {method!r}: tune that one.")
        raise unknown(f"preset of {method!r}", name, known)
    return known[name] if name else None


def plain_values(options: Mapping[str, str]) -> dict[str, Any]:
    """Values of the command line as what they look like: JSON (numbers, true, null, lists), else text."""
    return {name: _plain_value(value) for name, value in options.items()}


def _plain_value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value


def reading(options: RunOptions) -> Reading:
    """How rows reach the workers. That training images are shrunk, a configuration says (`plan.shrunk_jpegs`)."""
    mode = "auto" if options.reading == "shrunk" else options.reading
    return Reading(mode, options.cache_dir, options.cache_budget_gb, options.shard_cache_gb)
