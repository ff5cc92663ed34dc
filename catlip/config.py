"""From what a caller gives to a config: the one way by which every public function takes its settings."""

import dataclasses
import math
import os
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from catlip.errors import UsageError, near

C = TypeVar("C")
LISTED = 1000  # items of a list that config.json shows


def configure(kind: type[C], config: C | None = None, **settings: Any) -> C:
    """The config given, or a new one of this kind, with some fields replaced; None means that a field is not given.

    Raises UsageError for a field that the config does not have, for one that it needs and nobody gave, and for a value
    that is nothing for its field.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    known = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in known:
            raise UsageError(f"there is no setting `{name}`{near(name, known)}")
    if config is not None:
        if not isinstance(config, kind):
            raise UsageError(f"`config` is a {kind.__name__}, not {config!r:.60}")
        return checked(dataclasses.replace(config, **given))  # pyright: ignore[reportArgumentType]
    unset = dataclasses.MISSING
    for name, field in known.items():
        if field.default is unset and field.default_factory is unset and name not in given:
            raise UsageError(f"`{name}` is missing")
    return checked(kind(**given))


def checked(config: C) -> C:
    """The config. Raises UsageError for a field of numbers, choices, lists or settings that holds something else."""
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        value = getattr(config, field.name)
        if wanted := _unmet(value, field.type):
            raise UsageError(f"`{field.name}` is {wanted}, not {' '.join(repr(value).split())[:60]}")
        if field.name in ("seed", "workers") and not 0 <= value < 1 << 32:
            raise UsageError(f"`{field.name}` is a whole number from 0 to below 2^32, not {value}")
        if dataclasses.is_dataclass(field.type):
            checked(value)
    return config


def _unmet(value: Any, kind: Any) -> str:
    """What a value should be and is not; "" for a field of another kind, which whoever reads it checks."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return "" if (type(value), value) in [(type(part), part) for part in parts] else f"one of {str(parts)[1:-1]}"
    if get_origin(kind) is tuple:
        return "" if isinstance(value, tuple | list) else "a list"
    if len(parts) == 2 and parts[1] is NoneType:
        return "" if value is None else _unmet(value, parts[0])
    if kind in (int, float):
        sort, told = (Integral, "a whole number") if kind is int else (Real, "a number")  # NumPy's numbers are of them
        return "" if isinstance(value, sort) and not isinstance(value, bool) and math.isfinite(value) else told
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not isinstance(value, kind):
        return f"a {kind.__name__}"
    return ""


def required(config: Any, *names: str) -> None:
    """Raises UsageError for the first of these fields that is empty, as a recipe leaves what is the user's own."""
    for name in names:
        if not getattr(config, name):
            raise UsageError(f"`{name}` is missing")


def opened(config: C, **objects: Any) -> C:
    """The config with what its fields were opened to, where they were given as objects and not as paths or names."""
    given = {name: new for name, new in objects.items() if not isinstance(getattr(config, name), str | os.PathLike)}
    return dataclasses.replace(config, **given)  # pyright: ignore[reportArgumentType]


def plain(value: Any) -> Any:
    """A config as JSON has it. An object that Python was given stands there by its `name`, or by its class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value] if len(value) <= LISTED else f"{len(value):,} items"
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Real):  # a number of NumPy
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    named = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    own = getattr(value, "name", None)
    return own if isinstance(own, str) else f"{named.__module__}.{named.__qualname__}"
