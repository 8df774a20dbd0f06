"""Throughput and latency of `wsol serve` beside the bare forward of one image, over its port.

    python benchmarks/serve.py --backbone mobilenet_v2 --requests 200

The bare forward has its image in memory, one after the other, in a process with as many threads as the replica. Clients
ask again as soon as they are answered; their own work is on the same cores. Forward and server take turns, so that a
busy machine slows both: the ratio is the claim.
"""

import argparse
import os
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let others pass the server, and not the forward

import numpy as np
import torch
from localize import photographs, untrained

from wsol_pipeline.images import normalize
from wsol_pipeline.storage import Store
from wsol_pipeline.training import ray_internals
from wsol_pipeline.training.checkpoint import write_sealed
from wsol_pipeline.training.model import DESCRIPTION, WEIGHTS, assemble
from wsol_pipeline.use.options import ServeOptions
from wsol_pipeline.use.serve import serving

WARM_UP = 10  # requests, and forwards, before any is counted


def ask(address: str, data: bytes) -> float:
    """Seconds of a request."""
    started = time.perf_counter()
    request = urllib.request.Request(f"{address}/api/localize", data, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request) as answer:
        answer.read()
    return time.perf_counter() - started


def asked(address: str, images: list[bytes], clients: int, count: int) -> tuple[np.ndarray, float]:
    """Seconds of each of some requests by so many clients at once, and of all of them."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = list(pool.map(lambda data: ask(address, data), islice(cycle(images), count)))
    return np.array(seconds), time.perf_counter() - started


def forwards(method: torch.nn.Module, image_size: int, count: int) -> np.ndarray:
    """Seconds of each of some forward passes of one image."""
    seconds, image_BCHW = [], torch.randint(0, 256, (1, 3, image_size, image_size), dtype=torch.uint8)
    for _ in range(count):
        started = time.perf_counter()
        with torch.no_grad():
            method(normalize(image_BCHW))
        seconds.append(time.perf_counter() - started)
    return np.array(seconds)


def told(seconds: np.ndarray, whole: float) -> str:
    p50, p95 = 1000 * np.percentile(seconds, [50, 95])
    return f"{len(seconds) / whole:.1f} images/s, latency {p50:.0f} ms, p95 {p95:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    files = untrained(args.backbone, args.image_size)
    torch.set_num_threads(ray_internals.cores())
    method = assemble(files).method
    with tempfile.TemporaryDirectory() as temporary:
        photographs(Path(temporary), 32)
        images = [path.read_bytes() for path in sorted(Path(temporary).glob("*.jpg"))]
        model = Path(temporary) / "model"
        write_sealed(Store.at(model), {WEIGHTS: files.weights, DESCRIPTION: files.description})
        options = ServeOptions(model=str(model), port=args.port, batch_size=args.batch_size, device="cpu")
        with serving(options) as address:
            asked(address, images, 1, WARM_UP)
            forwards(method, args.image_size, WARM_UP)
            for number in range(args.rounds):
                for clients in args.clients:
                    alone = forwards(method, args.image_size, args.requests // 2)
                    seconds, whole = asked(address, images, clients, args.requests)
                    ratio = len(seconds) / whole * alone.sum() / len(alone)
                    print(
                        f"round {number}, {clients} clients: {told(seconds, whole)}; forward alone "
                        f"{told(alone, float(alone.sum()))}; ratio {ratio:.2f}; load {os.getloadavg()[0]:.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
