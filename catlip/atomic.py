"""Files that appear whole or not at all, and what is left of those that grow line by line."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path, *, rivals: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when all went well; else nothing is left of it.

    rivals: others may write the same file at the same time; each writes a part of its own, and the last one stays.
    An OSError on the way names `path` if it names nothing. Where nothing is written, nothing appears.
    """
    own = f".{os.getpid()}-{time.monotonic_ns()}" if rivals else ""
    part = path.with_name(f"{path.name}{own}.part")
    try:
        yield part
        if part.exists():
            part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        with suppress(OSError):  # where there is no folder
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Whoever reads sees the old text or the new one. Raises OSError."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; one that was cut is left out. Raises OSError."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]
