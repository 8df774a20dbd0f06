"""A training step by TorchInductor's kernels (`--compile`) against the eager one, of CAM and of BAS.

    python benchmarks/step_compiled.py
    python benchmarks/step_compiled.py --threads 2 --size 112

Same weights, same images, equal losses (checked, to float32). Pairs of steps alternate in order, so that a busy machine
slows both; what is compared is CPU time. The first step, which makes the kernels, is on the clock and apart. No claim:
Inductor is for GPUs, where `gpu_check.py` measures it. Prints a table and one line of JSON.
"""

import copy
import json
import os
import statistics
import tempfile
import time

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import wsol_models
from wsol_pipeline.training.compiling import compiled

METHODS = ("cam", "bas")


def step(name: str, method: wsol_models.LocalizationMethod, model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """One forward and backward of `model`, which is the `method`; the loss."""
    method.zero_grad(set_to_none=True)
    terms = wsol_models.method_module(name).losses(model(*batch), method.config)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    return loss.item()


def measured(name: str, backbone: str, batch: tuple[Tensor, Tensor], classes: int, pairs: int) -> dict[str, float]:
    """Seconds of the first compiled step on the clock; CPU seconds of an eager one, of a compiled one, and their
    ratio: medians over pairs."""
    eager = wsol_models.build(name, backbone=backbone, num_classes=classes)
    made = copy.deepcopy(eager)
    steps = {"eager": (eager, eager), "compiled": (made, compiled(made, made, torch.device("cpu")))}
    start, losses = time.perf_counter(), [step(name, *steps["compiled"], batch)]
    first = time.perf_counter() - start
    losses.append(step(name, *steps["eager"], batch))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for pair in range(pairs):
        for kind in sorted(steps, reverse=bool(pair % 2)):
            start = time.process_time()
            step(name, *steps[kind], batch)
            seconds[kind].append(time.process_time() - start)
    ratio = statistics.median(a / b for a, b in zip(seconds["compiled"], seconds["eager"], strict=True))
    return {"first_s": first, **{kind: statistics.median(found) for kind, found in seconds.items()}, "ratio": ratio}


def main(
    backbone: str = "resnet50", size: int = 64, batch: int = 8, classes: int = 200, pairs: int = 7, threads: int = 1
) -> None:
    """size: pixels. batch: images. pairs: of steps, in turn."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images_BCHW, targets_B = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
    table = Table("method", "first step, s", "eager, CPU s", "compiled, CPU s", "ratio",
                  title=f"{backbone}, {batch} x {size} px, {classes} classes, {threads} thread(s)")  # fmt: skip
    result: dict[str, object] = {"benchmark": "step_compiled", "backbone": backbone, "threads": threads}
    with tempfile.TemporaryDirectory() as kernels:  # of an earlier run there would be nothing to make
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = kernels
        for name in METHODS:
            found = measured(name, backbone, (images_BCHW, targets_B), classes, pairs)
            table.add_row(name, *(f"{value:.3f}" for value in found.values()))
            result[name] = found
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    tyro.cli(main)
