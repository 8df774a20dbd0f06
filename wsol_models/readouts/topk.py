"""Top-k: the mean of a method's own maps over the k highest scored classes (BAS, https://arxiv.org/abs/2112.00580).

k = 1 is the map of the class handed in (the papers: the true one); from k = 2 on the classes are the predicted ones,
the class handed in among them or not, as in the papers' code. k = K is the mean of all maps.

All k cost one forward: the maps sorted by score are summed up class by class, and after k classes the sum over k is a
setting's map. Sums are in float64, so a map does not depend on whether a search or a single read made it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol_models._layers import LocalizationMethod, Output, at_least_float32
from wsol_models.readouts import LocalizationReadout, Setting, forward, require


@dataclass(frozen=True)
class Readout(LocalizationReadout):
    """One setting per k. ks: numbers of classes to average over; default all from 1 to K."""

    ks: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.ks is not None and (not self.ks or min(self.ks) < 1):
            raise ValueError(f"ks must be one or more numbers of classes >= 1 but is {self.ks}.")

    def settings(self, method: LocalizationMethod) -> list[Setting]:
        require("topk", "own maps", method)
        ks = sorted(set(self.ks)) if self.ks else range(1, method.num_classes + 1)
        return [check_k(k, method.num_classes) for k in ks]

    def check(self, method: LocalizationMethod, setting: Setting) -> None:
        """A single read takes any k, among `ks` or not."""
        require("topk", "own maps", method)
        check_k(setting, method.num_classes)

    def passes(
        self,
        method: LocalizationMethod,
        images_BCHW: Tensor,
        classes_B: Tensor,
        settings: Sequence[Setting],
        output: Output | None,
    ) -> tuple[Tensor, Tensor]:
        """The maps of all classes, and the classes by score."""
        output = output or forward(method, images_BCHW)
        return own_maps(output), by_score(output.logits_BK)

    def read(self, passes: tuple[Tensor, Tensor], classes_B: Tensor, setting: Setting) -> Tensor:
        maps_BKHW, order_BK = passes
        if setting == 1:
            return at_least_float32(maps_BKHW[rows(maps_BKHW), classes_B])
        top_Bk = order_BK[:, : check_k(setting, maps_BKHW.shape[1])]
        return maps_BKHW[rows(maps_BKHW)[:, None], top_Bk].mean(1, dtype=torch.float64).to(map_type(maps_BKHW))

    def coarse_search(
        self, method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor, output: Output | None = None
    ) -> Iterator[tuple[Setting, Tensor]]:
        wanted = [k for k in self.settings(method) if isinstance(k, int)]
        passes = self.passes(method, images_BCHW, classes_B, wanted, output)
        if wanted[0] == 1:
            yield 1, self.read(passes, classes_B, 1)
        maps_BKHW, order_BK = passes
        total_BHW = torch.zeros_like(maps_BKHW[:, 0], dtype=torch.float64)
        for k in range(1, wanted[-1] + 1):
            total_BHW += maps_BKHW[rows(maps_BKHW), order_BK[:, k - 1]]
            if k > 1 and k in wanted:
                yield k, (total_BHW / k).to(map_type(maps_BKHW))


def by_score(logits_BK: Tensor) -> Tensor:
    """Classes from the highest logit to the lowest; of equal ones the lower index comes first."""
    return logits_BK.argsort(dim=1, descending=True, stable=True)


def rows(maps_BKHW: Tensor) -> Tensor:
    return torch.arange(maps_BKHW.shape[0], device=maps_BKHW.device)


def map_type(maps_BKHW: Tensor) -> torch.dtype:
    return torch.promote_types(maps_BKHW.dtype, torch.float32)


def own_maps(output: Output) -> Tensor:
    if output.maps_BKHW is None:
        raise ValueError("The output handed in holds no maps: it was made in training mode with targets.")
    return output.maps_BKHW.detach()


def check_k(k: Setting, num_classes: int) -> int:
    """`k` as a number of classes. Raises `ValueError` if there are not so many."""
    if not isinstance(k, int) or not 1 <= k <= num_classes:
        raise ValueError(f"k must be a whole number from 1 to the {num_classes} classes but is {k!r}.")
    return k
