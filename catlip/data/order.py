"""The order of samples: a pure function of (seed, place), computed and never stored.

Place p belongs to epoch p // length, and a keyed permutation of the epoch says which sample stands there. So the whole
state of the data is one integer, samples seen; processes, workers and shards have no say in it. Numbers drawn for a
sample's augmentation are functions of (seed, place) too.

Samples may have a probability each of being in an epoch (`Thinned`); which epoch holds which is such a function too.

A source that is fetched piece by piece (remote shards, Parquet with pictures inside) is shuffled in two steps instead:
its shards, and then the samples of a few neighbouring shards at a time, so that the cache needs to hold only those.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from catlip.errors import UsageError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_DRAWS = np.uint64(0x2545F4914F6CDD1D)  # apart from the permutation's keys
SCALE = 1 << 20  # the length of a sample that is in every epoch
STRIDE = 648_055  # SCALE over the golden ratio, odd: whatever the number of epochs, the offsets lie evenly


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014): every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(seed: int, number: np.ndarray) -> np.ndarray:
    return _mix(np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * _GOLDEN + _mix(number.astype(np.uint64) + np.uint64(1)))


def permute(x: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where each x of 0..n-1 stands in the permutation that `key` (uint64, one for all or one for each x) names.

    A balanced Feistel network on the next even number of bits permutes the numbers; those that fall outside 0..n-1
    walk on until they are inside (Black & Rogaway 2002), so it is an exact permutation in constant memory.
    """
    x = x.astype(np.uint64)
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    walking = np.ones(x.shape, bool)
    while walking.any():
        left, right = x >> half, x & mask
        for round_ in range(4):
            left, right = right, left ^ (_mix(right + key + np.uint64(round_ * 0x632BE5AB)) & mask)
        x = np.where(walking, left << half | right, x)
        walking = x >= np.uint64(n)
    return x.astype(np.int64)


