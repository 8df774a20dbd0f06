"""What a study may spend: when to start no more trials. Those that run are finished."""

import time
from dataclasses import dataclass, field

from wsol_pipeline.training.config import require


@dataclass(frozen=True)
class Budget:
    """Limits in hours; None: no limit. The clock of `time_budget` runs from here on, for this command alone."""

    max_device_hours: float | None = None
    time_budget: float | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for name in ("max_device_hours", "time_budget"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive hours", value)

    def spent(self, device_seconds: float) -> str:
        """Which limit is reached, in words; empty while there is something left."""
        hours, passed = device_seconds / 3600, (time.monotonic() - self.started) / 3600
        if self.max_device_hours is not None and hours >= self.max_device_hours:
            return f"{hours:.3g} device hours are spent, of --max-device-hours {self.max_device_hours:g}"
        if self.time_budget is not None and passed >= self.time_budget:
            return f"{passed:.3g} hours have passed, of --time-budget {self.time_budget:g}"
        return ""
