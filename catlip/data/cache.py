"""What was found out about files once, kept as Arrow tables that the next run maps into memory instead of scanning.

The kept files only save time: they can be deleted whenever nothing runs, and a folder that cannot be written to costs
a scan a run and nothing else. Nothing in this file needs torch.
"""

import json
import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from catlip.atomic import whole

FORMAT = 2  # part of every name: another layout is another file
WORTH_KEEPING = 0.5  # seconds: what was made quicker than this is made again


def cache_folder() -> Path:
    """$CATLIP_CACHE, else catlip/ in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("CATLIP_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "catlip"


def name_of(facts: Any) -> str:
    """A file name for what is decided by these facts (anything JSON can hold)."""
    return sha256(json.dumps([FORMAT, facts], sort_keys=True).encode()).hexdigest()[:40]


def _path(name: str) -> Path:
    return cache_folder() / "index" / f"{name}.arrow"


def load(name: str) -> pa.Table | None:
    """The table kept under this name, mapped and not copied; None if there is none or it is damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(_path(name)))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None


def keep(name: str, table: pa.Table) -> pa.Table:
    """Keep a table; returns it mapped from its file, or the very table where it cannot be written.

    Several processes may keep the same name at once.
    """
    path = _path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, rivals=True) as part, pa.ipc.new_file(str(part), table.schema) as writer:
            writer.write_table(table.combine_chunks())  # one batch: columns stay whole when mapped
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
