"""Top-k maps for every k from one pass, against one evaluation of the data per k.

    python benchmarks/readout.py

The peer does what the papers' code asks for when k is chosen: for each k a forward of the images and the mean over the
k best classes. Maps of both are compared. Rounds alternate, so that a busy machine slows both. The claim is a factor of
at least 30 for 200 classes. Prints a table and one line of JSON.
"""

import json
import statistics
import time

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import wsol_models
from wsol_models import LocalizationMethod
from wsol_models.readouts import readout


def one_pass(method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor) -> list[Tensor]:
    return [maps_BHW for _, maps_BHW in readout("topk").search(method, images_BCHW, classes_B)]


@torch.no_grad()
def pass_per_k(method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor) -> list[Tensor]:
    return [mean_of_best(method, images_BCHW, classes_B, k) for k in range(1, method.num_classes + 1)]


def mean_of_best(method: LocalizationMethod, images_BCHW: Tensor, classes_B: Tensor, k: int) -> Tensor:
    output = method(images_BCHW)
    best_Bk = output.logits_BK.topk(k).indices if k > 1 else classes_B[:, None]
    assert output.maps_BKHW is not None
    return output.maps_BKHW[torch.arange(len(best_Bk))[:, None], best_Bk].mean(1)


def main(
    backbone: str = "resnet18", size: int = 64, batch: int = 2, classes: int = 200, rounds: int = 3, threads: int = 2
) -> None:
    """size: pixels. batch: images. rounds: alternating rounds of both, each over all k."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    method = wsol_models.build("bas", backbone=backbone, num_classes=classes).eval()
    images_BCHW, classes_B = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
    one_pass(method, images_BCHW, classes_B)
    seconds: dict[str, list[float]] = {"one pass": [], "one pass per k": []}
    for _ in range(rounds):
        found = []
        for name, search in (("one pass", one_pass), ("one pass per k", pass_per_k)):
            start = time.perf_counter()
            found.append(search(method, images_BCHW, classes_B))
            seconds[name].append(time.perf_counter() - start)
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    factor = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    table = Table("search over k", "median seconds", title=f"BAS, {backbone}, {batch} x {size} px, {classes} classes")
    for name, values in seconds.items():
        table.add_row(name, f"{statistics.median(values):.3f}")
    table.add_row("factor (at least 30)", f"{factor:.1f}")
    Console().print(table)
    result = {"benchmark": "readout", "one_pass_s": statistics.median(seconds["one pass"])}
    result |= {"pass_per_k_s": statistics.median(seconds["one pass per k"]), "factor": factor}
    print(json.dumps(result | {"claim": "factor >= 30", "holds": factor >= 30, "threads": threads}))


if __name__ == "__main__":
    tyro.cli(main)
