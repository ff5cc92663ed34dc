"""Everything needed to go on: written in one step, never half, the one before it kept."""

import os
from pathlib import Path
from typing import Any

import torch

from catlip.errors import UsageError
from catlip.notices import warn

RESUME = Path("resume") / "state.pt"
PREVIOUS = Path("resume") / "previous.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the state beside the old one and put it in its place; a crash or a full disk in between leaves the old one.

    Raises OSError if it could not be written; nothing half-written stays.
    """
    path = folder / RESUME
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
        raise OSError(str(error).splitlines()[0]) from None
    if path.exists():
        path.replace(folder / PREVIOUS)
    part.replace(path)
    if hasattr(os, "O_DIRECTORY"):  # the renames themselves survive a power cut
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)


def exists(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RESUME, PREVIOUS))


def load(folder: Path) -> dict[str, Any] | None:
    """The last state that was saved and can be read, or None if none was saved.

    Tensors and plain values only: nothing in the file is executed. Raises UsageError if there are files and none can be
    read.
    """
    problems = []
    for path in (folder / RESUME, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or "samples" not in state:
                raise ValueError("it is no checkpoint")
        except Exception as error:  # whatever torch, zip and unpickler make of a damaged file
            problems.append(f"{path} cannot be read ({(str(error).splitlines() or ['it is empty or cut'])[0]})")
            continue
        if problems:
            warn(f"{problems[0]}; going on from the checkpoint before it, {state['samples']:,} samples")
        return state
    if problems:
        raise UsageError(f"{'; '.join(problems)}; remove it to start anew")
    return None
