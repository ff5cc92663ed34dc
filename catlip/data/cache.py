"""What was found out about files once, kept as Arrow tables that the next run maps into memory instead of scanning.

The kept files only save time: they can be deleted whenever nothing runs, and a folder that cannot be written to costs
a scan a run and nothing else. Nothing in this file needs torch.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from catlip.notices import shown

FORMAT = 2  # part of every name: another layout is another file
WORTH_KEEPING = 0.5  # seconds: what was made quicker than this is made again
SILENT = 2.0  # seconds before a progress bar appears
EVERY = 30.0  # seconds between lines of progress in a log


def cache_folder() -> Path:
    """$CATLIP_CACHE, else catlip/ in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("CATLIP_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "catlip"


def name_of(facts: Any) -> str:
    """A file name for what is decided by these facts (anything JSON can hold)."""
    return sha256(json.dumps([FORMAT, facts], sort_keys=True).encode()).hexdigest()[:40]


def load(name: str) -> pa.Table | None:
    """The table kept under this name, mapped and not copied; None if there is none or it is damaged."""
    path = cache_folder() / "index" / f"{name}.arrow"
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None


def keep(name: str, table: pa.Table) -> pa.Table:
    """Keep a table; returns it mapped from its file, or the very table where it cannot be written.

    Several processes may keep the same name at once: each writes its own part and renames it.
    """
    folder = cache_folder() / "index"
    part = folder / f"{name}.{os.getpid()}-{time.monotonic_ns()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with pa.ipc.new_file(str(part), table.schema) as writer:  # one batch: columns stay whole when mapped
                writer.write_table(table.combine_chunks())
            part.replace(folder / f"{name}.arrow")
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return table
    mapped = load(name)
    return table if mapped is None else mapped


def kept_table(facts: Any, make: Callable[[], pa.Table], *, anyway: bool = False) -> pa.Table:
    """What was kept for these facts, or is made now, and kept if that was slow. anyway: keep it also if it was not."""
    name = name_of(facts)
    table = load(name)
    if table is None:
        began = time.monotonic()
        table = make()
        if anyway or time.monotonic() - began > WORTH_KEEPING:
            table = keep(name, table)
    return table


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
