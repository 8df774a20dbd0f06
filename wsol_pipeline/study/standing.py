"""A study's winner beside a box in the middle, on validation: one that is not better has found nothing there."""

import json
from dataclasses import replace

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.baseline import count_centred, verdict_on_box
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.evaluation.measures import choosing
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.storage import Store
from wsol_pipeline.text import metric_name
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.config import TrainConfig
from wsol_pipeline.training.model import DESCRIPTION, VAL_COUNTS, VAL_IMAGES

BESIDE = ("top1_loc", "cls_top1")
CLASSIFIERS = ("top", "cls")  # begins a metric that a box, which names no class, has none of


def beside_box(final: Store, config: TrainConfig, dataset: Dataset, cache_dir: str | None = None) -> str:
    """The finished model `final` on validation, the centred box and Top-1 beside it, in sentences.

    Nothing where true boxes or masks have not chosen: validation may have none. It was chosen on these very images,
    which flatters it; the centred box has its best area of them too.
    """
    if config.select_by != "boxes" or config.threshold_by:
        return ""
    counts, choice = _counts(final)
    metric = choice.metric
    values = {**selection.transferred(counts, choice), metric: choice.value}
    interval = selection.bootstrap(counts, choice)["transferred"].get(metric) if counts.image_hits else None
    box = None if metric.startswith(CLASSIFIERS) else _box(config, dataset, cache_dir).get(metric)
    low_high = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
    told = [f"Validation, where it was chosen: {metric_name(metric)} {choice.value:.1f} %{low_high}"]
    told += [] if box is None else [f"centred box {box:.1f} %"]
    told += [f"{metric_name(name)} {values[name]:.1f} %" for name in BESIDE if name in values and name != metric]
    return f"{', '.join(told)}. {verdict_on_box(choice.value, interval, box)}".strip()


def _counts(final: Store) -> tuple[Counts, selection.Choice]:
    """Counts of validation at the winner's reading, with its single images where they were kept."""
    files = read_sealed(final, DESCRIPTION, VAL_COUNTS)
    choice = selection.Choice.from_dict(json.loads(files[DESCRIPTION])["choice"])
    counts = Counts.from_dict(json.loads(files[VAL_COUNTS])).at(choice.readout)
    if final.exists(VAL_IMAGES):
        hits = ImageHits.from_dict(json.loads(read_sealed(final, VAL_IMAGES)[VAL_IMAGES]))
        counts = replace(counts, image_hits=hits)
    return counts, choice


def _box(config: TrainConfig, dataset: Dataset, cache_dir: str | None) -> dict[str, float]:
    """The centred box on validation, each metric at its best area."""
    rules, val = protocol(config.protocol, image_size=config.image_size, resize_size=config.resize_size), dataset.val
    read = ReadConfig(resize_size=rules.resize_size, image_size=rules.image_size, cache_dir=cache_dir)
    counts = count_centred(eval_rows(val, read, rules.geometry, config.recipe.batch_size), choosing(rules, val))
    return {name: float(best_S.max()) for name, best_S in selection.best(counts).items()}
