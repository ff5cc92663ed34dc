"""Model folders as they lie on disk, in timm's and in open_clip's layout. What is wrong with one is said in one line.

Weights are read from safetensors files only: opening a folder runs nothing that is in it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from catlip.errors import UsageError

ENCODER_FOLDER = "encoder"
HUB = "hf-hub:"
TIMM = ("config.json", "model.safetensors")
OPEN_CLIP = ("open_clip_config.json", "open_clip_model.safetensors")


def model_folder(path: str | Path) -> Path:
    """The folder in timm's layout that is meant: a run's encoder, the path itself, or "hf-hub:org/name" downloaded.

    Raises UsageError, naming the file that is missing.
    """
    folder = download(str(path), TIMM) if str(path).startswith(HUB) else Path(path)
    if (folder / ENCODER_FOLDER).is_dir():
        folder = folder / ENCODER_FOLDER
    return _complete(folder, TIMM, f"{path} is no run and no model folder")


def download(name: str, files: tuple[str, ...]) -> Path:
    """The folder with these files (or patterns) of a model on the Hugging Face Hub, or of its cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=list(files)))
    except Exception as error:  # the hub's and the net's errors have no common base
        raise UsageError(f"{name} cannot be had: {(str(error).splitlines() or [repr(error)])[0]}") from None


def open_clip_folder(path: str | Path) -> Path:
    """A folder in open_clip's layout. Raises UsageError, naming the file that is missing."""
    return _complete(Path(path), OPEN_CLIP, f"{path} is no open_clip folder")


def _complete(folder: Path, files: tuple[str, str], otherwise: str) -> Path:
    for file in files:
        if not (folder / file).is_file():
            raise UsageError(f"{otherwise}: {folder / file} does not exist")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """Raises UsageError for anything but a JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises UsageError for a file that is no safetensors file, or cut off."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged or cut off: {str(error).splitlines()[0]}") from None


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Why weights do not fit a model, in a few words; empty if they do."""
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    shapes = [name for name in wanted if name in found and wanted[name].shape != found[name].shape]
    told = [
        f"{len(names)} {what}, e.g. {names[0]}"
        for names, what in ((missing, "tensors missing"), (extra, "too many"), (shapes, "of another shape"))
        if names
    ]
    if shapes:
        told[-1] += f" ({list(found[shapes[0]].shape)} for {list(wanted[shapes[0]].shape)})"
    return "; ".join(told)
