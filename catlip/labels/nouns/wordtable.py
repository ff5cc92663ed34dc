"""All distinct words met so far, judged once, as rows of a table: a batch of captions is a few array operations.

Half the time of labelling went into cutting text into strings and looking each up in a dict. Here a text is an array of
bytes, a word's hash is a difference of two prefix sums (a polynomial modulo 2^64), and all words are looked up at once;
only a word met for the first time becomes a string. Two words of one hash would be taken for each other; among the
10^5 words that are remembered the chance of that is 10^-9.
"""

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import replace

import numpy as np

from catlip.labels import cleaning
from catlip.labels.nouns.negation import TRIGGERS, UNITS
from catlip.labels.nouns.phrases import MAX_PHRASE, PhraseIndex, word_hash
from catlip.labels.nouns.titles import IN_TITLES, MATERIALS, SENTENCE, WEARERS, Role, role_of
from catlip.labels.nouns.words import COMMON_WORDS, FUNCTION_WORDS, Kind, Reading, foreignness, read, word_lists

NO_LABEL, BY_CONTEXT = -1, -2  # instead of a label's number; BY_CONTEXT: the caption decides
MAX_WORDS = 250_000  # then all are forgotten, and judged anew when they come again; web text is full of new ones
ROW = np.dtype(
    [
        ("kind", np.uint8),
        ("form", np.uint8),
        ("score", np.float32),
        ("label", np.int32),
        ("several", bool),  # has more than one close sense
        ("head", np.int32),  # of a phrase: what it is a kind of, or NO_LABEL
        ("carrier", bool),  # names the picture itself ("photo")
        ("foreign", np.int8),  # what it says against the caption being English
        ("trigger", bool),  # what stands near it may be said to be absent
        ("unit", bool),  # of measurement, after a number
        ("role", np.uint8),  # in a title of goods: a `Role`
        ("hash", np.uint32),
        ("singular_hash", np.uint32),
    ],
    align=True,
)
Span = tuple[int, int, int]  # first word of a phrase, end, number of the phrase

_BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
_SPREAD = np.uint64(0xD6E8FEB86659FD93)


