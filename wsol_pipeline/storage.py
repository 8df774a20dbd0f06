"""Files on a local disk or in an object store (`s3://`), by the same few verbs.

Everything this project persists goes through a `Store`: shards, checkpoints, leases, results. Two promises carry the
rest: a write is whole or not there, and `create` succeeds for exactly one of several writers.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from s3fs.core import S3_RETRYABLE_ERRORS
from tenacity import retry, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential, wait_random

from wsol_pipeline.errors import ResourceError, UsageError
from wsol_pipeline.redaction import holder, redact

STORAGE_ERRORS = (OSError, BotoCoreError, ClientError)  # what a read or write raises when its storage is away


_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")  # S3's words for "somebody else was first"
_NO_CREATE = "it has no hard links, or not S3's conditional writes; use a file system or a bucket that has them"
SHOWS_WITHIN = 60.0  # seconds after which NFS shows every file to every machine, unless told otherwise
_CONNECT_SECONDS, _SILENT_SECONDS = 5, 12  # how long a server may take to answer, and to say its next byte


@lru_cache(maxsize=8)
def _s3(pid: int) -> Any:
    """One S3 client per process (`pid` keeps a forked child from sharing its parent's).

    It asks once: botocore's, s3fs's and our own repetitions would multiply, so `_ask_s3` alone repeats.
    """
    timeouts = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _SILENT_SECONDS}
    client = fsspec.filesystem(
        "s3",
        use_listings_cache=False,  # other processes write too
        skip_instance_cache=True,
        config_kwargs={**timeouts, "retries": {"total_max_attempts": 1, "mode": "standard"}},
    )
    client.retries = 1
    return client


def _may_pass(error: BaseException) -> bool:
    """Timeouts, resets and server errors pass; what is missing, forbidden or there already stays so."""
    lasting = (FileNotFoundError, PermissionError, FileExistsError, NoCredentialsError)
    if isinstance(error, lasting) or _has_code(error, *_TAKEN, "InvalidRange"):
        return False
    return isinstance(error, STORAGE_ERRORS)


# A server that says nothing is asked 3 times, one that answers with errors up to 8 times. The longest: 30 s of
# attempts, 8 s of waiting and a last attempt of 17 s are 55 s.
@retry(
    retry=retry_if_exception(_may_pass),
    stop=stop_after_attempt(8) | (stop_after_attempt(3) & stop_after_delay(30)),
    wait=wait_exponential(multiplier=0.25, max=7.5) + wait_random(0, 0.5),
    reraise=True,
)
def _ask_s3(verb: str, *args: Any, **options: Any) -> Any:
    """One call of the S3 client, repeated with back-off: an answer or one of `STORAGE_ERRORS` within a minute."""
    try:
        return getattr(_s3(os.getpid()), verb)(*args, **options)
    except S3_RETRYABLE_ERRORS as error:
        if isinstance(error, STORAGE_ERRORS):
            raise
        raise OSError(f"the answer was cut short ({error})") from error


def check_no_secret(name: str) -> None:
    """Raise `UsageError` for a name or place that would be kept, and read again, without a part of it."""
    if redact(name) == name:
        return
    if variable := holder(name):
        raise UsageError(
            f"{redact(name)!r} holds the value of {variable}, which is kept out of everything that is written: choose "
            "another name, or another secret."
        )
    raise UsageError(f"{redact(name)!r} holds a secret: credentials belong into variables (AWS_*), not into names.")


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
        check_no_secret(text)
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

    def url(self, name: str = "") -> str:
        """`path` for Ray, which takes what begins with s3:// for a URL: blanks and the like in a URL's code."""
        path = self.path(name)
        return path if self.is_local else f"s3://{quote(path.removeprefix('s3://'))}"

    def relative(self, uri: str) -> str:
        """`uri` as it is kept below this store: without this store's place if it lies in it, so that both can move."""
        return uri.removeprefix(f"{self.uri}/")

    def resolve(self, kept: str) -> "Store":
        """What `relative` kept, from where this store is today."""
        return Store(kept) if kept.startswith(("/", "s3://")) else self / kept

    def read(self, name: str) -> bytes:
        """Bytes of `name`. Raises `FileNotFoundError`."""
        if self.is_local:
            return Path(self.path(name)).read_bytes()
        return _ask_s3("cat_file", self.path(name))

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of `name`, fewer where it ends before. Raises `FileNotFoundError`."""
        if self.is_local:
            with Path(self.path(name)).open("rb") as file:
                file.seek(begin)
                return file.read(end - begin)
        try:
            return _ask_s3("cat_file", self.path(name), start=begin, end=end)
        except (OSError, ClientError) as error:
            if not _has_code(error, "InvalidRange"):
                raise
            return b""

    def write(self, name: str, data: bytes, check: Callable[[], None] = lambda: None) -> None:
        """Write `name` whole or not at all, over whatever was there.

        `check` is called when only the last step is left, which others see; what it raises leaves all as it was.
        """
        if not self.is_local:
            check()
            _ask_s3("pipe_file", self.path(name), data)
            return
        with self._aside(name, data) as aside:
            check()
            aside.replace(self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` if nothing is there; False if it exists, and can be read. Of several writers exactly one gets
        True.

        The writers' data must differ: a client whose answer was lost asks again and knows its write by its bytes.
        """
        if not self.is_local:
            try:
                _ask_s3("pipe_file", self.path(name), data, mode="create")  # If-None-Match: *
            except (OSError, ClientError) as error:
                if not isinstance(error, FileExistsError) and not _has_code(error, *_TAKEN):
                    raise
                return self.read(name) == data
            return True
        with self._aside(name, data) as aside:
            try:
                os.link(aside, self.path(name))  # fails if the name exists, and shows the content whole
            except FileExistsError:
                self._wait_until_shown(name)
                return False
        return True

    def _wait_until_shown(self, name: str) -> None:
        """Wait for what another machine has made: a share may know that it is there before this one sees it."""
        deadline = time.monotonic() + SHOWS_WITHIN
        while not self.exists(name) and time.monotonic() < deadline:
            time.sleep(0.5)

    def exists(self, name: str = "") -> bool:
        if self.is_local:
            return Path(self.path(name)).exists()
        return bool(_ask_s3("exists", self.path(name)))

    def list(self, prefix: str = "") -> list[str]:
        """Names of all files below `prefix` (recursive), relative to this store, sorted; empty if there are none."""
        if self.is_local:
            root, base = Path(self.uri), Path(self.path(prefix))
            found = (p for p in base.rglob("*") if p.is_file() and not p.name.startswith(".aside-"))
            return sorted(file.relative_to(root).as_posix() for file in found)
        own = self.uri.removeprefix("s3://")
        names = {key.removeprefix(own).removeprefix("/") for key in _ask_s3("find", self.path(prefix))}
        return sorted(name for name in names if name and not name.endswith("/"))  # some tools leave folders' names

    def facts(self, prefix: str = "") -> dict[str, tuple[int, str]]:
        """Size and state of each file of `list`: the state, a time or S3's ETag, is another once the file is."""
        if self.is_local:
            stats = ((name, Path(self.path(name)).stat()) for name in self.list(prefix))
            return {name: (stat.st_size, str(stat.st_mtime_ns)) for name, stat in stats}
        own = self.uri.removeprefix("s3://")
        found = _ask_s3("find", self.path(prefix), detail=True)
        names = {key.removeprefix(own).removeprefix("/"): of for key, of in found.items()}
        return {name: (int(of["size"]), str(of.get("ETag", ""))) for name, of in sorted(names.items()) if name}

    def size(self, name: str) -> int:
        """Bytes of `name`. Raises `FileNotFoundError`."""
        if self.is_local:
            return Path(self.path(name)).stat().st_size
        return int(_ask_s3("size", self.path(name)))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its name, those that a killed writer left included; empty if there are none."""
        if self.is_local:
            files = (path for path in Path(self.uri).rglob("*") if path.is_file() and not path.is_symlink())
            return {file.relative_to(self.uri).as_posix(): file.stat().st_size for file in files}
        own = f"{self.uri.removeprefix('s3://')}/"
        found = _ask_s3("find", self.uri, detail=True)
        return {key.removeprefix(own): int(about["size"] or 0) for key, about in found.items()}

    def remove_all(self, name: str = "") -> None:
        """Remove everything below `name`; nothing happens if it is gone."""
        if self.is_local:
            shutil.rmtree(self.path(name), ignore_errors=True)
        elif self.list(name):
            _ask_s3("rm", self.path(name), recursive=True)

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens if it is gone."""
        if self.is_local:
            Path(self.path(name)).unlink(missing_ok=True)
        elif self.exists(name):
            _ask_s3("rm_file", self.path(name))

    def check_writable(self) -> "Store":
        """Write, read back and remove a small file. Raises `ResourceError` that says what is wrong with the place."""
        probe = f".probe-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self.write(probe, b"ok")
            if self.read(probe) != b"ok":
                raise ResourceError(f"Storage {self.uri} gave back other bytes than were written.")
            self.remove(probe)
        except STORAGE_ERRORS as error:
            raise ResourceError(describe_storage_error(self.uri, error)) from error
        return self

    def check_exclusive(self) -> "Store":
        """`check_writable`, and that of two writers of a new name one is refused. Raises `ResourceError`."""
        self.check_writable()
        probe = f".probe-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            try:
                apart = self.create(probe, b"first") and not self.create(probe, b"second")
            finally:
                self.remove(probe)
        except STORAGE_ERRORS as error:
            raise ResourceError(f"{self.uri} cannot keep two drivers apart: {_NO_CREATE} ({error}).") from error
        if not apart:
            raise ResourceError(f"{self.uri} cannot keep two drivers apart: {_NO_CREATE}.")
        return self

    def check_spelling(self) -> None:
        """Raise `UsageError` if this folder is another's: disks that fold case (macOS, Windows) give both for one."""
        if not self.is_local or not self.exists():
            return
        names = [path.name for path in Path(self.uri).parent.iterdir()]
        other = next((name for name in names if name.casefold() == self.name.casefold()), "")
        if other and self.name not in names:
            raise UsageError(
                f"{self.uri} is the folder {other!r}: this disk does not tell names apart that differ by case alone. "
                "Write it so to mean that one, or choose another name."
            )

    @contextlib.contextmanager
    def _aside(self, name: str, data: bytes) -> Iterator[Path]:
        """`data` in a file beside `name`, under a name that no list shows; gone at the end unless it was moved."""
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name_aside = tempfile.mkstemp(prefix=".aside-", dir=target.parent)
        aside = Path(name_aside)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.chmod(0o644)
            yield aside
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_needed(store: Store) -> Iterator[None]:
    """Within, storage that fails is a `ResourceError` that names `store`; who read the terminal and ended is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except STORAGE_ERRORS as error:
        raise ResourceError(f"{describe_storage_error(store.uri, error)} The same command continues.") from error


def _has_code(error: BaseException, *codes: str) -> bool:
    """Whether S3 answered with one of these error codes; s3fs translates many of them to one `OSError`."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    code = cause.response.get("Error", {}).get("Code") if isinstance(cause, ClientError) else None
    return code in codes


def describe_storage_error(uri: str, error: Exception) -> str:
    """One line for a failed storage call: what is wrong and what to mend. Holds no secret."""
    if isinstance(error, NoCredentialsError):
        return f"No credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance role."
    if isinstance(error, PermissionError):
        return f"Access to {uri} was denied: check the credentials and the bucket's policy."
    if isinstance(error, FileNotFoundError):
        return f"{uri} does not exist: check the bucket's name and the path."
    return f"{uri} cannot be reached: {type(error).__name__}: {str(error)[:200]}"
