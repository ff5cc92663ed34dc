"""Labelled pictures as an encoder sees them, in the classes of a training set."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from catlip import machine
from catlip.data.cache import cache_folder
from catlip.data.dataset import Dataset
from catlip.data.image_lookup import Names
from catlip.data.images import Unreadable, UnreadableImageError, image_content, read_image
from catlip.data.open import open_dataset
from catlip.data.subsets import with_classes
from catlip.errors import UsageError
from catlip.models.encoder import Encoder
from catlip.notices import warn


def open_labelled(data: str) -> Dataset:
    """A set with one class a picture, in any form that `open_labelled_source` reads. Raises UsageError."""
    found = open_dataset(data, target="classes")
    if found.multi:
        raise UsageError(f"{data!r}: its pictures have several labels, and one each is needed here")
    return found


def class_indices(train: Dataset, test: Dataset) -> tuple[list[str], Tensor, Tensor]:
    """(class names, int64 [train], int64 [test]). Raises UsageError for a test label that training never saw."""
    y_test = with_classes(test, train.classes, field="`test`").labels
    if len(train.classes) < 2:
        raise UsageError(f"`train` {train.name} has a single class, {train.classes[0]!r}; two or more are needed")
    return train.classes, torch.from_numpy(train.labels), torch.from_numpy(y_test)


@torch.no_grad()
def features(
    encoder: Encoder, data: Dataset, device: torch.device, unreadable: Unreadable | None = None
) -> tuple[Tensor, Tensor]:
    """(float [N, D] pooled features, int64 [N] which pictures they belong to).

    Pictures that cannot be read are left out and added to `unreadable`. Raises UsageError if these are more than 1 %.
    """
    encoder.to(device).eval()
    rows, kept, left_out = [], [], Unreadable() if unreadable is None else unreadable
    for numbers, _, pixels in decoded(data, range(len(data)), encoder.pixels, left_out):
        rows.append(encoder.pooled(encoder.normalize(pixels.to(device))).float().cpu())
        kept += numbers
    return torch.cat(rows), torch.tensor(kept)


def positives(data: Dataset, numbers: Sequence[int]) -> Tensor:
    """bool [len(numbers), classes]: which classes these pictures have."""
    found = torch.zeros(len(numbers), len(data.classes), dtype=torch.bool)
    for row, number in enumerate(numbers):
        found[row, torch.from_numpy(data.labels[data.offsets[number] : data.offsets[number + 1]])] = True
    return found


# Pictures as an encoder sees them, decoded by several threads, some at a time.


def decoded(
    source: Dataset,
    numbers: Sequence[int],
    pixels: Callable[[Any], Tensor],
    unreadable: Unreadable,
    *,
    batch_size: int = 256,
) -> Iterator[tuple[list[int], list[Any], Tensor]]:
    """(numbers, records, uint8 [b, 3, H, W]) of those samples that can be read, in order.

    pixels: picture -> uint8 [3, H, W], mostly `Encoder.pixels`. The others are added to `unreadable`. Raises UsageError
    at the end if these are more than 1 %.
    """

    def decode(number: int) -> tuple[int, Any, Tensor] | None:
        record = source[number]
        try:
            return number, record, pixels(read_image(record.image))
        except UnreadableImageError as error:
            unreadable.add(record.key, str(error))
            return None

    with ThreadPoolExecutor(machine.cores()) as pool:
        for start in range(0, len(numbers), batch_size):
            good = [one for one in pool.map(decode, numbers[start : start + batch_size]) if one is not None]
            if good:
                some, records, images = zip(*good, strict=True)
                yield list(some), list(records), torch.stack(images)
    unreadable.check(len(numbers))


# Captioned pictures as frozen vectors: each picture goes through the encoder once, and only vectors stay in memory.


@dataclass(slots=True)
class Captioned:
    """N pictures as vectors, and their captions."""

    keys: list[str]
    captions: list[list[str]]
    pooled: Tensor  # float32 [N, D], what Encoder.pooled returns
    unreadable: Unreadable

    def __len__(self) -> int:
        return len(self.keys)

    def owners(self) -> Tensor:
        """int64 [all captions]: the picture of each caption, ascending."""
        lengths = torch.tensor([len(captions) for captions in self.captions], dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(self)), lengths)


@torch.no_grad()
def embed_source(
    encoder: Encoder,
    source: Dataset,
    device: torch.device,
    captions: list[list[str]] | None = None,
    batch_size: int = 128,
    said: Callable[[int], None] | None = None,
) -> Captioned:
    """captions: instead of the source's own, a list a sample. said: told how many pictures are done, now and then.

    Unreadable pictures are left out with their captions. Raises UsageError if they are more than 1 %.
    """
    encoder.to(device).eval()
    unreadable, keys, texts, rows = Unreadable(), [], [], []
    everything = range(len(source))
    for numbers, records, pixels in decoded(source, everything, encoder.pixels, unreadable, batch_size=batch_size):
        rows.append(encoder.pooled(encoder.normalize(pixels.to(device))).float().cpu())
        keys += [record.key for record in records]
        texts += [captions[n] if captions else r.captions for n, r in zip(numbers, records, strict=True)]
        if said is not None:
            said(len(keys))
    if not rows:
        raise UsageError(f"{source.name} holds no pictures")
    return Captioned(keys, texts, torch.cat(rows), unreadable)


def read_captions(path: str | Path, keys: list[str]) -> list[list[str]]:
    """Captions from a file of their own, a list a picture.

    Either a text file, one caption a line, as many a picture for all and in the pictures' order; or JSON, {key or file
    name: [captions]}. keys: of the pictures. Raises UsageError if their numbers or names do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"`captions`: no such file: {path}")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        return _from_json(path, text, keys)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or len(lines) % len(keys):
        raise UsageError(
            f"`captions` {path} has {len(lines):,} captions for {len(keys):,} pictures; it needs as many lines as "
            "pictures, or 2, 3 ... times as many, those of one picture one below the other"
        )
    each = len(lines) // len(keys)
    return [lines[start : start + each] for start in range(0, len(lines), each)]


