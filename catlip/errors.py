"""The one exception that means: the user can mend this. And what the system refuses, in one line."""

import re
from collections.abc import Iterable


class UsageError(ValueError):
    """A user's mistake. Its message names the option, what was found and the fix; the CLI exits with 2."""


def refusal(error: Exception) -> str:
    """One line for what the system refused: no space, no permission, a file where a folder should be; else ""."""
    if isinstance(error, OSError):
        why = error.strerror or str(error).partition("\n")[0] or type(error).__name__
        return f"{error.filename}: {why}" if error.filename else why
    found = re.search(r"([^:\n]+) \(os error \d+\)", str(error))  # as libraries written in Rust say it
    return found[1].strip() if found else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def near(word: str, words: Iterable[str]) -> str:
    """A piece of a message: ", did you mean 'x'?", or nothing."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(words), n=1)
    return f", did you mean {found[0]!r}?" if found else ""
