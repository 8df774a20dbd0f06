"""What a study that was chosen by a file of boxes says of these at its end, once there is a model to compare with."""

import json
from dataclasses import replace

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.targets import Targets
from wsol_pipeline.evaluation.certainty import certainty, half_width
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.evaluation.selection import Choice, transferred
from wsol_pipeline.selectors import TARGETS
from wsol_pipeline.storage import Store
from wsol_pipeline.study.choosers import Choosers
from wsol_pipeline.training.checkpoint import read_sealed
from wsol_pipeline.training.config import TrainConfig
from wsol_pipeline.training.guesses import size_bias
from wsol_pipeline.training.model import DESCRIPTION, VAL_COUNTS, VAL_IMAGES, load_model

MACHINES = tuple(name for name in TARGETS if name != "annotated")


def certainty_of(final: Store, config: TrainConfig, by: Choosers) -> str:
    """What the annotated images of a finished model say of its thresholds, in sentences; nothing of other selectors."""
    if config.select_by != "annotated":
        return ""
    if (targets := Targets.from_dict(by.sources["annotated"])).biased:
        return (
            f"{len(targets.boxes)} annotated images, drawn by disagreement: they choose. They are the hard ones, so "
            "nothing is told by them of how sure the threshold is, or how often this model is right."
        )
    files = read_sealed(final, DESCRIPTION, VAL_COUNTS, VAL_IMAGES)
    choice = Choice.from_dict(json.loads(files[DESCRIPTION])["choice"])
    counts = Counts.from_dict(json.loads(files[VAL_COUNTS])).at(choice.readout)
    hits = ImageHits.from_dict(json.loads(files[VAL_IMAGES]))
    found = certainty(replace(counts, image_hits=hits), choice.metric)
    share = transferred(counts, choice)["gt_known_loc"] / 100
    width = 100 * half_width(share, found.images)
    measured = f"{100 * share:.1f} ± {width:.1f} % of them are hit at IoU 0.5: they choose, and measure little."
    return f"{found.sentence} {measured}"


def sizes_of(final: Store, dataset: Dataset, found: Choosers, cache_dir: str | None = None) -> str:
    """How large boxes of a machine are beside those of a finished model; nothing of other selectors."""
    brought = (Targets.from_dict(found.sources[name]) for name in MACHINES if name in found.sources)
    return " ".join(filter(None, (size_bias(targets, dataset, load_model(final), cache_dir) for targets in brought)))
