"""Options as a YAML file: what `--print-config` writes and `--config` reads.

Each option stands once, in the groups of `--help`, with the value that a run would have: a preset's where none was
given. A study begun from it has the same contract. Files come from strangers: no tags, no anchors, no megabytes.
"""

import dataclasses
import difflib
import inspect
import json
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wsol_pipeline.errors import UsageError
from wsol_pipeline.redaction import GONE, redact
from wsol_pipeline.study.events import Listener
from wsol_pipeline.study.options import CONFIG

if TYPE_CHECKING:
    from wsol_pipeline.study.plan import Plan

JOB = "job"
OF_ONE_RUN = ("config", "dry_run", "print_config")  # options that a file does not keep
MOST_BYTES = 1_000_000


def job_of(options: type) -> str:
    """The job whose options these are, by its file's name."""
    return Path(sys.modules[options.__module__].__file__ or "").stem


def groups_of(options: type) -> dict[str, list[str]]:
    """Names of options by group, as --help has them: the class that declares one first; "" is the job's own."""
    groups: dict[str, list[str]] = {"": []}
    for known in dataclasses.fields(options):
        owner = owner_of(known.name, options)
        groups.setdefault("" if owner is options else group_name(owner), []).append(known.name)
    return groups


def owner_of(name: str, options: type) -> type:
    """The class that declares an option first: a group of --help."""
    return next(cls for cls in reversed(options.__mro__) if name in inspect.get_annotations(cls))


def group_name(owner: type) -> str:
    """`WhatOptions` is the group "what"."""
    return owner.__name__.removesuffix("Options").lower()


def dump(plan: "Plan") -> str:
    """The resolved options of a study as YAML."""
    options = resolved(plan)
    values = json.loads(json.dumps(dataclasses.asdict(options)))  # tuples as lists
    tree: dict[str, Any] = {JOB: job_of(type(options))}
    for group, names in groups_of(type(options)).items():
        kept = {name: values[name] for name in names if name not in OF_ONE_RUN}
        tree |= {group: kept} if group else kept
    return yaml.safe_dump(redact(tree), sort_keys=False, allow_unicode=True, width=120)


def resolved(plan: "Plan") -> Any:
    """A study's options with what its configuration made of those that were not given."""
    config, options = plan.config, plan.options
    made = {**vars(config.recipe), **vars(config), "options": config.options, "rungs": config.rungs}
    unset = [f.name for f in dataclasses.fields(options) if getattr(options, f.name) is None and f.name != "weights"]
    values = {name: made[name] for name in unset if name in made}
    if config.shrunk_jpegs:  # it was "auto" maybe, which another budget would decide otherwise
        values["reading"] = "shrunk"
    values |= {name: _as_text(redact(made[name])) for name in ("options", "readout_options")}  # quoted below, so first
    return dataclasses.replace(options, **values)


def _as_text(options: Mapping[str, Any]) -> dict[str, str]:
    """Options by name as they are typed: JSON, or text that is no JSON."""
    return {name: _typed(value) for name, value in options.items()}


def _typed(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value)


def arguments(file: str, options: type, given: Sequence[str] = ()) -> list[str]:
    """A file as a command line of the job that has `options`. Raises `UsageError` for what does not belong there.

    Secrets that the file lost are missed only where the line beside it, `given`, lacks them too.
    """
    tree = _read(file)
    job = tree.pop(JOB, job_of(options))
    if job != job_of(options):
        raise UsageError(f"{file} is of another job ({job!r}, not {job_of(options)!r}).")
    return words(file, options, tree, given)


def words(where: str, options: type, tree: Mapping[str, Any], given: Sequence[str] = ()) -> list[str]:
    """Values of `options` by name, or by group and name, as a command line. `where`: whose they are, for errors."""
    hints = typing.get_type_hints(options)
    there = {word.partition("=")[0].replace("_", "-") for word in given if word.startswith("--")}
    return [
        word
        for name, value in _flat(where, tree, options)
        if not (GONE in str(value) and _flag(name) in there)
        for word in _words(where, name, value, hints[name])
    ]


def _read(file: str) -> dict[str, Any]:
    try:
        path = Path(file).expanduser()
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{file} is larger than {MOST_BYTES:,} bytes: that is no file of options.")
        text = path.read_text(encoding="utf-8-sig")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                line = event.start_mark.line + 1
                raise UsageError(f"{file} has a tag or an anchor in line {line}: plain values only.")
        tree = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(tree, dict) or not tree:
        raise UsageError(f"{file} holds no options: it has to map their names to values, as --print-config writes.")
    return tree


def _flat(file: str, tree: Mapping[str, Any], options: type) -> Iterator[tuple[str, Any]]:
    """(name, value) of each option that has a value, those of groups included."""
    groups = groups_of(options)
    names = [name for members in groups.values() for name in members if name not in OF_ONE_RUN]
    seen: set[str] = set()
    for key, value in tree.items():
        inside = key in groups and key not in groups[""] and isinstance(value, dict)
        for name, each in value.items() if inside else [(key, value)]:
            if name not in names or (inside and name not in groups[key]):
                near = difflib.get_close_matches(str(name), [*names, *filter(None, groups)], n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"{file} has an unknown option {name!r}{f' in {key!r}' * inside}.{hint}")
            if name in seen:
                raise UsageError(f"{file} has the option {name!r} twice.")
            seen.add(name)
            if each is not None:
                yield name, each


def _words(file: str, name: str, value: Any, hint: Any) -> list[str]:
    """An option as words of a command line."""
    kinds = {typing.get_origin(kind) or kind for kind in (*typing.get_args(hint), hint)}
    flag = _flag(name)
    if isinstance(value, bool) != (bool in kinds) or (isinstance(value, list) != (tuple in kinds) and value != []):
        raise UsageError(f"{file}: {name} cannot be {value!r}.")
    if isinstance(value, dict) != (dict in kinds):
        raise UsageError(f"{file}: {name} cannot be {value!r}.")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, dict):
        return [flag, *(word for pair in value.items() for word in (str(pair[0]), _plain(pair[1])))] if value else []
    if isinstance(value, list):
        return [flag, *map(str, value)] if value else []
    if GONE in str(value):
        raise UsageError(f"{file}: {name} holds a secret that was left out ({value}): give it on the command line.")
    return [f"{flag}={value}"]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def keeper(plan: "Plan") -> Listener:
    """A listener that keeps the resolved options in the study's folder."""

    def keep(event: str, trial: int | None, details: Mapping[str, Any]) -> None:
        if event == "opened":
            plan.folder.write(CONFIG, dump(plan).encode())

    return keep
