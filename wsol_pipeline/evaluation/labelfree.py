"""Selectors that see images, labels and maps, and no box: what they find of a readout's settings and thresholds.

Each sees one image after the other (`see`), joins what it saw over batches and workers (`join`), and reads a curve of
it: a score for each threshold of its own grid, the higher the better (`curve`). The rest is as with boxes: `selection`
takes the best setting and threshold. Symbols as in docs/labels-only.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol_pipeline.device import to_device
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.behind import Behind
from wsol_pipeline.evaluation.contours import boxes_per_mask
from wsol_pipeline.evaluation.counts import Counts, ImageHits
from wsol_pipeline.evaluation.evaluate import (
    Step,
    nothing,
    open_parts,
    parts_on_host,
    read_maps,
    rows_for,
    walk,
)
from wsol_pipeline.evaluation.levels import level_image, num_masks
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import in_threads, in_units, plain
from wsol_pipeline.evaluation.otsu import OTSU, histogram, otsu_level, separability
from wsol_pipeline.evaluation.protocols import Protocol

LEAST_GAIN = 0.1  # of evidence, below which it abstains
EVIDENCE_GRID = np.arange(1, 20) / 20
KAPPA_GRID = np.arange(1, 40) / 40
SHIFTS = 5  # other images that an image's boxes are compared with, for agreement by chance
MOST_AREA = 0.8  # mean share of the image above which boxes agree because they are everything


class Curve(NamedTuple):
    """A score in 0..1 at each threshold, [T], and of each image if it is a mean over images, [n, T]."""

    thresholds: NDArray[np.float64]
    scores: NDArray[np.float64]
    of_images: NDArray[np.float64] | None = None


class Selector:
    """What every selector without boxes is. `score` names what it finds; `rule` is kept in the place of thresholds."""

    score: str
    rule: str = ""
    sees_maps_alone = False  # then the network goes on meanwhile

    def rows(self, rows: Any) -> Any:
        """The rows that it has to be shown: with photographs as they are stored, or as they are."""
        return rows

    def prepare(self, step: Step, method: nn.Module) -> Any:
        """What it needs of a batch, once for all settings."""

    def see(self, prepared: Any, step: Step, maps: Tensor, method: nn.Module, protocol: Protocol, fine: bool) -> Any:
        """What it keeps of a batch at one setting. `fine`: a single setting is seen, at all thresholds."""
        raise NotImplementedError

    def join(self, parts: Sequence[Any]) -> Any:
        """What it kept of all batches, in the order of rows."""
        return np.concatenate(parts)

    def curve(self, kept: Any) -> Curve:
        """Its score by threshold."""
        raise NotImplementedError

    def reason(self, value: float) -> str:
        """Why it abstains if this is the best that it found, percent; nothing if it does not."""
        return ""


@dataclass(frozen=True)
class Evidence(Selector):
    """The classifier: E = min(S_b / (S + 1e-8), 1) + share of the mask; S and S_b are the label's logit, if positive,
    of the image as it is and without the mask (BAS's image-specific threshold). The score is the gain 1 - E."""

    score = "evidence_gain"

    def prepare(self, step: Step, method: nn.Module) -> Any:
        return label_evidence(step.output.logits_BK, step.labels_B)

    def see(self, prepared: Any, step: Step, maps: Tensor, method: nn.Module, protocol: Protocol, fine: bool) -> Any:
        size_wh = int(step.images_BCHW.shape[3]), int(step.images_BCHW.shape[2])
        normalised = in_threads(lambda raw_HW: normalised_map(raw_HW, protocol, size_wh), plain(maps))
        maps_B1HW = to_device(torch.from_numpy(np.stack(normalised)), step.images_BCHW.device)[:, None]
        columns = []
        for threshold in evidence_grid(fine):
            mask_B1HW = maps_B1HW >= threshold
            with torch.no_grad():  # 0 is the mean colour of what the network takes
                without = method(step.images_BCHW.masked_fill(mask_B1HW, 0.0))
            rest_B = label_evidence(without.logits_BK, step.labels_B)
            columns.append(gains(prepared, rest_B, mask_B1HW.double().mean((1, 2, 3))))
        return torch.stack(columns, 1).cpu().numpy()

    def curve(self, kept: NDArray[np.float64]) -> Curve:
        seen_N = ~np.isnan(kept[:, 0])  # of the others the classifier has no evidence to lose
        scores_T = kept[seen_N].mean(0) if seen_N.any() else np.zeros(kept.shape[1])
        fine = kept.shape[1] == len(EVIDENCE_GRID)
        return Curve(evidence_grid(fine), scores_T, np.where(seen_N[:, None], kept, scores_T))

    def reason(self, value: float) -> str:
        if value >= 100 * LEAST_GAIN:
            return ""
        return f"the evidence gain is {value / 100:.3f}, under {LEAST_GAIN}: no mask holds what the class needs"


def evidence_grid(fine: bool) -> NDArray[np.float64]:
    """The thresholds that are tried, a forward each: 19, or six where many settings are compared."""
    return EVIDENCE_GRID if fine else EVIDENCE_GRID[1::3]


def label_evidence(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """S: the label's logit where it is positive, else 0, float64 [B]."""
    return logits_BK.gather(1, labels_B[:, None])[:, 0].double().relu()


def gains(evidence_B: Tensor, rest_B: Tensor, area_B: Tensor) -> Tensor:
    """1 - E, [B]: `evidence` S of the image, its `rest` S_b without the mask, whose share of the image is `area`.

    An empty mask has E = 1; not a number where there is no evidence that could be lost.
    """
    ratio_B = (rest_B / (evidence_B + 1e-8)).clamp(max=1.0)
    gain_B = 1 - (torch.where(area_B > 0, ratio_B, 1.0) + area_B)
    return torch.where(evidence_B > 0, gain_B, torch.nan)


@dataclass(frozen=True)
class Otsu(Selector):
    """Each map's own threshold. The score is the share of the values' variance that lies between both groups."""

    score = "separability"
    rule = OTSU
    sees_maps_alone = True

    def see(self, prepared: Any, step: Step, maps: Tensor, method: nn.Module, protocol: Protocol, fine: bool) -> Any:
        def cut(raw_HW: NDArray[Any], size_wh: Any) -> tuple[float, float]:
            pixels = histogram(normalised_map(raw_HW, protocol, size_wh))
            level = otsu_level(pixels)
            return (np.nan, np.nan) if level is None else (level / 255, separability(pixels))

        return np.array(in_threads(cut, plain(maps), step.batch.sizes_B2))

    def curve(self, kept: NDArray[np.float64]) -> Curve:
        cut_N2 = kept[~np.isnan(kept[:, 0])]
        if not len(cut_N2):
            return Curve(np.zeros(1), np.zeros(1))
        return Curve(np.array([lower_median(cut_N2[:, 0])]), cut_N2[:, 1:].mean(0))

    def reason(self, value: float) -> str:
        return "" if value else "every map is flat"


def lower_median(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The median; of an even number of values the lower of the middle ones."""
    return float(np.sort(values)[(len(values) - 1) // 2])


@dataclass(frozen=True)
class Area(Selector):
    """A guess of the mean share of the image that a box takes. The score is 1 minus the distance to it."""

    share: float
    score = "area_agreement"
    sees_maps_alone = True

    def see(self, prepared: Any, step: Step, maps: Tensor, method: nn.Module, protocol: Protocol, fine: bool) -> Any:
        def share(raw_HW: NDArray[Any], size_wh: Any) -> NDArray[np.float64]:
            return area_shares(raw_HW, protocol, size_wh)[0]

        shares = in_threads(share, plain(maps), step.batch.sizes_B2)
        return protocol.thresholds, np.sum(shares, axis=0), len(shares)  # sums: a thousand numbers of each are many

    def join(self, parts: Sequence[Any]) -> Any:
        grid, sums, counts = zip(*parts, strict=True)
        return grid[0], sum(sums), sum(counts)

    def curve(self, kept: Any) -> Curve:
        grid_T, sums_T, images = kept
        return Curve(grid_T, nearest_area(sums_T / images, self.share))


def nearest_area(areas_T: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """How near each mean area is to a share of the image, 1 where it is equal."""
    return 1 - np.abs(areas_T - share)


def area_shares(
    raw_HW: NDArray[Any], protocol: Protocol, size_wh: Any
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The share of the image that the largest box takes at each threshold, [T], and that box, [T, 4]."""
    levels_HW, mask_of_threshold = level_image(normalised_map(raw_HW, protocol, size_wh), protocol)
    boxes_T4 = boxes_per_mask(levels_HW, num_masks(protocol), protocol.box_rule)[mask_of_threshold]
    return (boxes_T4[:, 2:] - boxes_T4[:, :2] + 1).prod(1) / levels_HW.size, boxes_T4


class Other(NamedTuple):
    """A finished model of another method, as it is read."""

    method: nn.Module
    readout: Any
    setting: Any


@dataclass(frozen=True)
class Consensus(Selector):
    """Agreement with another method beyond chance: κ = (P_o - P_e) / (1 - P_e) of the boxes' IoUs, P_e with boxes of
    other images. The score of a threshold is κ at the best one of the other model."""

    other: Other
    score = "consensus_kappa"

    def rows(self, rows: Any) -> Any:
        return rows_for(self.other.readout, rows)

    def prepare(self, step: Step, method: nn.Module) -> Any:
        return self.other

    def see(self, prepared: Any, step: Step, maps: Tensor, method: nn.Module, protocol: Protocol, fine: bool) -> Any:
        theirs = read_maps(
            self.other.method, self.other.readout, step.batch, step.batch.labels_B, self.other.setting, protocol,
            device=step.images_BCHW.device,
        )  # fmt: skip
        at = [int(np.abs(protocol.thresholds - threshold).argmin()) for threshold in KAPPA_GRID]

        def boxes(raw_HW: NDArray[Any], size_wh: Any) -> NDArray[np.float32]:
            shares_T, boxes_T4 = area_shares(raw_HW, protocol, size_wh)
            return np.column_stack([boxes_T4[at], shares_T[at]]).astype(np.float32)

        sizes = step.batch.sizes_B2
        return np.stack([np.stack(in_threads(boxes, plain(of), sizes)) for of in (maps, theirs)], axis=1)

    def curve(self, kept: NDArray[np.float32]) -> Curve:
        mine, theirs = kept[:, 0].astype(np.float64), kept[:, 1].astype(np.float64)
        kappa_TT = kappa(mine[..., :4], theirs[..., :4])
        kappa_TT[mine[..., 4].mean(0) > MOST_AREA] = -1
        kappa_TT[:, theirs[..., 4].mean(0) > MOST_AREA] = -1
        return Curve(KAPPA_GRID, kappa_TT.max(1))

    def reason(self, value: float) -> str:
        return "" if value > 0 else "both models agree no more than chance would have it"


def kappa(mine_NT4: NDArray[np.float64], theirs_NT4: NDArray[np.float64]) -> NDArray[np.float64]:
    """κ of two models' boxes at each pair of thresholds, float64 [T, T']; 0 where boxes of other images agree wholly.

    Agreement by chance is with the boxes of the next `SHIFTS` images.
    """
    shifts = range(1, min(SHIFTS, len(mine_NT4) - 1) + 1)
    observed_TT = mean_ious(mine_NT4, theirs_NT4)
    if not shifts:
        return np.zeros_like(observed_TT)
    chance_TT = np.mean([mean_ious(mine_NT4, np.roll(theirs_NT4, -k, axis=0)) for k in shifts], axis=0)
    return beyond_chance(observed_TT, chance_TT)


def beyond_chance(observed: Any, chance: Any) -> NDArray[np.float64]:
    """(P_o - P_e) / (1 - P_e), 0 where P_e is 1."""
    observed, chance = np.asarray(observed, np.float64), np.asarray(chance, np.float64)
    return np.divide(observed - chance, 1 - chance, out=np.zeros(observed.shape), where=chance < 1)


def mean_ious(mine_NT4: NDArray[np.float64], theirs_NT4: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over images of the IoU at each pair of thresholds, [T, T']; maxima inclusive, as where they count."""
    sums_TT = np.zeros((mine_NT4.shape[1], theirs_NT4.shape[1]))
    for mine_T4, theirs_T4 in zip(mine_NT4, theirs_NT4, strict=True):
        low_TT2 = np.maximum(mine_T4[:, None, :2], theirs_T4[None, :, :2])
        high_TT2 = np.minimum(mine_T4[:, None, 2:], theirs_T4[None, :, 2:])
        common_TT = np.maximum(high_TT2 - low_TT2 + 1, 0).prod(-1)
        mine_T, theirs_T = ((of[:, 2:] - of[:, :2] + 1).prod(-1) for of in (mine_T4, theirs_T4))
        sums_TT += common_TT / (mine_T[:, None] + theirs_T[None] - common_TT)
    return sums_TT / len(mine_NT4)


@dataclass(frozen=True)
class Vote(Selector):
    """The median of several selectors' thresholds. The score is 1 minus their range."""

    voters: tuple[Selector, ...]
    score = "vote_agreement"

    def rows(self, rows: Any) -> Any:
        for voter in self.voters:
            rows = voter.rows(rows)
        return rows

    def prepare(self, step: Step, method: nn.Module) -> Any:
        return [voter.prepare(step, method) for voter in self.voters]

    def see(self, prepared: Any, step: Step, maps: Tensor, method: nn.Module, protocol: Protocol, fine: bool) -> Any:
        pairs = zip(self.voters, prepared, strict=True)
        return [voter.see(of, step, maps, method, protocol, fine) for voter, of in pairs]

    def join(self, parts: Sequence[Any]) -> Any:
        return [voter.join(of) for voter, of in zip(self.voters, zip(*parts, strict=True), strict=True)]

    def curve(self, kept: Any) -> Curve:
        curves = [voter.curve(of) for voter, of in zip(self.voters, kept, strict=True)]
        votes = [float(found.thresholds[found.scores.argmax()]) for found in curves]
        return Curve(np.array([lower_median(votes)]), np.array([1 - (max(votes) - min(votes))]))


NO_MASKS = (
    "own-mask needs maps that are masks already but these have values; --readout bcam --readout-options modes "
    """'["mask"]' cuts its own."""
)


@dataclass(frozen=True)
class OwnMask(Selector):
    """Masks that a readout cuts itself (B-CAM's S > B): there is no threshold. The score is the share of images with
    one."""

    score = "masked_images"
    sees_maps_alone = True

    def see(self, prepared: Any, step: Step, maps: Tensor, method: nn.Module, protocol: Protocol, fine: bool) -> Any:
        if maps.ndim == 3 and maps.dtype != torch.bool:
            raise UsageError(NO_MASKS)
        return np.array([[normalised_map(raw, protocol).any()] for raw in plain(maps)], np.float64)

    def curve(self, kept: NDArray[np.float64]) -> Curve:
        return Curve(np.zeros(1), kept.mean(0))


class Observed(NamedTuple):
    """What a selector saw of some images, joined over batches: of each setting what it keeps."""

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    ranks: NDArray[np.int64]
    kept: tuple[Any, ...]


def observe(
    selector: Selector,
    method: nn.Module,
    readout: Any,
    rows: Any,
    protocol: Protocol,
    *,
    settings: Sequence[Any],
    device: torch.device | str = "cpu",
    fine: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Observed:
    """Show a selector `rows` of labels alone, through a method at the given settings."""
    ids: list[str] = []
    labels: list[int] = []
    ranks: list[Any] = []
    seen: list[list[Any]] = [[] for _ in settings]

    def look(step: Step, prepared: Any, indices: list[int], arrived: Callable[[], list[Tensor]]) -> None:
        ranks_B, *maps = arrived()
        if 0 in indices:
            ranks.append(ranks_B.numpy())
        for index, maps_BHW in zip(indices, maps, strict=True):
            seen[index].append(selector.see(prepared, step, maps_BHW, method, protocol, fine))

    with Behind(open_parts(device) if selector.sees_maps_alone else 0) as behind:
        for step in walk(method, readout, selector.rows(rows), protocol, settings=settings, device=device):
            prepared = selector.prepare(step, method)
            for indices, arrived in parts_on_host(step, device):
                behind.add(partial(look, step._replace(output=None), prepared, indices, arrived))
            ids += step.batch.ids
            labels += step.batch.labels_B.tolist()
            if on_batch:
                behind.add(nothing, after=partial(on_batch, step.num_images))
    kept = tuple(selector.join(parts) if parts else None for parts in seen)  # a rank may have had no rows
    return Observed(tuple(ids), np.array(labels, np.int64), np.concatenate([*ranks, np.empty(0, np.int64)]), kept)


def concluded(
    selector: Selector, name: str, parts: Sequence[Observed], protocol: Protocol, settings: Sequence[Any], fine: bool
) -> Counts:
    """What a selector found in all `parts` of the rows, as counts without hits: its score by setting and threshold.

    Ranks of the true class are counted as ever. `fine`: of single images too.
    """
    some = [part for part in parts if part.ids]
    curves = [selector.curve(selector.join([part.kept[s] for part in some])) for s in range(len(settings))]
    ranks_N = np.concatenate([part.ranks for part in some])
    images, everyone = len(ranks_N), np.ones(len(settings), np.int64)
    nothing = np.zeros((len(settings), 0, len(curves[0].thresholds)), np.int64)
    hits = None
    if fine and curves[0].of_images is not None:
        ids, labels = sum((part.ids for part in some), ()), np.concatenate([part.labels for part in some])
        hits = ImageHits(ids, labels, np.zeros((images, 0, 0), np.uint8), ranks_N, scores=curves[0].of_images)
    return Counts(
        protocol.name, tuple(settings), (), curves[0].thresholds, nothing, nothing, nothing,
        everyone * int((ranks_N < 1).sum()), everyone * int((ranks_N < 5).sum()), everyone * images, hits,
        scores=in_units(np.stack([found.scores for found in curves]) * images), score=selector.score, truth=name,
    )  # fmt: skip
