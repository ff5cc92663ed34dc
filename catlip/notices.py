"""What the package tells people while it works. Results are values, which the command line prints."""

import os
import sys
from collections.abc import Callable

translate: Callable[[str], str] = str  # the command line puts flags where a text names fields in backticks


def is_rank_0() -> bool:
    """Whether this process speaks for all of them; known from the launcher's variables, without torch."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def say(text: str) -> None:
    """A line of progress on stdout, which a terminal, a log file and a notebook all show."""
    if is_rank_0():
        print(translate(text), flush=True)


def warn(text: str) -> None:
    """A line on stderr: something was left out, repaired or is slow. Every process may warn."""
    sys.stderr.write(translate(text) + "\n")
