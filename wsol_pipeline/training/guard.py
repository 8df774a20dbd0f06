"""What keeps the optimizer from moving on a gradient that is not finite."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsol_pipeline.device import to_host
from wsol_pipeline.errors import WsolError


class NonFiniteError(WsolError):
    """A loss or gradient is NaN or infinite; the optimizer has not moved."""


@dataclass
class Guard:
    """The steps of an optimizer, none of them on a gradient whose norm is not finite.

    A host that looks at each norm before the step waits for the device, which then idles until it is told what is next.
    A fused optimizer looks at a flag on the device itself: from the first such gradient on it stands still, and the
    host reads the flag of a step once it has issued the next one. All workers of a step see the same norm.
    """

    optimizer: torch.optim.SGD
    _found: Tensor | None = field(default=None, init=False)
    _flag: Callable[[], list[Tensor]] | None = field(default=None, init=False)
    _message: Callable[[], str] = field(default=str, init=False)
    _begun: bool = field(default=False, init=False)

    def step(self, norm: Tensor, message: Callable[[], str]) -> None:
        """Move the optimizer if `norm`, over all gradients, is finite.

        Raises `NonFiniteError` with what `message` gives if it is not, or with that of the step before.
        """
        bad = ~torch.isfinite(norm)
        if not self._reads_flags:
            _require_finite(bad, message)
            self.optimizer.step()
            self._begun = True
            return
        self._found = bad.float() if self._found is None else torch.maximum(self._found, bad.float())
        self.optimizer.found_inf = self._found  # type: ignore[attr-defined]  # what a gradient scaler hands it
        self.optimizer.step()
        self.settle()
        self._flag, self._message = to_host([self._found]), message

    def settle(self) -> None:
        """Raise `NonFiniteError` if a step so far did not move: before anything is kept of what they made."""
        flag, self._flag = self._flag, None
        if flag is not None:
            _require_finite(flag()[0], self._message)

    @property
    def _reads_flags(self) -> bool:
        """A fused optimizer's very first step makes momentum of whatever the gradient is, so the host looks itself."""
        return bool(self.optimizer.defaults["fused"]) and (self._begun or bool(self.optimizer.state))


def _require_finite(bad: Tensor, message: Callable[[], str]) -> None:
    if bad:
        raise NonFiniteError(message())
