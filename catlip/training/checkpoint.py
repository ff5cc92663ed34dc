"""Everything needed to go on: written in one step, never half."""

import os
from pathlib import Path
from typing import Any

import torch

from catlip.errors import UsageError

RESUME = Path("resume") / "state.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the state beside the old one and put it in its place; a crash in between leaves the old one."""
    path = folder / RESUME
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(folder: Path) -> dict[str, Any] | None:
    """The last state that was saved, or None. Tensors and plain values only: nothing in the file is executed."""
    path = folder / RESUME
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path} cannot be read ({str(error).splitlines()[0]}); remove it to start anew") from None
