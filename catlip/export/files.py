"""Folders that are written once, and the objective's own copy of the classifier."""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from catlip.errors import UsageError


def check_empty(folder: Path, option: str) -> None:
    """Raises UsageError for a folder that holds something: nothing of the user's is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{option} {folder} exists already; choose another folder")


def save_classifier(run: Path, head: nn.Linear) -> None:
    """objective.safetensors of a run folder, as `catlip pretrain` writes it."""
    tensors = {f"head.{name}": value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    save_file(tensors, run / "objective.safetensors")
