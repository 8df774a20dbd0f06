"""Files on a local disk or in an object store (`s3://`), by the same few verbs.

Everything this project persists goes through a `Store`: shards, checkpoints, leases, results. Two promises carry the
rest: a write is whole or not there, and `create` succeeds for exactly one of several writers.
"""

import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from wsol_pipeline.errors import ResourceError, UsageError

STORAGE_ERRORS = (OSError, BotoCoreError, ClientError)  # what a read or write raises when its storage is away


@lru_cache(maxsize=8)
def _s3(pid: int) -> Any:
    """One S3 client per process (`pid` keeps a forked child from sharing its parent's)."""
    return fsspec.filesystem(
        "s3",
        use_listings_cache=False,  # other processes write too
        skip_instance_cache=True,
        config_kwargs={"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 4, "mode": "standard"}},
    )


@dataclass(frozen=True)
class Store:
    """A folder, by absolute path or `s3://bucket/prefix`. Names below it are relative, with `/`. Picklable.

    The S3 endpoint and credentials come from the usual `AWS_*` variables (`AWS_ENDPOINT_URL` included).
    """

    uri: str

    @staticmethod
    def at(where: str | os.PathLike[str]) -> "Store":
        """`where` as a `Store`: a local path is made absolute, so that it means the same in every process."""
        text = str(where)
        if text.startswith("s3://"):
            return Store(text.rstrip("/"))
        if "://" in text and not text.startswith("file://"):
            raise UsageError(f"Storage must be a local path or s3://bucket/prefix but got {text!r}.")
        return Store(str(Path(text.removeprefix("file://")).expanduser().resolve()))

    def __truediv__(self, name: str) -> "Store":
        return Store(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        return not self.uri.startswith("s3://")

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    def path(self, name: str = "") -> str:
        """The full path or URI of `name`."""
        return f"{self.uri}/{name}" if name else self.uri

    def read(self, name: str) -> bytes:
        """Bytes of `name`. Raises `FileNotFoundError`."""
        if self.is_local:
            return Path(self.path(name)).read_bytes()
        return _s3(os.getpid()).cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write `name` whole or not at all, over whatever was there."""
        if not self.is_local:
            _s3(os.getpid()).pipe_file(self.path(name), data)
            return
        aside = self._write_aside(name, data)
        aside.replace(self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` if nothing is there; False if it exists. Of several writers exactly one gets True.

        The writers' data must differ: a client whose answer was lost asks again and knows its write by its bytes.
        """
        if not self.is_local:
            try:
                _s3(os.getpid()).pipe_file(self.path(name), data, mode="create")  # If-None-Match: *
            except (OSError, ClientError) as error:
                if not isinstance(error, FileExistsError) and not _is_precondition_failure(error):
                    raise
                return self.read(name) == data
            return True
        aside = self._write_aside(name, data)
        try:
            os.link(aside, self.path(name))  # fails if the name exists, and shows the content whole
        except FileExistsError:
            return False
        finally:
            aside.unlink()
        return True

    def exists(self, name: str = "") -> bool:
        if self.is_local:
            return Path(self.path(name)).exists()
        return bool(_s3(os.getpid()).exists(self.path(name)))

    def list(self, prefix: str = "") -> list[str]:
        """Names of all files below `prefix` (recursive), relative to this store, sorted; empty if there are none."""
        if self.is_local:
            root, base = Path(self.uri), Path(self.path(prefix))
            found = (p for p in base.rglob("*") if p.is_file() and not p.name.startswith(".aside-"))
            return sorted(file.relative_to(root).as_posix() for file in found)
        own = self.uri.removeprefix("s3://")
        return sorted(key.removeprefix(own).lstrip("/") for key in _s3(os.getpid()).find(self.path(prefix)))

    def size(self, name: str) -> int:
        """Bytes of `name`. Raises `FileNotFoundError`."""
        if self.is_local:
            return Path(self.path(name)).stat().st_size
        return int(_s3(os.getpid()).size(self.path(name)))

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens if it is gone."""
        if self.is_local:
            Path(self.path(name)).unlink(missing_ok=True)
        elif self.exists(name):
            _s3(os.getpid()).rm_file(self.path(name))

    def check_writable(self) -> "Store":
        """Write, read back and remove a small file. Raises `ResourceError` that says what is wrong with the place."""
        probe = f".probe-{os.getpid()}"
        try:
            self.write(probe, b"ok")
            if self.read(probe) != b"ok":
                raise ResourceError(f"Storage {self.uri} gave back other bytes than were written.")
            self.remove(probe)
        except STORAGE_ERRORS as error:
            raise ResourceError(describe_storage_error(self.uri, error)) from error
        return self

    def _write_aside(self, name: str, data: bytes) -> Path:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name_aside = tempfile.mkstemp(prefix=".aside-", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside = Path(name_aside)
        aside.chmod(0o644)
        return aside


def _is_precondition_failure(error: Exception) -> bool:
    cause = error if isinstance(error, ClientError) else error.__cause__
    code = cause.response.get("Error", {}).get("Code") if isinstance(cause, ClientError) else None
    return code in ("PreconditionFailed", "ConditionalRequestConflict") or "PreconditionFailed" in str(error)


def describe_storage_error(uri: str, error: Exception) -> str:
    """One line for a failed storage call: what is wrong and what to mend. Holds no secret."""
    if isinstance(error, NoCredentialsError):
        return f"No credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance role."
    if isinstance(error, PermissionError):
        return f"Access to {uri} was denied: check the credentials and the bucket's policy."
    if isinstance(error, FileNotFoundError):
        return f"{uri} does not exist: check the bucket's name and the path."
    return f"{uri} cannot be reached: {type(error).__name__}: {str(error)[:200]}"
