"""Names of methods and readouts (the files of a folder) and of options (the fields of a `Config`)."""

import difflib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


def file_names(package_path: Iterable[str]) -> tuple[str, ...]:
    """Modules of a folder without leading underscore, sorted: the folder listing is the register."""
    found = pkgutil.iter_modules(list(package_path))
    return tuple(sorted(m.name for m in found if not m.ispkg and not m.name.startswith("_")))


def unknown(kind: str, name: object, known: Iterable[object]) -> ValueError:
    """The error for a name nobody knows: says the nearest one and all that there are."""
    names = sorted(str(k) for k in known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"Unknown {kind} {str(name)!r}.{hint} Known: {', '.join(names) or 'none'}.")


def configured(config_class: type, kind: str, options: Mapping[str, Any]) -> Any:
    """`config_class(**options)`. Raises `ValueError` for an option that is not a field, or a value of a wrong type."""
    known = [field.name for field in fields(config_class)]
    for name in options:
        if name not in known:
            raise unknown(f"option of {kind}", name, known)
    try:
        return config_class(**options)
    except TypeError as error:  # a rule compared what cannot be compared
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ValueError(f"An option of {kind} has a value of a wrong type ({error}): {given}.") from error
