"""Captioned pictures as frozen vectors: each picture goes through the encoder once, and only vectors stay in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from catlip.data.images import Unreadable
from catlip.data.names import Names
from catlip.data.records import Dataset
from catlip.errors import UsageError
from catlip.evaluation.decoded import decoded
from catlip.models.encoder import Encoder


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
