"""What the package tells people while it works. Results are values, which the command line prints."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

SILENT = 2.0  # seconds before a progress bar appears
EVERY = 30.0  # seconds between lines of progress in a log
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


class Progress:
    """A bar with the time left, on stderr, for what takes longer than two seconds. Only the first process shows it."""

    def __init__(self, what: str, total: int, bytes_: bool = False) -> None:
        self.what, self.total, self.bytes = what, total, bytes_
        self._began, self._done, self._bar, self._task = time.monotonic(), 0, None, None
        self._lock, self._shown, self._told = threading.Lock(), False, 0.0

    def __enter__(self) -> "Progress":
        return self

    def advance(self, by: int) -> None:
        with self._lock:  # threads work side by side
            self._done += by
            if not self._shown and time.monotonic() - self._began >= SILENT and shown():
                self._show()
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self._done)
            elif self._shown and time.monotonic() - self._told >= EVERY:
                self._tell()

    def _tell(self) -> None:
        """A log gets a line now and then."""
        self._told = time.monotonic()
        left = (self._told - self._began) * (self.total / max(self._done, 1) - 1)
        size, unit = (1e6, " MB") if self.bytes else (1, "")
        done = f"{self._done / size:,.0f} of {self.total / size:,.0f}{unit}"
        sys.stderr.write(f"{self.what}: {done}, {left:.0f} s left\n")

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._shown = True
        count = DownloadColumn() if self.bytes else MofNCompleteColumn()
        console = Console(file=sys.stderr)
        if not console.is_terminal:
            self._tell()
            return
        self._bar = Bar(
            TextColumn(self.what), BarColumn(), count, TimeRemainingColumn(), console=console, transient=True
        )
        self._bar.start()
        self._task = self._bar.add_task(self.what, total=self.total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