def _from_json(path: Path, text: str, keys: list[str]) -> list[list[str]]:
    try:
        table = json.loads(text)
    except ValueError as error:
        raise UsageError(f"`captions` {path} is no JSON: {error}") from None
    good = isinstance(table, dict) and all(
        isinstance(some, list) and all(isinstance(caption, str) for caption in some) for some in table.values()
    )
    if not good:
        raise UsageError(f"`captions` {path}: expected {{key: [captions]}}")
    numbers = Names(table, f"`captions` {path}").find_all(keys)
    missing = [key for key, number in zip(keys, numbers, strict=True) if number is None]
    if missing:
        raise UsageError(
            f"`captions` {path} has captions of {len(table):,} pictures; {len(missing):,} of the {len(keys):,} "
            f"pictures are not among them, e.g. {missing[0]}"
        )
    captions = list(table.values())
    return [captions[number] for number in numbers if number is not None]


# Frozen features, kept: the same encoder, pictures and picture size give the same vectors, so they are made once.

FORMAT = 2  # part of every name: raise it when pictures are decoded or cropped in another way


def kept_features(
    encoder: Encoder, data: Dataset, device: torch.device, unreadable: Unreadable, *, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """What `labelled.features` returns, from its file if there is a sound one. keep: False neither reads nor writes."""
    if not keep:
        return features(encoder, data, device, unreadable)
    path = cache_folder() / "features" / f"{_name(encoder, data, device)}.safetensors"
    if (found := _read(path, encoder.width, len(data))) is not None:
        for number in sorted(set(range(len(data))) - set(found[1].tolist())):
            unreadable.add(data[number].key, "could not be read when the features were made")
        unreadable.check(len(data))
        return found
    pooled, kept = features(encoder, data, device, unreadable)
    _write(path, {"pooled": pooled.contiguous(), "kept": kept})
    return pooled, kept


def _name(encoder: Encoder, data: Dataset, device: torch.device) -> str:
    """Of the weights without the classifier, which pooled features do not pass."""
    # Devices round differently: what one of them measured is not mixed with what another did.
    found = hashlib.sha256(repr([FORMAT, encoder.architecture, sorted(encoder.view.items()), device.type]).encode())
    classifier = encoder.backbone.pretrained_cfg.get("classifier")
    for name, value in sorted(encoder.backbone.state_dict().items()):
        if not (isinstance(classifier, str) and name.startswith(f"{classifier}.")):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for number in range(len(data)):
        picture = image_content(data[number].image)
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
