"""Frozen features, kept: the same encoder, pictures and picture size give the same vectors, so they are made once.

They lie in $CATLIP_CACHE/features (else ~/.cache/catlip/features), one safetensors file each, and may be deleted at
any time. The name is a hash of all that decides them: weights, input space, picture size, the pictures themselves.
"""

import contextlib
import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from catlip.data.images import Unreadable
from catlip.data.indexes import cache_folder
from catlip.data.labelled import LabelledDataset
from catlip.evaluation.labelled import features
from catlip.models.encoder import Encoder
from catlip.notices import warn

FORMAT = 2  # part of every name: raise it when pictures are decoded or cropped in another way


def kept_features(
    encoder: Encoder, data: LabelledDataset, device: torch.device, unreadable: Unreadable, *, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """What `labelled.features` returns, from its file if there is a sound one. keep: False neither reads nor writes."""
    if not keep:
        return features(encoder, data, device, unreadable)
    path = cache_folder() / "features" / f"{_name(encoder, data, device)}.safetensors"
    if (found := _read(path, encoder.width, len(data))) is not None:
        for number in sorted(set(range(len(data))) - set(found[1].tolist())):
            unreadable.add(data.read(number).key, "could not be read when the features were made")
        unreadable.check(len(data))
        return found
    pooled, kept = features(encoder, data, device, unreadable)
    _write(path, {"pooled": pooled.contiguous(), "kept": kept})
    return pooled, kept


def _name(encoder: Encoder, data: LabelledDataset, device: torch.device) -> str:
    """Of the weights without the classifier, which pooled features do not pass."""
    # Devices round differently: what one of them measured is not mixed with what another did.
    found = hashlib.sha256(repr([FORMAT, encoder.architecture, sorted(encoder.view.items()), device.type]).encode())
    classifier = encoder.backbone.pretrained_cfg.get("classifier")
    for name, value in sorted(encoder.backbone.state_dict().items()):
        if not (isinstance(classifier, str) and name.startswith(f"{classifier}.")):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for number in range(len(data)):
        picture = data.read(number).image
        found.update(len(picture).to_bytes(8, "big"))
        found.update(picture)
    return found.hexdigest()[:40]


def _read(path: Path, width: int, pictures: int) -> tuple[Tensor, Tensor] | None:
    """None for a file that is not there, damaged, or not of these pictures."""
    try:
        with safe_open(path, framework="pt") as file:
            pooled, kept = file.get_tensor("pooled"), file.get_tensor("kept")
    except (OSError, SafetensorError, ValueError):
        return None
    sound = (
        pooled.shape == (len(kept), width)
        and pooled.dtype == torch.float32
        and kept.dtype == torch.int64
        and 0 < len(kept) <= pictures
        and bool((kept[1:] > kept[:-1]).all())
        and int(kept[0]) >= 0
        and int(kept[-1]) < pictures
    )
    return (pooled, kept) if sound else None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """In one step, so that a file is whole or not there; a cache that cannot be written costs a line, not the run."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(part))
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        warn(f"the features are not kept: {str(error).splitlines()[0]}")
