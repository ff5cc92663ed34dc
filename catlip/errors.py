"""The one exception that means: the user can mend this."""


class UsageError(ValueError):
    """A user's mistake. The message names the option, what was found and the fix; the CLI prints it and exits with 2."""
