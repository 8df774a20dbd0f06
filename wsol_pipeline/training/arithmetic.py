"""What a run computes in, where the options leave it to the device: on GPUs bfloat16 with channels last."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from wsol_pipeline.errors import UsageError
from wsol_pipeline.training.config import TrainConfig

WORKSPACE, REPEATABLE = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@dataclass(frozen=True)
class Arithmetic:
    """How one device computes a run: `precision` as in the options, but for "auto"; memory layout; repeatability; whose
    kernels."""

    device: torch.device
    precision: str
    channels_last: bool
    deterministic: bool
    compiled: bool

    @property
    def layout(self) -> torch.memory_format:
        """Of images, and of filters."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def told(self) -> str:
        """In words, for whoever compares two runs."""
        told = {"channels last": self.channels_last, "deterministic": self.deterministic, "compiled": self.compiled}
        return ", ".join([self.precision, *(word for word, is_so in told.items() if is_so)])

    def autocast(self, enabled: bool = True) -> AbstractContextManager[object]:
        """Forwards within are bfloat16's, if that is the precision; losses and what is pooled stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled and self.precision == "bfloat16")

    def settle(self) -> None:
        """Set what PyTorch keeps for the whole process, which may have run another trial before.

        TF32 rounds factors to ten bits: what is float32 beside bfloat16 is so for its bits. cuDNN's search for the
        fastest kernel picks another one each time.
        """
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = self.device.type == "cuda" and not self.deterministic
        torch.use_deterministic_algorithms(self.deterministic)
        if self.deterministic and os.environ.get(WORKSPACE) not in REPEATABLE:  # cuBLAS refuses without
            os.environ[WORKSPACE] = REPEATABLE[0]


def require_bfloat16(device: torch.device) -> None:
    """Raise `UsageError` for a GPU without bfloat16."""
    if device.type == "cuda" and not _has_bfloat16():
        raise UsageError("--precision bfloat16 needs a GPU that has it (Ampere or later): say float32, or auto.")


def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def arithmetic(config: TrainConfig, device: torch.device) -> Arithmetic:
    """What `config` asks of `device`. Raises `UsageError` for bfloat16 on a GPU that has none."""
    on_gpu = device.type == "cuda"
    if config.precision == "bfloat16":
        require_bfloat16(device)
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if on_gpu and _has_bfloat16() else "float32"
    last = on_gpu if config.channels_last is None else config.channels_last
    return Arithmetic(device, precision, last, config.deterministic, config.compile)
