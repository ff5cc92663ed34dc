"""Batches: what travels from the data to the objective, each one a pure function of its step's number."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from catlip.data.crops import DRAWS, CropConfig, decode_crop
from catlip.data.dataset import Dataset, Sample
from catlip.data.images import UnreadableImageError
from catlip.data.order import Order, uniforms
from catlip.data.steps import Step, Steps
from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.tokenizer import Tokenizer
from catlip.labels.vocabulary import Vocabulary, classes_in

if TYPE_CHECKING:
    from catlip.data.sentences import SentenceStore


@dataclass(slots=True)
class Cost:
    """What a batch cost its maker."""

    seconds: float = 0.0  # of one worker
    bytes: int = 0  # encoded
    samples: int = 0  # met, the unreadable ones among them


@dataclass(slots=True)
class Batch:
    """B samples, L labels in all; labels stay sparse."""

    image: Tensor  # uint8 [B, 3, H, W] from the loader; float in the encoder's input space for the objective
    flip: Tensor  # bool [B]: mirror this picture
    labels: Tensor  # int64 [sum L]: class indices, ascending within a sample
    offsets: Tensor  # int64 [B + 1]: sample b has labels[offsets[b]:offsets[b + 1]]
    captions: list[list[str]]
    keys: list[str]
    tokens: Tensor | None = None  # int64 [B, T]: one caption of each picture, for objectives with a text tower
    sentences: Tensor | None = None  # float32 [B, E]: frozen embedding of each picture's captions; zeros: it has none
    step: Step | None = None
    unreadable: dict[str, str] = field(default_factory=dict)  # key -> why, of the samples left out
    cost: Cost = field(default_factory=Cost)

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in found.items() if isinstance(value, Tensor)})

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of at most `size` samples, in order; views, not copies. Where a single one would be
        left, which is too few for BatchNorm, all have about the same size instead."""
        count = -(-len(self) // size)
        if count <= 1:
            return [self]
        bounds = [*range(0, len(self), size), len(self)]
        if len(self) % size == 1:
            bounds = [len(self) * part // count for part in range(count + 1)]
        return [self._slice(low, high) for low, high in pairwise(bounds)]

    def _slice(self, low: int, high: int) -> "Batch":
        first, last = int(self.offsets[low]), int(self.offsets[high])
        return replace(
            self,
            image=self.image[low:high],
            flip=self.flip[low:high],
            labels=self.labels[first:last],
            offsets=self.offsets[low : high + 1] - first,
            captions=self.captions[low:high],
            keys=self.keys[low:high],
            tokens=None if self.tokens is None else self.tokens[low:high],
            sentences=None if self.sentences is None else self.sentences[low:high],
        )

    def __len__(self) -> int:
        return len(self.keys)


class Batches(ABC):
    """One rank's share of every step: rank r of w takes every w-th place, so all ranks take equally many steps and
    together see every sample of an epoch once, whatever w is.

    What a picture is cut to, and what travels beside it, is up to a subclass; order, resumption and the treatment of
    unreadable pictures are the same for all.
    """

    def __init__(self, source: Dataset, order: Order, steps: Steps, *, rank: int = 0, world: int = 1) -> None:
        self.source, self.order, self.steps = source, order, steps
        self.rank, self.world = rank, world

    @abstractmethod
    def picture(self, record: Sample, draws: list[float], out: Tensor) -> Any:
        """Fill `out`, uint8 [3, size, size], from a record; what has to travel beside it.

        draws: DRAWS + 1 random numbers in [0, 1) of the sample's place; the first below 0.5 means that the task will
        mirror the picture. Raises UnreadableImageError.
        """

    @abstractmethod
    def batch(self, image: Tensor, flip: Tensor, records: list[Sample], beside: list[Any], draws: np.ndarray) -> Batch:
        """A batch of the records that could be read. beside: what `picture` returned; draws [B, DRAWS + 1]."""

    def places(self, step: Step) -> np.ndarray:
        """This rank's places of a step."""
        return np.arange(step.start + self.rank, step.start + step.batch, self.world)

    def keys(self, number: int) -> list[str]:
        """Keys of a step's samples on this rank, without decoding anything."""
        samples = self.order.samples(self.places(self.steps[number]))
        return [self.source[int(sample)].key for sample in samples]

    def __getitem__(self, number: int) -> Batch:
        return self.make(number)

    def largest(self) -> int:
        """Bytes of the pictures of the largest batch."""
        return max(-(-batch // self.world) * 3 * size**2 for batch, size in self.steps.shapes())

    def make(self, number: int, memory: Tensor | None = None) -> Batch:
        """The batch of a step, its pictures in `memory` (uint8, flat) if that is given.

        Raises UsageError if not one picture of the batch can be read.
        """
        began, step = time.perf_counter(), self.steps[number]
        places = self.places(step)
        if self.order.window:
            self.source.prefetch(self.order.shards_from(int(places[-1])))
        draws = uniforms(places, DRAWS + 1, self.order.seed)
        records, beside, kept, unreadable, encoded = [], [], [], {}, 0
        shape = (len(places), step.size, step.size, 3)
        pixels = torch.empty(shape, dtype=torch.uint8) if memory is None else memory[: math.prod(shape)].view(shape)
        pixels = pixels.permute(0, 3, 1, 2)  # channels last, as convolutions like it
        for row, sample in enumerate(self.order.samples(places).tolist()):
            record = self.source[sample]
            if not isinstance(record, Sample) or not isinstance(record.captions, list | tuple):
                what = "captions that are no list" if isinstance(record, Sample) else f"a {type(record).__name__}"
                raise UsageError(
                    f"`data` {self.source.name} gives {what}; it is a catlip.Sample with a list of captions"
                )
            encoded += len(record.image) if isinstance(record.image, bytes) else 0
            try:
                beside.append(self.picture(record, draws[row].tolist(), pixels[len(kept)]))
            except UnreadableImageError as error:
                unreadable[record.key] = str(error)
                continue
            records.append(record)
            kept.append(row)
        if not records:
            raise UsageError(
                f"not one picture of a batch of {len(places)} can be read: "
                f"{', '.join(': '.join(one) for one in list(unreadable.items())[:1])}"
            )
        flip = torch.from_numpy(draws[kept, 0] < 0.5)
        batch = self.batch(pixels[: len(kept)], flip, records, beside, draws[kept])
        cost = Cost(time.perf_counter() - began, encoded, len(places))
        return replace(batch, step=step, unreadable=unreadable, cost=cost)


class CaptionBatches(Batches):
    """Random crops of captioned pictures, with the classes, tokens and embeddings of their captions."""

    def __init__(
        self,
        source: Dataset,
        order: Order,
        steps: Steps,
        *,
        vocabulary: Vocabulary,
        labeler: Labeler,
        crop: CropConfig,
        tokenizer: Tokenizer | None = None,
        sentences: "SentenceStore | None" = None,
        mean: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """sentences: where the captions' embeddings are; mean: that of all captions of a picture, or of one drawn."""
        super().__init__(source, order, steps, rank=rank, world=world)
        self.crop, self.labeler, self.tokenizer = crop, labeler, tokenizer
        self.sentences, self.mean = sentences, mean
        self._classes = vocabulary.classes_of(labeler)

    def picture(self, record: Sample, draws: list[float], out: Tensor) -> None:
        decode_crop(record.image, self.crop, draws, out)

    def batch(self, image: Tensor, flip: Tensor, records: list[Sample], beside: list[Any], draws: np.ndarray) -> Batch:
        labels, offsets = self._labels(records)
        captions, sentences = [record.captions for record in records], None
        if self.sentences is not None:
            sentences = torch.from_numpy(self.sentences(captions, None if self.mean else draws[:, -1]))
        return Batch(
            image,
            flip,
            labels,
            offsets,
            captions=captions,
            keys=[record.key for record in records],
            tokens=drawn_tokens(self.tokenizer, records, draws[:, -1]) if self.tokenizer else None,
            sentences=sentences,
        )

    def _labels(self, records: list[Sample]) -> tuple[Tensor, Tensor]:
        """Classes that any of a picture's captions names."""
        labels, bounds = classes_in([record.captions for record in records], self.labeler, self._classes)
        return torch.from_numpy(labels), torch.from_numpy(bounds)


class ClassBatches(Batches):
    """Random crops of labelled pictures (a dataset with classes), with their classes."""

    def __init__(
        self, source: Dataset, order: Order, steps: Steps, *, crop: CropConfig, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(source, order, steps, rank=rank, world=world)
        self.crop = crop

    def picture(self, record: Sample, draws: list[float], out: Tensor) -> tuple[int, ...]:
        decode_crop(record.image, self.crop, draws, out)
        return record.target

    def batch(self, image: Tensor, flip: Tensor, records: list[Sample], beside: list[Any], draws: np.ndarray) -> Batch:
        labels = np.array([label for classes in beside for label in classes], np.int64)
        offsets = np.cumsum([0, *map(len, beside)], dtype=np.int64)
        return Batch(
            image,
            flip,
            torch.from_numpy(labels),
            torch.from_numpy(offsets),
            captions=[[]] * len(records),
            keys=[record.key for record in records],
        )


def drawn_tokens(tokenizer: Tokenizer, records: list[Sample], draws: np.ndarray) -> Tensor:
    """int64 [B, T]: tokens of one caption of each image, chosen by its random number; of "" where it has none."""
    pairs = zip(records, draws, strict=True)
    tokens = tokenizer([r.captions[int(draw * len(r.captions))] if r.captions else "" for r, draw in pairs])
    # No step pays for padding that none of its captions needs.
    return torch.from_numpy(tokens[:, : max(1, int((tokens != 0).sum(1).max()))])
