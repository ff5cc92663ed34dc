"""The one exception that means: the user can mend this."""

from collections.abc import Iterable


class UsageError(ValueError):
    """A user's mistake. Its message names the option, what was found and the fix; the CLI exits with 2."""


def near(word: str, words: Iterable[str]) -> str:
    """A piece of a message: ", did you mean 'x'?", or nothing."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(words), n=1)
    return f", did you mean {found[0]!r}?" if found else ""
