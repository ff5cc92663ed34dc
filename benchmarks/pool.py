"""Tasks of a comparison in several processes at once, for `objectives.py` and `scaling.py`.

A run folder is resumed by whoever finds it, so a stopped benchmark is given again; what is done is done.
"""

import contextlib
import multiprocessing
import tarfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def run_all(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    processes: int,
    until: float,
    done: Callable[[], None],
) -> dict[int, Any]:
    """{number of a task: function(*task)} of those that ended, begun in order, so many at a time.

    until: time.time() after which none is begun. done: called after each, by this process. What a task raises is
    printed and costs that task only.
    """
    found: dict[int, Any] = {}
    if processes == 1:
        for number, task in enumerate(tasks):
            found |= _kept(number, _guarded(function, task, until))
            done()
        return found
    # Not forked: CUDA and threads do not survive it.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_guarded, function, task, until): number for number, task in enumerate(tasks)}
        for future in as_completed(waiting):
            found |= _kept(waiting[future], future.result())
            done()
    return found


def _guarded(function: Callable[..., Any], task: tuple[Any, ...], until: float) -> tuple[bool, Any]:
    if time.time() > until:
        return False, "not begun: no time is left"
    try:
        return True, function(*task)
    except Exception as error:
        traceback.print_exc()
        return False, f"{type(error).__name__}: {error}"


def _kept(number: int, ended: tuple[bool, Any]) -> dict[int, Any]:
    good, value = ended
    if not good:
        print(f"task {number}: {value}", flush=True)
    return {number: value} if good else {}


def keep_results(
    out: Path, to: Path | None, patterns: Sequence[str] = ("*.json", "*.html", "*/*/compared.json")
) -> None:
    """The small files of a comparison as one tar, whole or not there: a machine that is taken away leaves that much."""
    if to is None:
        return
    part = to.with_suffix(".part")
    with tarfile.open(part, "w:gz") as tar, contextlib.suppress(FileNotFoundError):
        for path in sorted(path for pattern in patterns for path in out.glob(pattern)):
            tar.add(path, path.relative_to(out))
    part.replace(to)
