"""Imported first: stands in for packages that only storage in S3 needs, where they are not installed.

A machine that is lent for an hour has PyTorch, and mostly neither Ray, MLflow nor an S3 client.
"""

import importlib
import sys
import types
from typing import Any


class Idle:
    """Whatever decorates and combines, and does nothing."""

    def __call__(self, *args: Any, **_: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __and__(self, other: Any) -> "Idle":
        return self

    __or__ = __add__ = __and__


def stand_in(module: str, **values: Any) -> None:
    """An empty module for one that is not installed."""
    try:
        importlib.import_module(module)
    except ImportError:
        sys.modules[module] = types.ModuleType(module)
        vars(sys.modules[module]).update(values)


ERRORS = ("BotoCoreError", "ClientError", "NoCredentialsError")
RETRYING = "retry retry_if_exception stop_after_attempt stop_after_delay wait_exponential wait_random"
for parent in ("botocore", "s3fs"):
    stand_in(parent)
stand_in("botocore.exceptions", **{name: type(name, (Exception,), {}) for name in ERRORS})
stand_in("s3fs.core", S3_RETRYABLE_ERRORS=(OSError,))
stand_in("tenacity", **{name: Idle() for name in RETRYING.split()})
