"""From what a caller gives to a config: the one way by which every public function takes its settings."""

import dataclasses
import os
from typing import Any, TypeVar

from catlip.errors import UsageError, near

C = TypeVar("C")
LISTED = 1000  # items of a list that config.json shows


def configure(kind: type[C], config: C | None = None, **settings: Any) -> C:
    """The config given, or a new one of this kind, with some fields replaced; None means that a field is not given.

    Raises UsageError for a field that the config does not have, and for one that it needs and nobody gave.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    known = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in known:
            raise UsageError(f"there is no setting `{name}`{near(name, known)}")
    if config is not None:
        return dataclasses.replace(config, **given)  # pyright: ignore[reportArgumentType]
    unset = dataclasses.MISSING
    for name, field in known.items():
        if field.default is unset and field.default_factory is unset and name not in given:
            raise UsageError(f"`{name}` is missing")
    return kind(**given)


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
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    named = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    own = getattr(value, "name", None)
    return own if isinstance(own, str) else f"{named.__module__}.{named.__qualname__}"
