"""From what a caller gives to a config: the one way by which every public function takes its settings."""

import dataclasses
from typing import Any, TypeVar

from catlip.errors import UsageError, near

C = TypeVar("C")


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
