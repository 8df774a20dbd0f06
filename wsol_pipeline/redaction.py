"""The one filter before every way out: terminal, logs, failure records, MLflow, `--print-config`, reports.

A secret is known by its shape (the password of a URL, `token=...`, a maker's prefix, a PEM block), or by its value, if
an environment variable whose name says so or Ray's token file holds it. What has neither is not found: secrets belong
into the environment, never on a command line.
"""

import contextlib
import functools
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast
from urllib.parse import quote, quote_plus

T = TypeVar("T")
GONE = "***"
# No rule below matches a text without any of these: most lines of a log cost a microsecond.
_HINTS = (
    "://", "%3a%2f%2f", "key", "akia", "asia", "goog", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-",
    "hf_", "xox", "sk-", "aiza", "ya29.", "dapi", "npm_", "pypi-", "eyj", "slack", "auth", "bearer", "basic",
    "credential", "sig", "pass", "pwd", "secret", "token", "connection_string",
)  # fmt: skip
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # all but line feeds and tabs
MIN_VALUE = 8  # characters: a shorter value of a variable would be found inside of innocent words

_PASSWORD = r"(?:pass(?:word|wd|phrase)|(?<=[_;?&])pwd|secret)"
_KEY = r"(?:(?:secret|access|api|private|account|storage|signing|encryption)(?:[-_]?access)?[-_]?key(?:[-_]?id)?)"
_TOKEN = rf"(?:{_KEY}|token|signature|connection_string)"
_SECRET_NAME = re.compile(rf"(?i)(?:{_PASSWORD}|{_TOKEN})$")
# Between a name and its value: `=`, `: `, `": `, `\": `, `%3D`. A value in quotes, which may be escaped themselves,
# goes up to the next of them; any other to a space, a quote or `&`.
_IS = r"""(?:\\*["'])?\s*(?:[:=]>?|%3[AaDd])\s*"""
_VALUE = r"""(?:(\\+["'])[^"'\\]+|(")(?:[^"\\]|\\.)+|(')(?:[^'\\]|\\.)+|{bare})"""
_RULES = tuple(
    (re.compile(pattern), kept)
    for pattern, kept in {
        r"(?s)-----BEGIN[\w %+]{0,40}PRIVATE(?: |\+|%20)KEY.*?(?:-----END[\w %+]{0,40}KEY-----|\Z)": GONE,
        # What stands before the @ of a URL; digits and a slash after a colon are a port.
        r"""://(?:[^\s/@"']+|[^\s:/@\["']*:(?!\d+[/?#])[^\s@"']{0,1024})@(?:[^\s/@"']*@)*""": f"://{GONE}@",
        r"(?i)%3A%2F%2F(?:(?!%2F|%40)[^\s&])+%40": f"%3A%2F%2F{GONE}%40",
        # Makers' prefixes: AWS and Google key ids; tokens of GitHub, GitLab, Hugging Face, Slack, OpenAI and its like,
        # Google, Databricks, npm, PyPI; JSON Web Tokens.
        r"(?<![A-Za-z0-9])(?:(?:AKIA|ASIA|GOOG)[A-Z0-9]{12,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
        r"|hf_[A-Za-z0-9]{16,}|xox[a-z]-[\w-]{8,}|sk-(?=[\w-]{0,200}\d)[\w-]{20,}|AIza[\w-]{30,}|ya29\.[\w-]{16,}"
        r"|dapi[0-9a-f]{32}|npm_\w{30,}|pypi-\w[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?)": GONE,
        r"(hooks\.slack\.com/services/)\S+": rf"\1{GONE}",
        rf"""(?i)(authorization{_IS}["']?)[^\s"',;&]+(?:(?<!\*) [^\s"']+)?""": rf"\1{GONE}",
        # No plain word: nobody's secret is in "basic configuration".
        r"((?<!\w)(?i:bearer|basic)(?: +|%20))(?=[\w.~+/=-]{0,400}(?:[0-9=]|[a-z][A-Z]))[\w.~+/=-]{8,}": rf"\1{GONE}",
        rf"""(?i)(x-(?:amz|goog)-credential{_IS})[^\s"'&<>]+""": rf"\1{GONE}",
        rf"(?i)((?<![a-z])sig{_IS})[\w%+/=]{{20,}}": rf"\1{GONE}",
        rf"(?i)({_PASSWORD}{_IS})" + _VALUE.format(bare=r"""[^\s"'&]+"""): rf"\1\2\3\4{GONE}",
        rf"(?i)({_TOKEN}{_IS})"
        # `token: missing` says no secret, `token=missing` would
        + _VALUE.format(bare=r"""(?:(?<==)|(?<=%3D)|(?=[^\s"'&]{0,400}\d)|(?=[^\s"'&]{24}))[^\s"'&]{6,}"""): (
            rf"\1\2\3\4{GONE}"
        ),
        rf"""(?i)(--(?:\w+-){{0,4}}(?:{_PASSWORD}|{_TOKEN})["']?(?:,\s*|\s+)["']?)(?!-)[^\s"']+""": rf"\1{GONE}",
    }.items()
)


