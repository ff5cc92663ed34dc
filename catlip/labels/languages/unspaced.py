"""Languages without spaces between words: the longest word that the tables know, then the next, from left to right."""

from collections.abc import Callable, Iterable

import numpy as np

_BASE = np.uint64(0x9E3779B97F4A7C15)
_UNMET, _OWN, _OTHER = 0, 1, 2


class WordCutter:
    """Text -> the same with a space before each word.

    words: all that are known. writes: whether a letter is of the language's script; a run of others stays one word,
        unless a word begins with it (the T of T恤), and a letter that begins no word is one by itself.
    """

    def __init__(self, words: Iterable[str], writes: Callable[[str], bool]) -> None:
        self._writes = writes
        self._script = np.zeros(0x110000, np.uint8)  # of each code point, as far as they were met
        by_length: dict[int, set[str]] = {}
        for word in words:
            if len(word) > 1 and " " not in word:
                by_length.setdefault(len(word), set()).add(word.lower())
        self._hashes = {
            length: np.sort(_windows(_codes("".join(some)), length)[::length]) for length, some in by_length.items()
        }

    def __call__(self, text: str) -> str:
        codes = _codes(text)
        own = self._is_own(codes)
        # How far it is to the next word: past a run of other letters, one letter, or a word.
        position = np.arange(len(codes) + 1)
        begins = np.append(own, True)
        begins[1:-1] |= codes[:-1] == ord(" ")
        following = np.minimum.accumulate(np.where(begins, position, len(codes))[::-1])[::-1][1:]
        steps = np.where(own, 1, following - position[:-1])
        for length, known in sorted(self._hashes.items()):
            found = _windows(codes, length)
            places = np.minimum(np.searchsorted(known, found), len(known) - 1)
            steps[np.flatnonzero(known[places] == found)] = length
        starts, start, lengths = [], 0, steps.tolist()
        while start < len(lengths):
            starts.append(start)
            start += lengths[start]
        return np.insert(codes, starts, ord(" ")).tobytes().decode("utf-32-le")

    def _is_own(self, codes: np.ndarray) -> np.ndarray:
        for code in np.unique(codes[self._script[codes] == _UNMET]).tolist():
            self._script[code] = _OWN if self._writes(chr(code)) else _OTHER
        return self._script[codes] == _OWN


def _codes(text: str) -> np.ndarray:
    """uint32 [letters]."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _windows(codes: np.ndarray, length: int) -> np.ndarray:
    """uint64 [letters - length + 1]: a hash of each window of so many letters."""
    hashes = codes[: max(len(codes) - length + 1, 0)].astype(np.uint64)
    for i in range(1, length):
        hashes = hashes * _BASE + codes[i : i + len(hashes)]
    return hashes
