"""A picture of what models localize: image, map, predicted box and true boxes, one row per model."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

TRUE, PREDICTED = "#22dd55", "#ff3344"


@dataclass(frozen=True)
class Shown:
    """One image as one model sees it: map [H, W] in 0..1 at the image's size, boxes x0y0x1y1 in its pixels."""

    map_HW: np.ndarray
    box: np.ndarray
    iou: float | None  # None where there is no true box


def draw_gallery(
    images: Sequence[np.ndarray],
    classes: Sequence[str],
    truths: Sequence[np.ndarray],
    models: Mapping[str, Sequence[Shown]],
    path: Path,
) -> Path:
    """Draw `images` (uint8 [H, W, 3]) in columns, and a row for each of `models`.

    Over an image stands the one of its `classes` whose true boxes and maps are shown, over each map the IoU.
    """
    rows = len(models) + 1
    figure, axes = plt.subplots(rows, len(images), figsize=(1.6 * len(images), 1.75 * rows + 0.3), squeeze=False)
    for column, (image, truth_N4) in enumerate(zip(images, truths, strict=True)):
        _show(axes[0][column], image, truth_N4)
        axes[0][column].set_title(classes[column], fontsize=8, pad=2, parse_math=False)
        for row, shown in enumerate(models.values(), start=1):
            axis = axes[row][column]
            _show(axis, image, truth_N4)
            axis.imshow(shown[column].map_HW, cmap="jet", alpha=0.5, vmin=0, vmax=1)
            _box(axis, shown[column].box, PREDICTED)
            iou = shown[column].iou
            axis.set_title("" if iou is None else f"IoU {iou:.2f}", fontsize=8, pad=2)
    for axis, name in zip(axes[:, 0], ["image", *models], strict=True):
        axis.set_ylabel("\n".join(textwrap.wrap(name, 20)), fontsize=8)
    explained = "green: true boxes, red: predicted at the threshold chosen on validation"
    figure.suptitle(explained, fontsize=8, y=1, va="top")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _show(axis: plt.Axes, image: np.ndarray, truth_N4: np.ndarray) -> None:
    axis.imshow(image)
    axis.set_xticks([])
    axis.set_yticks([])
    for box in truth_N4:
        _box(axis, box, TRUE)


def _box(axis: plt.Axes, box: np.ndarray, color: str) -> None:
    x0, y0, x1, y1 = (float(value) for value in box)
    axis.add_patch(Rectangle((x0, y0), x1 - x0 + 1, y1 - y0 + 1, fill=False, edgecolor=color, linewidth=1.5))