def redact(value: T) -> T:
    """`value` with `***` for each secret: text, or plain data of it, where keys say too what is one."""
    return cast(T, _redact(value, _known_values()))


def redact_error(error: BaseException) -> None:
    """Redact the text of `error`, and of what it came from, in place: for one that others print or keep."""
    here: BaseException | None = error
    while here is not None:
        here.args = redact(here.args)
        here = here.__cause__ or here.__context__


def printable(text: str) -> str:
    """`text` with escapes for what would steer a terminal or turn a line around: names can come from strangers."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def install() -> None:
    """From here on redact what this process prints and logs, tracebacks too. Done again it changes nothing."""
    for stream in (sys.stdout, sys.stderr):
        if not hasattr(stream.write, "redacts"):
            stream.write = _redacting_write(stream.write)  # type: ignore[method-assign]  # holders of the stream too
    if not hasattr(logging.getLogRecordFactory(), "redacts"):
        logging.setLogRecordFactory(_redacting_factory(logging.getLogRecordFactory()))
    sys.excepthook = _print_error


def holder(text: str) -> str:
    """The name of what holds a secret that `text` is, or has in it: a variable or Ray's file; "" if none does."""
    found = {name: value for name, value in os.environ.items() if _names_a_secret(name)} | {"Ray's token": _ray_token()}
    return next((name for name, value in found.items() if len(value) >= MIN_VALUE and value in text), "")


def _ray_token() -> str:
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        return _token_in(file, file.stat().st_mtime_ns)
    return ""


def _redact(value: Any, known: list[str]) -> Any:
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, GONE)
        lower = value.lower()
        if any(hint in lower for hint in _HINTS):
            for pattern, kept in _RULES:
                value = pattern.sub(kept, value)
        return value
    if isinstance(value, Mapping):
        return {_redact(name, known): _redact_named(name, item, known) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_redact(item, known) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _redact_named(name: Any, value: Any, known: list[str]) -> Any:
    secret = isinstance(name, str) and isinstance(value, str) and value and _names_a_secret(name)
    return GONE if secret else _redact(value, known)


def _known_values() -> list[str]:
    """Values of secret variables and of Ray's token file, as they are, in a URL and in JSON; the longest first."""
    found = [*(value for name, value in os.environ.items() if _names_a_secret(name)), _ray_token()]
    long = (value for value in found if len(value) >= MIN_VALUE)
    return sorted({form for value in long for form in _forms(value)}, key=len, reverse=True)


@functools.lru_cache(maxsize=1024)
def _names_a_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


@functools.lru_cache(maxsize=4)
def _token_in(file: Path, changed: int) -> str:
    return file.read_text(errors="replace").strip()


@functools.lru_cache(maxsize=64)
def _forms(value: str) -> tuple[str, ...]:
    return value, quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1]


def _redacting_write(write: Callable[[str], int]) -> Callable[[str], int]:
    def redacting(text: str) -> int:
        write(redact(text))
        return len(text)

    redacting.redacts = True  # type: ignore[attr-defined]
    return redacting


def _redacting_factory(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    """Records are made before any handler of any library sees them."""

    def redacting(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        with contextlib.suppress(TypeError, ValueError):  # arguments that don't fit: for logging to tell
            record.msg, record.args = printable(redact(record.getMessage())), ()
        if record.exc_info and record.exc_info[0]:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
            record.exc_info = None
        return record

    redacting.redacts = True  # type: ignore[attr-defined]
    return redacting


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write("".join(traceback.format_exception(kind, error, trace)))
