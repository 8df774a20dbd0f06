"""A BAS training step against a straightforward one whose masked pass backpropagates to the weights too.

    python benchmarks/step.py
    python benchmarks/step.py --backbone vgg16

Same modules, same images, equal losses (checked). The straightforward step makes the maps of all classes and runs the
masked features through the live layers; ours makes the target's map only and runs them through constant ones
(`wsol_models/_layers.py: detached_call`). Pairs of steps alternate, so that a busy machine slows both. The claim is a
ratio of at most 0.8, on VGG16 0.9. Prints a table and one line of JSON.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import wsol_models
from wsol_models import bas

CLAIMS = {"vgg16": 0.9}  # of other networks 0.8
Step = Callable[[bas.Method, Tensor, Tensor], bas.TrainingOutput]


def ours(method: bas.Method, images_BCHW: Tensor, targets_B: Tensor) -> bas.TrainingOutput:
    output = method(images_BCHW, targets_B)
    assert isinstance(output, bas.TrainingOutput)
    return output


def straightforward(method: bas.Method, images_BCHW: Tensor, targets_B: Tensor) -> bas.TrainingOutput:
    features_BCHW, _ = method.F1(images_BCHW)
    maps_BKHW = torch.sigmoid(method.classifier_loc(features_BCHW))
    foreground_BHW = maps_BKHW[torch.arange(len(targets_B)), targets_B]
    hidden_BCHW, class_maps_BKHW = method.classifier_cls(method.F2(features_BCHW)[0])
    background_BCHW = features_BCHW.detach() * (1 - foreground_BHW[:, None])
    _, background_maps_BKHW = method.classifier_cls(method.F2(background_BCHW)[0])
    return bas.TrainingOutput(
        class_maps_BKHW.mean((2, 3)),
        hidden_BCHW,
        targets=targets_B,
        classes_B=targets_B,
        class_maps_BKHW=class_maps_BKHW,
        foreground_BHW=foreground_BHW,
        background_logits_BK=background_maps_BKHW.mean((2, 3)),
    )


def train_step(step: Step, method: bas.Method, images_BCHW: Tensor, targets_B: Tensor) -> dict[str, float]:
    """One forward and backward; the values of the loss terms."""
    method.zero_grad(set_to_none=True)
    terms = bas.losses(step(method, images_BCHW, targets_B), method.config)
    torch.stack(list(terms.values())).sum().backward()
    return {name: term.item() for name, term in terms.items()}


def timed(step: Step, method: bas.Method, images_BCHW: Tensor, targets_B: Tensor) -> float:
    start = time.perf_counter()
    train_step(step, method, images_BCHW, targets_B)
    return time.perf_counter() - start


def require_equal_losses(method: bas.Method, images_BCHW: Tensor, targets_B: Tensor) -> None:
    """Both steps from the same state; also the warm-up."""
    terms = [train_step(step, copy.deepcopy(method), images_BCHW, targets_B) for step in (ours, straightforward)]
    for name, value in terms[0].items():
        torch.testing.assert_close(value, terms[1][name], rtol=1e-4, atol=1e-5)


def main(
    backbone: str = "resnet50", size: int = 112, batch: int = 8, classes: int = 200, pairs: int = 7, threads: int = 2
) -> None:
    """size: pixels. batch: images. pairs: alternating pairs of steps."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    method = wsol_models.build("bas", backbone=backbone, num_classes=classes)
    assert isinstance(method, bas.Method)
    images_BCHW, targets_B = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
    require_equal_losses(method, images_BCHW, targets_B)
    seconds = [[timed(step, method, images_BCHW, targets_B) for step in (ours, straightforward)] for _ in range(pairs)]
    ours_s, straightforward_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(a / b for a, b in seconds)
    table = Table("step", "median seconds", title=f"BAS, {backbone}, {batch} x {size} px, {classes} classes")
    table.add_row("ours", f"{ours_s:.3f}")
    table.add_row("straightforward", f"{straightforward_s:.3f}")
    claim = CLAIMS.get(backbone, 0.8)
    table.add_row(f"ratio (at most {claim})", f"{ratio:.3f}")
    Console().print(table)
    result = {"benchmark": "step", "backbone": backbone, "ours_s": ours_s, "straightforward_s": straightforward_s}
    judged = {"ratio": ratio, "claim": f"ratio <= {claim}", "holds": ratio <= claim, "threads": threads}
    print(json.dumps(result | judged))


if __name__ == "__main__":
    tyro.cli(main)
