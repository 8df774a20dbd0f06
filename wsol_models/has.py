"""HaS: hide-and-seek.

Singh and Lee, Hide-and-Seek: Forcing a Network to be Meticulous for Weakly-supervised Object and Action Localization,
ICCV 2017, https://arxiv.org/abs/1704.04232

A classifier finds the most telling part of an object and is done. With random cells of every training image hidden that
part is often missing, so the network has to know the others as well. Nothing is hidden in evaluation.

As in https://github.com/clovaai/wsolevaluation a cell is `grid_size` pixels a side (the paper counts cells) and what is
hidden is 0 after normalisation, the mean colour. Which cells is drawn for each image by its name, where the training
loop tells it (`begin_step`): then no draw depends on which worker has the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from wsol_models import cam
from wsol_models._layers import Output, require_share, sent


@dataclass(frozen=True)
class Config(cam.Config):
    """grid_size: pixels of a cell's side; the last cells of a row or column are cut. drop_rate: share of hidden cells.

    The benchmark's defaults; tuned for ResNet50 on CUB: 120 and .66.
    """

    grid_size: int = 4
    drop_rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(drop_rate=self.drop_rate)
        if self.grid_size < 1:
            raise ValueError(f"grid_size must be at least 1 pixel but is {self.grid_size}.")


class Method(cam.Method):
    """CAM of images with cells hidden."""

    config: Config

    def forward(self, images_BCHW: Tensor, targets: Tensor | None = None, *, taps: Sequence[str] = ()) -> Output:
        """As CAM's; in training of images with cells hidden."""
        if self.training:
            count, _, *sides = images_BCHW.shape
            cells = [-(-side // self.config.grid_size) for side in sides]
            images_BCHW = hide_cells(images_BCHW, self.draw(count, *cells), self.config)
        return super().forward(images_BCHW, targets, taps=taps)


def hide_cells(images_BCHW: Tensor, draws_BRS: Tensor, config: Config) -> Tensor:
    """The images with 0 in every cell whose number is not above the drop rate; R rows and S columns of cells."""
    height, width = images_BCHW.shape[2:]
    hidden_BRS = sent(draws_BRS, images_BCHW.device) <= config.drop_rate
    hidden_BHW = hidden_BRS.repeat_interleave(config.grid_size, 1).repeat_interleave(config.grid_size, 2)
    return images_BCHW.masked_fill(hidden_BHW[:, None, :height, :width], 0)


losses = cam.losses
