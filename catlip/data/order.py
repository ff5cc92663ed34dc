"""The order of samples: a pure function of (seed, place), computed and never stored.

Place p belongs to epoch p // length, and a keyed permutation of the epoch says which sample stands there. So the whole
state of the data is one integer, samples seen; processes, workers and shards have no say in it. Numbers drawn for a
sample's augmentation are functions of (seed, place) too.

A source that is fetched piece by piece (remote shards, Parquet with pictures inside) is shuffled in two steps instead:
its shards, and then the samples of a few neighbouring shards at a time, so that the cache needs to hold only those.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from catlip.errors import UsageError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_DRAWS = np.uint64(0x2545F4914F6CDD1D)  # apart from the permutation's keys


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


class Order:
    """Which sample stands at which place, over one source or a weighted mixture of several."""

    def __init__(
        self, parts: Sequence[tuple[int, float]], seed: int, shards: Sequence[int] = (), window: int = 0
    ) -> None:
        """parts: (samples, weight) of each source, in the order in which they are numbered.

        shards, window: with window > 0, samples are shuffled within runs of shards that hold at least `window`
        samples; shards are the sizes of all shards, in order. Raises UsageError for a weight that windows cannot have.
        """
        self.seed, self.window = seed, window
        self.sizes = [n for n, _ in parts]
        self.seen = [max(1, round(n * weight)) for n, weight in parts]  # samples of each source an epoch
        self.length = sum(self.seen)
        self._first = np.cumsum([0, *self.sizes])
        self._bounds = np.cumsum([0, *self.seen])
        if window:
            if any(weight != round(weight) for _, weight in parts):
                raise UsageError(
                    "weights of sources that are fetched piece by piece are whole numbers (a@2, not a@1.5)"
                )
            owner = np.searchsorted(self._first, np.cumsum([0, *shards])[:-1], side="right") - 1
            repeats = np.array([round(weight) for _, weight in parts])[owner]
            self._units = np.repeat(np.arange(len(shards)), repeats)
            self._unit_sizes = np.asarray(shards, dtype=np.int64)[self._units]
            self._unit_first = np.cumsum([0, *shards])[:-1][self._units]

    def samples(self, places: np.ndarray) -> np.ndarray:
        """Sample numbers (over the concatenated sources) at places of the endless sequence: int64, same shape."""
        if self.window:
            return self._windowed(places)
        if len(self.sizes) == 1 and self.seen == self.sizes:
            return samples_at(places, self.length, self.seed)
        # A source's own sequence is endless: what an epoch leaves out of it (weights that are no whole numbers)
        # comes next.
        v = samples_at(places, self.length, self.seed)
        epoch = places // self.length
        part = np.searchsorted(self._bounds, v, side="right") - 1
        found = np.empty(places.shape, np.int64)
        for i, (n, seen) in enumerate(zip(self.sizes, self.seen, strict=True)):
            mine = part == i
            own = epoch[mine] * seen + v[mine] - self._bounds[i]
            found[mine] = self._first[i] + samples_at(own, n, self.seed + i + 1)
        return found

    def _windowed(self, places: np.ndarray) -> np.ndarray:
        found = np.empty(places.shape, np.int64)
        epochs, within = np.divmod(places, self.length)
        for epoch in np.unique(epochs):
            order, starts, windows = self._epoch(int(epoch))
            here = epochs == epoch
            x = within[here]
            number = np.searchsorted(windows, x, side="right") - 1
            at = np.empty(x.shape, np.int64)
            for w in np.unique(number):
                inside = number == w
                low, high = windows[w], windows[w + 1]
                with np.errstate(over="ignore"):
                    key = _key(self.seed ^ 0x57696E64, np.asarray(int(epoch) * len(order) + int(w)))
                at[inside] = low + permute(x[inside] - low, int(high - low), key)
            unit = np.searchsorted(starts, at, side="right") - 1
            found[here] = self._unit_first[order[unit]] + at - starts[unit]
        return found

    @lru_cache(maxsize=4)  # noqa: B019 - one object a run; batches cross at most from one epoch into the next
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(order of the units, first place of each, bounds of the windows) of an epoch."""
        with np.errstate(over="ignore"):
            n = len(self._units)
            order = permute(np.arange(n), n, _key(self.seed, np.asarray(epoch)))
        starts = np.cumsum([0, *self._unit_sizes[order]])
        bounds = [0]
        for end in starts[1:].tolist():
            if end - bounds[-1] >= self.window:
                bounds.append(end)
        if bounds[-1] != starts[-1]:
            bounds[-1 if len(bounds) > 1 else len(bounds) :] = [int(starts[-1])]
        return order, starts[:-1], np.array(bounds)

    def shards_from(self, place: int, windows: int = 2) -> list[int]:
        """Shards of the window at `place` and of the ones after it, in order: what to fetch ahead."""
        if not self.window:
            return []
        epoch, within = divmod(place, self.length)
        order, starts, bounds = self._epoch(epoch)
        first = int(np.searchsorted(bounds, within, side="right")) - 1
        low, high = bounds[first], bounds[min(first + windows, len(bounds) - 1)]
        return [int(self._units[unit]) for unit, start in zip(order, starts, strict=True) if low <= start < high]
