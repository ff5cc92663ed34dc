"""What the package tells people while it works. Results are values, which the command line prints."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Literal

quiet = False  # progress is not wanted
translate: Callable[[str], str] = str  # the command line puts flags where a text names fields in backticks


def is_rank_0() -> bool:
    """Whether this process speaks for all of them; known from the launcher's variables, without torch."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def shown() -> bool:
    """Whether this process shows progress."""
    return is_rank_0() and not quiet


def say(text: str) -> None:
    """A line of progress on stdout, which a terminal, a log file and a notebook all show."""
    if is_rank_0():
        print(translate(text), flush=True)


@contextlib.contextmanager
def told(where: Literal["stdout", "stderr", "nowhere"]) -> Iterator[None]:
    """Where what is told on the way goes for the time of a `with` block; warnings go to stderr whatever it is."""
    global quiet
    before, quiet = quiet, quiet or where == "nowhere"
    try:
        with contextlib.ExitStack() as files:
            if where == "nowhere":
                nowhere = files.enter_context(open(os.devnull, "w", encoding="utf-8"))
                files.enter_context(contextlib.redirect_stdout(nowhere))
            elif where == "stderr":
                files.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield
    finally:
        quiet = before


def warn(text: str) -> None:
    """A line on stderr: something was left out, repaired or is slow. Every process may warn."""
    sys.stderr.write(translate(text) + "\n")
