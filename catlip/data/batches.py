"""The order of samples, and batches that can stop and go on anywhere.

Which sample stands at which place is a pure function of (seed, place): place p belongs to epoch p // n, and a keyed
permutation of the n samples, computed and never stored, says which one it is. So the whole state of the data is one
integer, samples seen, and neither processes nor workers nor shards have a say in it. Rank r of w takes every w-th
place, so all ranks make equally many steps and together see every sample once an epoch.

Decoding runs in threads (Pillow releases the GIL); batches are made ahead of the step that needs them.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catlip.captions.labeler import Labeler
from catlip.captions.vocabulary import Vocabulary
from catlip.data.images import Crop, Unreadable, UnreadableImageError, decode_crop
from catlip.data.sources import Source
from catlip.errors import UsageError

AHEAD = 3  # batches in the making


@dataclass(slots=True)
class Batch:
    """What travels from the loader to the objective. B samples, L labels in all; labels stay sparse."""

    image: Tensor  # uint8 [B, 3, H, W]
    flip: Tensor  # bool [B]: mirror this picture
    labels: Tensor  # int64 [sum L]: class indices, ascending within a sample
    offsets: Tensor  # int64 [B + 1]: sample b has labels[offsets[b]:offsets[b + 1]]
    captions: list[list[str]]
    keys: list[str]
    tokens: Tensor | None = None  # int64 [B, T]: one caption a picture, 0-padded; None if the objective reads none

    def to(self, device: torch.device) -> "Batch":
        image, flip = self.image.to(device, non_blocking=True), self.flip.to(device, non_blocking=True)
        labels, offsets = self.labels.to(device, non_blocking=True), self.offsets.to(device, non_blocking=True)
        tokens = None if self.tokens is None else self.tokens.to(device, non_blocking=True)
        return Batch(image, flip, labels, offsets, self.captions, self.keys, tokens)

    def __len__(self) -> int:
        return len(self.keys)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014): every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def samples_at(places: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Sample number at each place of the endless sequence of epochs: int64, same shape as `places`.

    A balanced Feistel network on the next even number of bits permutes the numbers; those that fall outside 0..n-1
    walk on until they are inside (Black & Rogaway 2002), so each epoch is an exact permutation in constant memory.
    """
    places = places.astype(np.uint64)
    epoch, x = places // np.uint64(n), places % np.uint64(n)
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * np.uint64(0x9E3779B97F4A7C15) + _mix(epoch + np.uint64(1)))
        walking = np.ones(x.shape, bool)
        while walking.any():
            left, right = x >> half, x & mask
            for round_ in range(4):
                left, right = right, left ^ (_mix(right + key + np.uint64(round_ * 0x632BE5AB)) & mask)
            x = np.where(walking, left << half | right, x)
            walking = x >= np.uint64(n)
    return x.astype(np.int64)


@dataclass(kw_only=True, slots=True)
class Resolution:
    """Size of the pictures over a run: low first, full at the end (CLIPA, arXiv 2305.07017, on a single schedule)."""

    low_res: int = 0  # pixels during the first part; 0: full size from the start
    low_res_share: float = 0.0  # share of the budget at the low size

    def at(self, seen: int, budget: int, full: int) -> int:
        """Pixels of the batch that follows the first `seen` samples of `budget`."""
        return self.low_res if self.low_res and seen < self.low_res_share * budget else full


