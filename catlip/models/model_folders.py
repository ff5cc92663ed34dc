"""Folders of models, as timm and open_clip lay them out, on this machine or the Hugging Face Hub.

They come from strangers: weights are read from safetensors files only, and cards as JSON.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from catlip.errors import UsageError, first_line
from catlip.models.encoder import classifiers
from catlip.models.state_dicts import read_tensors

ENCODER_FOLDER = "encoder"  # of a run
HUB, OPEN_CLIP = "hf-hub:", "open_clip:"
TIMM_FILES = ("config.json", "model.safetensors")
OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")


def model_folder(path: str | Path) -> Path:
    """The folder in timm's layout that is meant: a run's encoder, the path itself, or "hf-hub:org/name" downloaded.

    Raises UsageError, naming the file that is missing.
    """
    folder = download(str(path), TIMM_FILES) if str(path).startswith(HUB) else Path(path)
    if folder.is_file():
        raise UsageError(f"{path}: a file of weights does not say its architecture; name it as timm does: NAME={path}")
    if (folder / ENCODER_FOLDER).is_dir():
        folder = folder / ENCODER_FOLDER
    return _complete(folder, TIMM_FILES, f"{path} is no run and no model folder")


def read_folder(name: str) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """(folder in timm's layout, its config.json, its weights)."""
    folder = model_folder(name)
    card = read_json(folder / TIMM_FILES[0])
    state = read_tensors(folder / TIMM_FILES[1])
    labels = card.get("label_names") or []
    for head in classifiers(card.get("pretrained_cfg") or {}):
        rows = state.get(f"{head}.weight")
        if labels and rows is not None and len(labels) != len(rows):
            raise UsageError(f"{folder}: {len(labels):,} labels for a classifier of {len(rows):,} classes")
    return folder, card, state


def open_clip_folder(source: str) -> Path:
    """Raises UsageError, naming the file that is missing."""
    path = source.removeprefix(OPEN_CLIP)
    return _complete(Path(path), OPEN_CLIP_FILES, f"{path} is no open_clip folder")


def _complete(folder: Path, files: tuple[str, str], otherwise: str) -> Path:
    for file in files:
        if not (folder / file).is_file():
            raise UsageError(f"{otherwise}: {folder / file} does not exist")
    return folder


def download(name: str, files: tuple[str, ...]) -> Path:
    """The folder with these files (or patterns) of a model on the Hugging Face Hub, or of its cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=list(files)))
    except Exception as error:  # the hub's and the net's errors have no common base
        raise UsageError(f"{name} cannot be had: {first_line(error)}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Raises UsageError for anything but a JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object")
    return found


def check_empty(folder: Path, field: str) -> None:
    """Raises UsageError for a folder that holds something: nothing of the user's is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{field} {folder} exists already; choose another folder")
