"""Words of a text -> numbers, without a Python string for each word.

Half the time of labelling went into cutting text into strings and looking each up in a dict. Here a text is an array of
bytes; a word's hash is a difference of two prefix sums (a polynomial modulo 2^64), and all words are looked up in an
open-addressing table at once. Only a word met for the first time becomes a string. Two words of one hash would be taken
for each other; among the 10^5 words that are remembered the chance of that is 10^-9.
"""

from collections.abc import Callable

import numpy as np

_BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)


class WordNumbers:
    """Word -> number. `judge` gives (the number of a word met for the first time, whether to remember it)."""

    def __init__(self, judge: Callable[[str], tuple[int, bool]]) -> None:
        self._judge = judge
        self._bits, self._used = 17, 0
        self._keys = np.zeros(1 << self._bits, np.uint64)  # 0: free
        self._values = np.zeros(1 << self._bits, np.int32)
        self._powers, self._inverses = _powers(_BASE, 1 << 12), _powers(_INVERSE, 1 << 12)

    def of(self, text: str) -> np.ndarray:
        """int32 [words]: the number of each word of a text whose words are separated by spaces."""
        data = np.frombuffer(text.encode(), np.uint8)
        starts, ends = _bounds(data)
        hashes = self._hashes(data, starts, ends)
        numbers = self._look_up(hashes)
        new = np.flatnonzero(numbers < 0)
        if len(new):
            _, first = np.unique(hashes[new], return_index=True)
            given: dict[int, int] = {}
            for position in sorted(new[first].tolist()):
                word = data[starts[position] : ends[position]].tobytes().decode()
                given[int(hashes[position])] = self._number(word, np.uint64(hashes[position]))
            numbers[new] = [given[key] for key in hashes[new].tolist()]
        return numbers

    def _number(self, word: str, key: np.uint64) -> int:
        number, remember = self._judge(word)
        if not remember:
            return number
        if 2 * self._used >= len(self._keys):
            self._grow()
        self._insert(key, number)
        return number

    def _hashes(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        while len(self._powers) < len(data):
            self._powers = _powers(_BASE, 2 * len(self._powers))
            self._inverses = _powers(_INVERSE, len(self._powers))
        sums = np.zeros(len(data) + 1, np.uint64)
        np.cumsum((data + np.uint64(1)) * self._powers[: len(data)], out=sums[1:])
        hashes = (sums[ends] - sums[starts]) * self._inverses[starts]
        hashes[hashes == 0] = 1  # 0 marks a free place of the table
        return hashes

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        return ((keys * _SPREAD) >> np.uint64(64 - self._bits)).astype(np.int64)

    def _look_up(self, keys: np.ndarray) -> np.ndarray:
        """Number of each key, -1 if it is not in the table; by linear probing, all keys in step."""
        slots = self._slots(keys)
        found = self._keys[slots]
        numbers = np.where(found == keys, self._values[slots], np.int32(-1))
        open_ = np.flatnonzero((found != keys) & (found != 0))
        while len(open_):
            slots[open_] = (slots[open_] + 1) & (len(self._keys) - 1)
            found = self._keys[slots[open_]]
            hit = found == keys[open_]
            numbers[open_[hit]] = self._values[slots[open_[hit]]]
            open_ = open_[~hit & (found != 0)]
        return numbers

    def _insert(self, key: np.uint64, number: int) -> None:
        slot = int(self._slots(np.array([key]))[0])
        while self._keys[slot]:
            slot = (slot + 1) & (len(self._keys) - 1)
        self._keys[slot], self._values[slot] = key, number
        self._used += 1

    def _grow(self) -> None:
        taken = np.flatnonzero(self._keys)
        keys, values = self._keys[taken], self._values[taken]
        self._bits, self._used = self._bits + 1, 0
        self._keys = np.zeros(1 << self._bits, np.uint64)
        self._values = np.zeros(1 << self._bits, np.int32)
        for key, value in zip(keys, values.tolist(), strict=True):
            self._insert(key, value)


def _bounds(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First byte of each word, and the byte behind its last."""
    inside = np.zeros(len(data) + 2, np.int8)
    inside[1:-1] = data != ord(" ")
    edges = np.diff(inside)
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _powers(base: int, count: int) -> np.ndarray:
    """base^0 ... base^(count - 1) modulo 2^64; count is a power of two."""
    powers = np.ones(1, np.uint64)
    while len(powers) < count:
        step = np.uint64(pow(base, len(powers), 1 << 64))
        powers = np.concatenate([powers, powers * step])
    return powers
