"""Files that appear whole or not at all, and what is left of those that grow line by line."""

import contextlib
import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write beside `path`, then put it in its place: whoever reads sees the old text or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; one that was cut is left out. Raises OSError."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]