class Batches:
    """Endless batches of one rank, from any place on."""

    def __init__(
        self, source: Source, vocabulary: Vocabulary, labeler: Labeler, *, batch_size: int, image_size: int,
        crop: Crop, seed: int, workers: int, resolution: Resolution, budget: int, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        """batch_size: of all ranks together; a multiple of `world`."""
        if batch_size % world:
            raise UsageError(f"--batch-size {batch_size} is no multiple of the {world} processes")
        self.source, self.vocabulary, self.labeler = source, vocabulary, labeler
        self.batch_size, self.image_size, self.crop, self.seed = batch_size, image_size, crop, seed
        self.resolution, self.budget = resolution, budget
        self.rank, self.world = rank, world
        self.unreadable = Unreadable()
        self._classes = vocabulary.classes_of(labeler)
        self._workers = max(1, workers)

    def from_sample(self, seen: int) -> Iterator[Batch]:
        """Batches from the one that follows the first `seen` samples of all ranks together."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as pool:
            coming: deque[tuple[np.ndarray, np.ndarray, list[Future[list[_Decoded]]]]] = deque()
            try:
                while True:
                    while len(coming) < AHEAD:
                        coming.append(self._begin(pool, seen))
                        seen += self.batch_size
                    places, samples, parts = coming.popleft()
                    met = min(int(places[-1]) + 1, len(self.source))
                    yield self._finish(samples, [d for part in parts for d in part.result()], met)
            finally:
                for _, _, parts in coming:
                    for part in parts:
                        part.cancel()

    def _begin(self, pool: ThreadPoolExecutor, seen: int) -> tuple[np.ndarray, np.ndarray, list[Future]]:
        places = np.arange(seen + self.rank, seen + self.batch_size, self.world)
        samples = samples_at(places, len(self.source), self.seed)
        size = self.resolution.at(seen, self.budget, self.image_size)
        parts = np.array_split(np.arange(len(places)), min(len(places), 4 * self._workers))
        return places, samples, [pool.submit(self._decode, places[part], samples[part], size) for part in parts]

    def _decode(self, places: np.ndarray, samples: np.ndarray, size: int) -> list["_Decoded"]:
        decoded = []
        for place, sample in zip(places.tolist(), samples.tolist(), strict=True):
            record = self.source.read(sample)
            random = np.random.Generator(np.random.Philox(key=self.seed, counter=place << 64))
            flip = bool(random.random() < 0.5)
            try:
                pixels, why = decode_crop(record.image, size, self.crop, random), None
            except UnreadableImageError as error:
                pixels, why = None, str(error)
            decoded.append(_Decoded(record.key, record.captions, pixels, flip, why))
        return decoded

    def _finish(self, samples: np.ndarray, decoded: list["_Decoded"], met: int) -> Batch:
        for d in decoded:
            if d.why is not None:
                self.unreadable.add(d.key, d.why)
        self.unreadable.check(max(met, min(1000, len(self.source))))
        good = [d for d in decoded if d.pixels is not None]
        if not good:
            raise UsageError(f"not one picture of a batch of {len(samples)} can be read: {decoded[0].why}")
        rows = np.repeat(np.arange(len(good)), [len(d.captions) for d in good])
        indices, offsets = self.labeler.sparse([c for d in good for c in d.captions], rows)
        labels, bounds = to_classes(indices, offsets, self._classes, len(good))
        pixels = torch.from_numpy(np.stack([d.pixels for d in good if d.pixels is not None]))
        return Batch(
            image=pixels.permute(0, 3, 1, 2),  # a view: channels_last, as convolutions like it
            flip=torch.tensor([d.flip for d in good]),
            labels=torch.from_numpy(labels),
            offsets=torch.from_numpy(bounds),
            captions=[d.captions for d in good],
            keys=[d.key for d in good],
        )


@dataclass(frozen=True, slots=True)
class _Decoded:
    key: str
    captions: list[str]
    pixels: np.ndarray | None
    flip: bool
    why: str | None


def to_classes(
    indices: np.ndarray, offsets: np.ndarray, classes: np.ndarray, n_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a labeler -> classes of a vocabulary; labels outside it fall away. int64 [sum L], int64 [rows + 1]."""
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    found = classes[indices]
    row, found = row[found >= 0], found[found >= 0]
    order = np.lexsort((found, row))
    return found[order].astype(np.int64), np.searchsorted(row, np.arange(n_rows + 1)).astype(np.int64)
