"""Options from a command line, by tyro: faults in a line, --help in groups.

Nothing here imports what runs: help, version and faults are told in half a second.
"""

import argparse
import ast
import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import io
import itertools
import operator
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from wsol_pipeline.console.config_file import arguments, group_name, owner_of
from wsol_pipeline.errors import UsageError
from wsol_pipeline.training.config import require
from wsol_pipeline.training.options import RunOptions

T = TypeVar("T")
Options = TypeVar("Options", bound=RunOptions)
SHELLS = ("bash", "zsh", "fish")
MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)


def parse(options: type[Options], args: list[str] | None = None) -> Options:
    """`options` of a job from the command line and the file of `--config`, over whose values the command line wins.

    Raises `UsageError` for what tyro rejects.
    """
    given = sys.argv[1:] if args is None else args
    description = sys.modules[options.__module__].__doc__
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config")
    with contextlib.suppress(argparse.ArgumentError):  # tyro says it better
        if file := first.parse_known_args(given)[0].config:
            return _from_file(options, file, given, description)
    return command_line(options, given, description)


def _from_file(options: type[Options], file: str, args: list[str], description: str | None) -> Options:
    kept = arguments(file, options, args)
    try:
        base = command_line(options, kept)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    both = command_line(options, [*kept, *args], description)
    merged: dict[str, Any] = {
        field.name: {**getattr(base, field.name), **getattr(both, field.name)}
        for field in dataclasses.fields(options)
        if isinstance(getattr(base, field.name), dict)
    }
    return dataclasses.replace(both, **merged)


def command_line(options: type[T], args: Sequence[str] | None = None, description: str | None = None) -> T:
    """`tyro.cli`, with what it rejects as a `UsageError` of one line: the fault and the nearest known option.

    --help has a group for each class from which `options` inherits fields.
    """
    args = sys.argv[1:] if args is None else list(args)
    if args == ["--version"]:
        print(version())
        sys.exit(0)
    told, form = io.StringIO(), _form(options) if isinstance(options, type) else options
    try:
        with contextlib.redirect_stderr(told):
            parsed: Any = tyro.cli(form, args=args, description=_wrapped(description or ""), config=MARKERS)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UsageError(_one_line(told.getvalue())) from None
    return options(**_flat(parsed)) if form is not options else parsed


def version() -> str:
    """`wsol 0.1.0`."""
    return f"wsol {importlib.metadata.version('wsol')}"


def how_to_run(job: str) -> str:
    """How this user starts a job, by its file's name: as the one that runs was started."""
    return f"wsol {job.replace('_', ' ', 1)}" if sys.argv[0].startswith("wsol ") else f"python rayjobs/{job}.py"


def _form(options: type) -> type:
    """`options` with the fields that it inherits as a nested dataclass for each class that declares some."""
    hints, docs = typing.get_type_hints(options, include_extras=True), _field_docs(options)
    groups: dict[type, list[Any]] = {options: []}
    for known in dataclasses.fields(options):
        owner = owner_of(known.name, options)
        shown = tyro.conf.arg(help=docs[known.name], help_behavior_hint=_default_hint)
        default = dataclasses.field(default=known.default, default_factory=known.default_factory)
        groups.setdefault(owner, []).append((known.name, Annotated[hints[known.name], shown], default))
    fields = groups.pop(options)
    for owner, own in groups.items():
        group = dataclasses.make_dataclass(owner.__name__, own, namespace={"__doc__": owner.__doc__})
        fields.append((group_name(owner), group, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass(options.__name__, fields)


def _flat(form: Any) -> dict[str, Any]:
    """The values of a form, those of its groups included, by the options' names."""
    values: dict[str, Any] = {}
    for name, value in vars(form).items():
        values |= _flat(value) if dataclasses.is_dataclass(value) else {name: value}
    return values


def _field_docs(options: type) -> dict[str, str]:
    """The string below each field, of the class that declares it last and has one."""
    docs: dict[str, str] = {}
    for cls in filter(dataclasses.is_dataclass, reversed(options.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for field_, doc in itertools.pairwise(body):
            if isinstance(field_, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                docs[ast.unparse(field_.target)] = " ".join(str(doc.value.value).split())
    return docs


def _default_hint(default: str) -> str:
    """What follows an option's text; nothing where that says itself what happens by default."""
    return "" if default in ("None", "''", "") else f"(default: {default})"


def _wrapped(text: str) -> str:
    """Paragraphs at the width of the terminal, 100 characters at most; indented ones, which are commands, as they are.

    tyro joins lines that begin with a letter, and doubles empty ones before others: none begins so, none is empty.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    parts = text.strip().split("\n\n")
    filled = (
        part if part.startswith(" ") else textwrap.fill(part, width, initial_indent=" ", subsequent_indent=" ")
        for part in parts
    )
    blank = "\u200b" if (sys.stdout.encoding or "").lower().startswith("utf") else "."
    return f"\n{blank}\n".join(filled)


def _one_line(box: str) -> str:
    """The text of tyro's box, which is of letters or of lines, before its pointer to --help."""
    text = " ".join(line.strip("│ ") for line in box.splitlines()[1:-1])
    parts = [" ".join(part.split()) for part in re.split("[─-]{4,}", text) if "full helptext" not in part]
    return "; ".join(part.rstrip(".") for part in parts) + "."


def completion(shell: str, jobs: Mapping[str, type]) -> str:
    """A script that lets `shell` (bash, zsh or fish) complete `wsol`. `jobs`: the words of each job -> its options."""
    require(shell in SHELLS, f"a shell is one of {', '.join(SHELLS)}", shell)
    tree: dict[str, Any] = {}
    for words, options in jobs.items():
        *outer, last = words.split()
        place = functools.reduce(lambda at, word: at.setdefault(word, {}), outer, tree)
        place[last] = _form(options)
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            tyro.cli(_union(tree), prog="wsol", args=["--tyro-print-completion", shell], config=MARKERS)
    except SystemExit as end:
        if end.code:
            raise
    return told.getvalue()


def _union(tree: Mapping[str, Any]) -> Any:
    """Nested words as the union of subcommands that tyro takes."""
    parts = []
    for word, inner in tree.items():
        if isinstance(inner, Mapping):
            inner = dataclasses.make_dataclass(word, [("which", _union(inner))])
        parts.append(Annotated[inner, tyro.conf.subcommand(name=word, prefix_name=False)])
    return functools.reduce(operator.or_, parts)
