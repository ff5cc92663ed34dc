"""The one exception that means: the user can mend this."""


class UsageError(ValueError):
    """A user's mistake. Its message names the option, what was found and the fix; the CLI exits with 2."""
