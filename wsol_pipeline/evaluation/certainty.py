"""How sure thresholds are that a few annotated images chose: other draws of these images, and what each would cost."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation import selection
from wsol_pipeline.evaluation.counts import Counts

ENOUGH = 2.0  # points that a threshold of other images may cost, in 19 of 20 draws


@dataclass(frozen=True)
class Certainty:
    """Thresholds [R] of redraws of the images (of a metric over several IoUs the middle one's), and what they lose on
    the images themselves, percent [R]."""

    images: int
    thresholds: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def is_enough(self) -> bool:
        return float(np.quantile(self.losses, 0.95)) <= ENOUGH

    @property
    def sentence(self) -> str:
        low, high = np.quantile(self.thresholds, [0.05, 0.95])
        most = np.quantile(self.losses, 0.95)
        told = (
            f"{self.images} annotated images: the threshold lies in {low:.3f} to {high:.3f} (5 to 95 % of "
            f"{len(self.losses):,} redraws), which costs {self.losses.mean():.1f} points on average and at most "
            f"{most:.1f} in 19 of 20"
        )
        return f"{told}." if self.is_enough else f"{told}: annotate more."


def certainty(counts: Counts, metric: str, samples: int = 1000, seed: int = 0) -> Certainty:
    """Redraw the images of `counts` (with `image_hits`, at one setting), and choose anew in each redraw."""
    kept = selection.require_images(counts, "How sure a threshold is")
    redrawn = selection.weighted(counts, selection.resample(kept, samples, seed))
    at_RC = selection.curves(redrawn, metric).argmax(-1)
    curves_CT = selection.curves(counts, metric)[0]
    across_C = np.arange(len(curves_CT))
    losses_R = (curves_CT.max(-1) - curves_CT[across_C, at_RC]).mean(-1)
    return Certainty(len(set(kept.ids)), selection.grid(counts, metric)[at_RC[:, len(curves_CT) // 2]], losses_R)


def half_width(share: float, images: int) -> float:
    """Half of the 95 % interval of a share that was counted on so many images: 1.96 √(p (1 - p) / n)."""
    return 1.96 * math.sqrt(share * (1 - share) / images)