def samples_at(places: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Sample number at each place of the endless sequence of epochs of n samples: int64, same shape as `places`."""
    with np.errstate(over="ignore"):
        epoch, x = np.divmod(places.astype(np.uint64), np.uint64(n))
        return permute(x, n, _key(seed, epoch))


def uniforms(places: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` random numbers for each place: float64 [len(places), count] in [0, 1)."""
    with np.errstate(over="ignore"):
        base = _mix(_key(seed, places) ^ _DRAWS)[:, None]
        bits = _mix(base + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)[None])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Weighted:
    """Sources with a weight each: an epoch holds so many times the samples of one.

    A source's own sequence is endless: what an epoch leaves out of it (weights that are no whole numbers) comes next.
    """

    def __init__(self, parts: Sequence[tuple[int, float]], seed: int) -> None:
        """parts: (samples, weight) of each source."""
        self.seed = seed
        self.sizes = [n for n, _ in parts]
        self.seen = [max(1, round(n * weight)) for n, weight in parts]  # samples of each source an epoch
        self.length = sum(self.seen)
        self._first = np.cumsum([0, *self.sizes])
        self._bounds = np.cumsum([0, *self.seen])

    def samples(self, epochs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The samples with these numbers, 0..length - 1, in these epochs: int64, of the same shape."""
        if len(self.sizes) == 1 and self.seen == self.sizes:
            return numbers
        part = np.searchsorted(self._bounds, numbers, side="right") - 1
        found = np.empty(numbers.shape, np.int64)
        for i, (n, seen) in enumerate(zip(self.sizes, self.seen, strict=True)):
            mine = part == i
            own = epochs[mine] * seen + numbers[mine] - self._bounds[i]
            found[mine] = self._first[i] + samples_at(own, n, self.seed + i + 1)
        return found


class Repeated:
    """Shards of sources with whole weights, each so often in every epoch."""

    def __init__(self, parts: Sequence[tuple[int, float]], shards: Sequence[int]) -> None:
        """parts: (samples, weight) of each source. shards: their sizes. Raises UsageError for other weights."""
        if any(weight != round(weight) for _, weight in parts):
            raise UsageError("weights of sources that are fetched piece by piece are whole numbers (a@2, not a@1.5)")
        begins = np.cumsum([0, *shards])[:-1]
        owner = np.searchsorted(np.cumsum([0, *(n for n, _ in parts)]), begins, side="right") - 1
        self.shards = np.repeat(np.arange(len(shards)), np.array([round(weight) for _, weight in parts])[owner])
        self._first = begins[self.shards]
        self._bounds = np.cumsum([0, *np.asarray(shards, np.int64)[self.shards]])
        self.length = int(self._bounds[-1])

    def samples(self, epochs: Any, numbers: np.ndarray) -> np.ndarray:
        """As of `Weighted`; the samples of a shard have successive numbers."""
        unit = np.searchsorted(self._bounds, numbers, side="right") - 1
        return self._first[unit] + numbers - self._bounds[unit]

    def bounds(self, epoch: int) -> np.ndarray:
        """int64 [shards + 1], repeated ones too: the number of the first sample of each, and the length."""
        return self._bounds


class Thinned:
    """Systematic sampling: a sample of weight .3 is in three of ten epochs, evenly spread; all epochs are equally long.

    Samples lie on a line, each as long as its weight, and epoch e takes those that stand at its points: `SCALE` apart,
    from an offset that moves by the golden ratio. So over E epochs a sample comes weight * E times up to a few, and one
    of a weight up to 1 never twice in an epoch. All is integer arithmetic: the same on every machine.
    """

    def __init__(self, weights: np.ndarray, seed: int, shards: Sequence[int] = ()) -> None:
        """weights: float [N], 0 or more: how often a sample is in an epoch, on average. shards: their sizes.

        Raises UsageError if an epoch would hold no sample.
        """
        ends = np.concatenate([[0], np.cumsum(np.rint(np.asarray(weights, np.float64) * SCALE).astype(np.int64))])
        total = int(ends[-1])
        self.length = total // SCALE
        if not self.length:
            raise UsageError("the weights of all samples together are below 1: an epoch would hold no sample")
        # What is too much for a whole number of samples is taken from all alike.
        self.ends = ends - np.floor(ends * ((total - self.length * SCALE) / total)).astype(np.int64)
        self.ends[-1] = self.length * SCALE
        self.shards = np.arange(len(shards))
        self._begins = np.cumsum([0, *shards])
        with np.errstate(over="ignore"):
            self._start = int(_key(seed, np.asarray(0)) % np.uint64(SCALE))

    def _offset(self, epoch: Any) -> Any:
        return (self._start + epoch * STRIDE) % SCALE

    def samples(self, epochs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """As of `Weighted`: the samples at the points of these numbers, ascending with them."""
        return np.searchsorted(self.ends, self._offset(epochs) + numbers * SCALE, side="right") - 1

    def bounds(self, epoch: int) -> np.ndarray:
        """As of `Repeated`: how many points of the epoch come before each shard."""
        return -((self._offset(epoch) - self.ends[self._begins]) // SCALE)


class Epoch(NamedTuple):
    """How the shards of an epoch lie, one behind the other, and within which bounds their samples are shuffled."""

    shards: np.ndarray  # int64 [shards]: their numbers, in the order of this epoch
    starts: np.ndarray  # int64 [shards]: the place at which each begins
    windows: np.ndarray  # int64 [windows + 1]: places
    firsts: np.ndarray  # int64 [shards]: the number of each one's first sample


class Order:
    """Which sample stands at which place: an epoch's samples have numbers, and these are shuffled."""

    def __init__(
        self,
        parts: Sequence[tuple[int, float]],
        seed: int,
        shards: Sequence[int] = (),
        window: int = 0,
        keep: np.ndarray | None = None,
    ) -> None:
        """parts: (samples, weight) of each source, in the order in which they are numbered.

        shards, window: with window > 0, samples are shuffled within runs of shards that hold at least `window`
        samples; shards are the sizes of all shards, in order. keep: float [N], how often each sample is in an epoch, on
        average; its source's weight multiplies it. Raises UsageError for a weight that windows cannot have, and if
        nothing is kept.
        """
        self.seed, self.window = seed, window
        if keep is not None:
            weights = np.repeat([weight for _, weight in parts], [n for n, _ in parts])
            self._epochs = Thinned(keep * weights, seed, shards)
        else:
            self._epochs = Repeated(parts, shards) if window else Weighted(parts, seed)
        self.length = self._epochs.length

    def samples(self, places: np.ndarray) -> np.ndarray:
        """Sample numbers (over the concatenated sources) at places of the endless sequence: int64, same shape."""
        numbers = self._windowed(places) if self.window else samples_at(places, self.length, self.seed)
        return self._epochs.samples(places // self.length, numbers)

    def _windowed(self, places: np.ndarray) -> np.ndarray:
        """Numbers within the epoch."""
        found = np.empty(places.shape, np.int64)
        epochs, within = np.divmod(places, self.length)
        for epoch in np.unique(epochs):
            shards, starts, windows, firsts = self._epoch(int(epoch))
            here = epochs == epoch
            x = within[here]
            number = np.searchsorted(windows, x, side="right") - 1
            at = np.empty(x.shape, np.int64)
            for w in np.unique(number):
                inside = number == w
                low, high = windows[w], windows[w + 1]
                with np.errstate(over="ignore"):
                    key = _key(self.seed ^ 0x57696E64, np.asarray(int(epoch) * len(shards) + int(w)))
                at[inside] = low + permute(x[inside] - low, int(high - low), key)
            unit = np.searchsorted(starts, at, side="right") - 1
            found[here] = firsts[unit] + at - starts[unit]
        return found

    @lru_cache(maxsize=4)  # noqa: B019 - one object a run; batches cross at most from one epoch into the next
    def _epoch(self, epoch: int) -> Epoch:
        assert not isinstance(self._epochs, Weighted)  # windows have shards
        numbers = self._epochs.bounds(epoch)
        n = len(numbers) - 1
        with np.errstate(over="ignore"):
            order = permute(np.arange(n), n, _key(self.seed, np.asarray(epoch)))
        starts = np.cumsum([0, *np.diff(numbers)[order]])
        windows = [0]
        for end in starts[1:].tolist():
            if end - windows[-1] >= self.window:
                windows.append(end)
        if windows[-1] != starts[-1]:  # the last one takes what is left
            windows = [*(windows[:-1] or windows), int(starts[-1])]
        return Epoch(order, starts[:-1], np.array(windows), numbers[:-1][order])

    def shards_from(self, place: int, windows: int = 2) -> list[int]:
        """Shards of the window at `place` and of the ones after it, in order: what to fetch ahead."""
        if isinstance(self._epochs, Weighted) or not self.window:
            return []
        epoch, within = divmod(place, self.length)
        found = self._epoch(epoch)
        first = int(np.searchsorted(found.windows, within, side="right")) - 1
        low, high = found.windows[first], found.windows[min(first + windows, len(found.windows) - 1)]
        return self._epochs.shards[found.shards[(low <= found.starts) & (found.starts < high)]].tolist()
