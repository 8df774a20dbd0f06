"""Plain data of JSON as the dataclasses that it is said to be: every field of its own type, none missing, none more."""

import dataclasses
import typing
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")


def typed(kind: type[T], value: Any, where: str = "it") -> T:
    """`value` as `kind`: a dataclass, an enum, tuple[T, ...], dict[K, V], int (0 or more), str, bool or Any.

    Raises `ValueError` that says `where` what is another thing.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _fields(typing.cast(type[T], kind), _exactly(dict, value, where), where)
    if origin is tuple:
        items = _exactly(list, value, where)
        return typing.cast(T, tuple(typed(inner[0], item, f"{where}[{at}]") for at, item in enumerate(items)))
    if origin is dict:
        pairs = _exactly(dict, value, where).items()
        found = {typed(inner[0], key, f"a key of {where}"): typed(inner[1], of, f"{where}.{key}") for key, of in pairs}
        return typing.cast(T, found)
    if issubclass(kind, Enum):
        return kind(value)
    if kind is int and _exactly(int, value, where) < 0:
        raise ValueError(f"{where} is {value}, and cannot be negative")
    return _exactly(kind, value, where)


def _exactly(kind: type[T], value: Any, where: str) -> T:
    """`value` if it is of this very type: True is no number."""
    if type(value) is not kind:
        raise ValueError(f"{where} must be of type {kind.__name__} but is {str(value)[:60]!r}")
    return value


def _fields(kind: type[T], found: dict[str, Any], where: str) -> T:
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)  # type: ignore[arg-type]
    if unknown := sorted(found.keys() - hints.keys()):
        raise ValueError(f"{where} has an unknown field {unknown[0][:60]!r}")
    needed = {field.name for field in fields if dataclasses.MISSING is field.default is field.default_factory}
    if missing := sorted(needed - found.keys()):
        raise ValueError(f"{where} lacks {missing[0]!r}")
    return kind(**{name: typed(hints[name], value, f"{where}.{name}") for name, value in found.items()})
