"""Captioned images as the vectors that an encoder made of them: each image goes through it once, and training on the
vectors takes seconds where the images would take hours."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catlip.data.batches import Batch, CaptionBatches
from catlip.data.dataset import Dataset, Sample


class Vectors(Dataset):
    """A dataset of pooled vectors with the captions of their images; a sample has its vector in `metadata`."""

    def __init__(self, dataset: Dataset, keys: list[str], captions: list[list[str]], pooled: Tensor) -> None:
        """dataset: the images. keys, captions, pooled float32 [N, D]: of those of them that are here."""
        self.dataset, self._keys, self.texts, self.pooled = dataset, keys, captions, pooled
        self.name, self.troubles = dataset.name, dataset.troubles
        self.described = f"{len(keys):,} images with {sum(map(len, captions)):,} captions"

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._keys[index], b"", self.texts[index], metadata={"pooled": self.pooled[index]})

    def keys(self) -> Iterator[str]:
        return iter(self._keys)

    def captions(self) -> Iterator[list[str]]:
        return iter(self.texts)

    def fingerprint(self) -> list[Any]:
        return [*self.dataset.fingerprint(), len(self)]


@dataclass(slots=True)
class VectorBatch(Batch):
    """B captioned images as vectors; `image` is a pixel each, and means nothing."""

    pooled: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # float32 [B, D]

    def _slice(self, low: int, high: int) -> Batch:
        # Not super(): `slots=True` makes a new class, so a bare super() refers to the wrong one.
        return replace(Batch._slice(self, low, high), pooled=self.pooled[low:high])


class VectorBatches(CaptionBatches):
    """Vectors of images, with the classes that their captions name and the tokens of one caption, drawn every epoch."""

    def picture(self, record: Sample, draws: list[float], out: Tensor) -> Tensor:
        return record.metadata["pooled"]

    def batch(self, image: Tensor, flip: Tensor, records: list[Sample], beside: list[Any], draws: np.ndarray) -> Batch:
        found = super().batch(image, flip, records, beside, draws)
        return VectorBatch(**{one.name: getattr(found, one.name) for one in fields(found)}, pooled=torch.stack(beside))