class WordTable:
    """Row i of `rows`, and `text` and `reading` i, belong to word, or phrase, number i.

    canonical: synset -> the one that stands for it. heads: whether a phrase also carries what it is a kind of.
    """

    def __init__(
        self, phrases: PhraseIndex, index: Mapping[str, int], canonical: Mapping[str, str], *, heads: bool
    ) -> None:
        self.phrases, self.index, self.lexicon = phrases, index, phrases.lexicon
        self.canonical, self.heads = canonical, heads
        self.text: list[str] = []
        self.key: list[str] = []  # of each, as phrases spell it
        self.reading: list[Reading] = []
        self.rows = np.zeros(4096, ROW)
        self._numbers = WordNumbers(self._add_word)
        self._phrase_numbers: dict[str, int] = {}
        # Two words -> (the number of the phrase that they are or NO_LABEL, what may follow as its third word).
        self._pairs: dict[tuple[int, int], tuple[int, Set[str]]] = {}
        self.end, self.genitive, self.purpose = (int(self.numbers(word)[0]) for word in (cleaning.END, "'s", "for"))

    @property
    def full(self) -> bool:
        """Whether it is time to begin a new table."""
        return max(len(self.reading), len(self._pairs)) > MAX_WORDS

    def numbers(self, text: str) -> np.ndarray:
        """int32 [words]: the number of each word of a text as `cleaning.normalize` makes it."""
        return self._numbers.of(text)

    def tag_words(self, tag: str) -> str:
        """The words of a hashtag."""
        return cleaning.split_hashtag(tag, self._known)

    def _known(self, word: str) -> bool:
        """Whether a hashtag may be cut into this word and others."""
        if word in FUNCTION_WORDS or word in COMMON_WORDS:
            return len(word) > 1
        own = (word,) in self.phrases.terms or self.phrases.knows(word)
        return len(word) > 2 and (own or word in self.lexicon or bool(self.lexicon.singulars(word)))

    def material(self, number: int) -> bool:
        """Whether a word is what something can be made of."""
        synsets = self.reading[number].synsets
        return any(self.lexicon.above(s).keys() & MATERIALS for s in synsets[:1] if self.lexicon.has_synset(s))

    def find_phrases(self, ids: np.ndarray, words: np.ndarray) -> list[Span]:
        """Leftmost longest phrases that can be seen. ids: the number of each word; words: its row."""
        starts = self.phrases.starts(words["hash"], words["singular_hash"])
        spans: list[Span] = []
        done = 0
        for start, first, second in zip(starts.tolist(), ids[starts].tolist(), ids[starts + 1].tolist(), strict=True):
            if start < done:
                continue
            known = self._pairs.get((first, second))
            if known is None:
                nexts = self.phrases.next_words(f"{self.key[first]} {self.key[second]}")
                known = self._pairs[first, second] = self._longest([first, second])[1], nexts
            phrase, nexts = known
            length = 2
            if nexts:
                numbers = ids[start : start + MAX_PHRASE].tolist()
                third = numbers[-1 if len(numbers) < 3 else 2]  # the end of a caption is part of no phrase
                if self.key[third] in nexts or self.reading[third].singular in nexts:
                    length, phrase = self._longest(numbers)
            if phrase != NO_LABEL:
                done = start + length
                spans.append((start, done, phrase))
        return spans

    def _longest(self, numbers: list[int]) -> tuple[int, int]:
        """(words, number) of the longest phrase that the words begin with. Its last word may be a plural."""
        head, found = self.key[numbers[0]], (0, NO_LABEL)
        for length, number in enumerate(numbers[1:], 2):
            text = f"{head} {self.key[number]}"
            for tail in (text, f"{head} {self.reading[number].singular}"):
                phrase = self._phrase_number(tail)
                if phrase != NO_LABEL:
                    found = length, phrase
                    break
            if not self.phrases.next_words(text):
                break
            head = text
        return found

    def _phrase_number(self, text: str) -> int:
        number = self._phrase_numbers.get(text)
        if number is None:
            reading = self.phrases.read(text)
            number = NO_LABEL if reading is None else self._add(text, self._with_head(reading))
            self._phrase_numbers[text] = number
        return number

    def _with_head(self, phrase: Reading) -> Reading:
        """A phrase with the synset of its last word, if the phrase is a kind of it: a tennis ball is a ball."""
        words = phrase.singular.replace("-", "_").split("_")
        if not self.heads or phrase.own or not phrase.synsets or len(words) < 2:
            return phrase
        last = read(self.lexicon, words[-1])
        above = {self._canonical(synset) for synset in self.lexicon.above(phrase.synsets[0])}
        of_last = map(self._canonical, (*last.synsets[:1], *(synset for synset, _ in last.cues)))
        return replace(phrase, head=next((synset for synset in of_last if synset in above), ""))

    def _canonical(self, synset: str) -> str:
        return self.canonical.get(synset, synset)

    def _add_word(self, word: str) -> int:
        reading = read(self.lexicon, word)
        own = self.phrases.terms.get((word,)) or self.phrases.terms.get((reading.singular,))
        if own and reading.kind != Kind.BREAK:
            why = "a term of your own lexicon"
            reading = Reading(reading.kind, word, why, score=math.inf, synsets=own, own=True)
        elif not reading.synsets and word not in self.lexicon:
            phrase = self.phrases.read_closed_up(word)
            if phrase is not None:
                synsets = phrase.synsets if phrase.own else phrase.synsets[:1]
                why = f'"{phrase.singular}" written as one word'
                reading = replace(self._with_head(phrase), singular=word, why=why, score=0.0, synsets=synsets)
        return self._add(word, reading)

    def _add(self, text: str, reading: Reading) -> int:
        number = len(self.reading)
        if number == len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        if self.canonical and not reading.own:
            synsets = tuple(dict.fromkeys(map(self._canonical, reading.synsets)))
            cues = tuple((self._canonical(synset), words) for synset, words in reading.cues)
            reading = replace(reading, synsets=synsets, cues=cues)
        self.text.append(text)
        self.key.append(self._key(text, reading))
        self.reading.append(reading)
        label = self.index[reading.synsets[0]] if reading.synsets else NO_LABEL
        several = len(reading.synsets) > 1
        self.rows[number] = (
            reading.kind,
            reading.form,
            reading.score,
            BY_CONTEXT if reading.cues or (reading.own and several) else label,
            several,
            self.index[reading.head] if reading.head else NO_LABEL,
            reading.singular in word_lists()["carrier"],
            self._foreignness(text, reading),
            text in TRIGGERS,
            text in UNITS,
            self._role(text, reading),
            word_hash(self.key[number]),
            word_hash(reading.singular),
        )
        return number

    def _key(self, text: str, reading: Reading) -> str:
        return text

    def _role(self, text: str, reading: Reading) -> int:
        if reading.kind in SENTENCE:
            return 0 if text in IN_TITLES else Role.SENTENCE
        role = Role.WEARERS if text in WEARERS else 0
        if not reading.own:
            for synset in reading.synsets[:1]:
                role |= role_of(self.lexicon, synset)
            for synset, _ in reading.cues:
                role |= role_of(self.lexicon, synset) & (Role.GOODS | Role.TOOL)
        return role

    def _foreignness(self, text: str, reading: Reading) -> int:
        return foreignness(text, noun=text in self.lexicon or reading.singular in self.lexicon)


