"""What each station from maps to masks costs, on one photograph at a time and beside a peer in the same run.

    python benchmarks/segmentation.py

seeds: maps of four scales and their mirrors, against the bare forwards of these very views. walk: IRN's random walk at
stride 4, against the same matrix, sparse, multiplied by PyTorch as often; their results are compared. pamr: at stride 4
against the image's size. crf: the exact field on every s-th pixel against pydensecrf2 on all, if that is installed.
crops: photographs decoded, scaled and cut by one thread, against the training step of the network that they feed. Turns
alternate, so that a busy machine slows both; CPU seconds. Prints a table and one line of JSON.
"""

import io
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import wsol_models
from wsol_models.segmentation import build, crf, pamr
from wsol_models.segmentation.networks import total
from wsol_models.segmentation.walk import affinity, directions, random_walk
from wsol_pipeline.data.images import decode
from wsol_pipeline.errors import UsageError
from wsol_pipeline.images import normalize
from wsol_pipeline.segmentation import fields
from wsol_pipeline.segmentation.crops import Cropping, crop
from wsol_pipeline.segmentation.seeds import scaled, strided
from wsol_pipeline.segmentation.views import SCALES, class_maps

HEIGHT, WIDTH = 375, 500
CLASSES = torch.tensor([0, 3])  # of the photograph
Work = Callable[[], object]
Pair = tuple[Work, Work | None, int]  # a station, its peer, and the images that each call of them takes


def photograph() -> np.ndarray:
    """uint8 [H, W, 3], blurred noise: it decodes as a photograph does."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def seeds(image_HW3: np.ndarray, backbone: str) -> Pair:
    method = wsol_models.build("bas", backbone=backbone, num_classes=20, segmentation=True).eval()
    image_CHW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)
    views = [_view(image_CHW, scaled((HEIGHT, WIDTH), scale)) for scale in SCALES]

    @torch.no_grad()
    def forwards() -> None:
        for view_BCHW in views:
            method(view_BCHW)

    return lambda: class_maps(method, image_HW3, CLASSES), forwards, 1


def _view(image_CHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
    one = torch.nn.functional.interpolate(image_CHW[None].float(), list(size_HW)).to(torch.uint8)
    return normalize(torch.cat([one, one.flip(-1)]))


def walk() -> Pair:
    torch.manual_seed(0)
    size = strided((HEIGHT, WIDTH))
    boundary_HW, maps_CHW = torch.rand(size, dtype=torch.float64) ** 4, torch.rand(2, *size, dtype=torch.float64)

    def sparse() -> Tensor:
        transition = _transition(boundary_HW)
        scores_NC = (maps_CHW * (1 - boundary_HW)).flatten(1).T.contiguous()
        for _ in range(2**8):
            scores_NC = transition @ scores_NC
        return scores_NC.T.view_as(maps_CHW)

    torch.testing.assert_close(random_walk(maps_CHW, boundary_HW), sparse(), rtol=1e-9, atol=1e-12)
    return lambda: random_walk(maps_CHW, boundary_HW), sparse, 1


def _transition(boundary_HW: Tensor, beta: float = 10) -> Tensor:
    """The walk's matrix, transposed: rows over the sums of columns, which are those of its symmetric part."""
    number_HW = torch.arange(boundary_HW.numel()).view(boundary_HW.shape)
    height, width = boundary_HW.shape
    rows, columns, values = [number_HW.flatten()], [number_HW.flatten()], [torch.ones_like(boundary_HW).flatten()]
    for dy, dx in directions(5):
        left, right = max(-dx, 0), max(dx, 0)
        source = number_HW[: height - dy, left : width - right].flatten()
        end = number_HW[dy:, right : width - left].flatten()
        weight = (affinity(boundary_HW, (dy, dx)) ** beta).flatten()
        rows, columns, values = [*rows, source, end], [*columns, end, source], [*values, weight, weight]
    places_2E, values_E = torch.stack([torch.cat(rows), torch.cat(columns)]), torch.cat(values)
    symmetric = torch.sparse_coo_tensor(places_2E, values_E).coalesce()
    sums_N = symmetric @ torch.ones(boundary_HW.numel(), 1, dtype=boundary_HW.dtype)
    over = torch.sparse_coo_tensor(symmetric.indices(), symmetric.values() / sums_N[symmetric.indices()[0], 0])
    return over.coalesce().to_sparse_csr()


