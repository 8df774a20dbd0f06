"""What a training's time went to, how much of a GPU's memory it needed, and for how long the GPU had work.

Seconds are the host's, which is at most a step ahead of its GPU: what it waits for long, the GPU waits for too.
"""

import contextlib
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")
PARTS = STEPS, INPUT, VALIDATION, CHECKPOINTS = ("steps", "input", "validation", "checkpoints")
PEAK = "peak_gpu_bytes"
BUSY = "gpu_busy"
_EACH = 1.0  # seconds between two looks at whether a GPU is busy


@dataclass
class Used:
    """Seconds by what they went to, and how busy the GPU was at each look, since the last `take`."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)  # of the time just before a look, 0 to 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, a thread asks the driver once a second for how much of the time its GPU had work.

        The driver counts by itself, so neither GPU nor training waits for it. Nothing on a CPU.
        """
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), name="gpu-busy", daemon=True)
        if self.device.type == "cuda":
            watcher.start()
        try:
            yield
        finally:
            done.set()
            if watcher.is_alive():
                watcher.join()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(_EACH):
            try:
                self.shares.append(torch.cuda.utilization(self.device) / 100)
            except Exception:  # noqa: BLE001 - a driver that does not tell, a part of a GPU: nothing is known
                return

    @contextlib.contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Count what happens within as `what`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - started

    def waiting(self, items: Iterable[T], what: str = INPUT) -> Iterator[T]:
        """The `items`; the time until each is there counts as `what`."""
        source = iter(items)
        while True:
            with self.timing(what):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def take(self) -> dict[str, float]:
        """What was used since the last time: seconds, and on a GPU the most bytes that tensors had at once and, where
        NVML tells, the share of the time that it had work."""
        found = {what: round(seconds, 3) for what, seconds in self.seconds.items()}
        self.seconds.clear()
        if shares := self.shares[:]:
            found[BUSY] = round(statistics.fmean(shares), 3)
            del self.shares[: len(shares)]
        if self.device.type == "cuda":
            found[PEAK] = float(torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
        return found


def told(records: Sequence[Mapping[str, Any]]) -> str:
    """`Of 65 s of its training: 74 % steps, 3 % input, 20 % validation, 3 % checkpoints; 11.2 GB of a GPU at most; the
    GPU had work for 81 % of the time.`

    Of rank 0 of one training; empty without records.
    """
    uses = [record.get("used", {}) for record in records]
    seconds = [sum(used.get(what, 0.0) for what in PARTS) for used in uses]
    if not (whole := sum(seconds)):
        return ""
    spent = {what: sum(used.get(what, 0.0) for used in uses) for what in PARTS}
    shares = ", ".join(f"{100 * part / whole:.0f} % {what}" for what, part in spent.items())
    peak = max(used.get(PEAK, 0.0) for used in uses)
    memory = f"; {peak / 1e9:.1f} GB of a GPU at most" if peak else ""
    watched = [(used[BUSY], length) for used, length in zip(uses, seconds, strict=True) if BUSY in used]
    busy = f"; the GPU had work for {100 * _mean(watched):.0f} % of the time" if watched else ""
    return f"Of {whole:.0f} s of its training: {shares}{memory}{busy}."


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    """Of values and their weights."""
    return sum(value * weight for value, weight in weighted) / sum(weight for _, weight in weighted)