class WordNumbers:
    """Word -> number. add: gives the number of a word met for the first time."""

    def __init__(self, add: Callable[[str], int], bits: int = 18) -> None:
        self._add = add
        self._known: dict[int, int] = {}  # hash -> number
        # A cache of it in arrays, a place for each hash; of words that share one, the last that came has it.
        self._bits = bits
        self._hashes = np.zeros(1 << bits, np.uint64)
        self._hashes[0] = 1  # as 0 would belong there
        self._values = np.zeros(1 << bits, np.int32)
        self._powers = self._inverses = np.ones(0, np.uint64)

    def of(self, text: str) -> np.ndarray:
        """int32 [words]: the number of each word of a text whose words are separated by spaces."""
        data = np.frombuffer(text.encode(), np.uint8)
        starts, ends = _bounds(data)
        hashes = self._hash(data, starts, ends)
        places = ((hashes * _SPREAD) >> np.uint64(64 - self._bits)).astype(np.int64)
        numbers = self._values[places]
        missed = np.flatnonzero(self._hashes[places] != hashes)
        for i, key in zip(missed.tolist(), hashes[missed].tolist(), strict=True):
            number = self._known.get(key)
            if number is None:
                number = self._known[key] = self._add(data[starts[i] : ends[i]].tobytes().decode())
            numbers[i] = number
        self._hashes[places[missed]], self._values[places[missed]] = hashes[missed], numbers[missed]
        return numbers

    def _hash(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        if len(self._powers) < len(data):
            self._powers = np.cumprod(np.full(2 * len(data), _BASE, np.uint64))
            self._inverses = np.cumprod(np.full(2 * len(data), pow(_BASE, -1, 1 << 64), np.uint64))
        sums = np.zeros(len(data) + 1, np.uint64)
        np.cumsum((data + np.uint64(1)) * self._powers[: len(data)], out=sums[1:])
        return (sums[ends] - sums[starts]) * self._inverses[starts]


def _bounds(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First byte of each word, and the byte behind its last."""
    inside = np.zeros(len(data) + 2, np.int8)
    inside[1:-1] = data != ord(" ")
    edges = np.diff(inside)
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