def adapt(image_HW3: np.ndarray) -> Pair:
    image_CHW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1).float() / 255
    small_CHW = torch.nn.functional.interpolate(image_CHW[None], list(strided((HEIGHT, WIDTH))))[0]
    maps_CHW = torch.rand(2, HEIGHT, WIDTH)
    few_CHW = torch.rand(2, *small_CHW.shape[1:])
    return lambda: pamr.refine(few_CHW, small_CHW), lambda: pamr.refine(maps_CHW, image_CHW), 1


def field(image_HW3: np.ndarray) -> Pair:
    unary_LHW = crf.unary_of_scores(torch.rand(3, HEIGHT, WIDTH))
    try:
        fields.require_library()
    except UsageError:
        peer = None
    else:
        peer = lambda: fields.inferred("library", unary_LHW, image_HW3, crf.REFINE)  # noqa: E731
    return lambda: fields.inferred("exact", unary_LHW, image_HW3, crf.REFINE), peer, 1


def crops(image_HW3: np.ndarray, network: str, batch: int) -> Pair:
    """Crops beside the training step of `batch` of them."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "JPEG", quality=90)
    labels_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    model = build(network, 20, None).train()
    how, rng = Cropping(model.entry.crop), np.random.default_rng(0)
    images_BCHW = torch.randn(batch, 3, how.side, how.side)
    labels_BHW = torch.randint(0, 21, images_BCHW[:, 0].shape, dtype=torch.uint8)

    def cut() -> None:
        for _ in range(batch):
            crop(decode(buffer.getvalue()).permute(1, 2, 0).numpy(), labels_HW, how, rng)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        total(model.losses(model(images_BCHW), labels_BHW), model.is_multi_scale).backward()

    return cut, step, batch


def turns(pair: Pair, rounds: int) -> tuple[float, float | None]:
    """Median CPU seconds an image of a station and of its peer."""
    work, peer, images = pair
    spent: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for which, call in enumerate((work, peer)):
            began = time.process_time()
            if call is not None:
                call()
            if number:  # the first warms up
                spent[which].append((time.process_time() - began) / images)
    return statistics.median(spent[0]), statistics.median(spent[1]) if peer else None


def main(
    backbone: str = "mobilenet_v2", network: str = "lraspp_mobilenet_v2", batch: int = 4, rounds: int = 3,
    threads: int = 1,
) -> None:  # fmt: skip
    """backbone: of the seeds. network: that is trained, on `batch` crops a step."""
    torch.set_num_threads(threads)
    image_HW3 = photograph()
    stations = {
        "seeds / bare forwards": seeds(image_HW3, backbone), "walk / sparse matrix": walk(),
        "pamr at stride 4 / of all pixels": adapt(image_HW3), "crf, exact / pydensecrf2": field(image_HW3),
        f"crops / steps of {network}": crops(image_HW3, network, batch),
    }  # fmt: skip
    table = Table("station / peer", "images/s of a core", "peer", "peer's time over it", title=f"{WIDTH}x{HEIGHT}")
    result: dict[str, object] = {"benchmark": "segmentation", "threads": threads}
    for name, pair in stations.items():
        own, peer = turns(pair, rounds)
        told = (f"{1 / peer:.2f}", f"{peer / own:.2f}") if peer else ("not installed", "")
        table.add_row(name, f"{1 / own:.2f}", *told)
        result[name] = {"seconds": own, "peer_seconds": peer}
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    tyro.cli(main)
