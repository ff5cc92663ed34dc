"""Multi-word entries of WordNet in running text: the longest that starts at a word, if it can be seen.

Sixty thousand entries are indexed by the hashes of their first two words in one bit table, so that nearly all pairs of
words are dismissed in a few array operations; the few that are left are looked up as text.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from catlip.labels import cleaning
from catlip.labels.readings import CLOSED, THRESHOLD, close_meanings, weigh, word_lists
from catlip.labels.wordnet import Lexicon

NO_LABEL, BY_CONTEXT = -1, -2  # instead of a label's number
MAX_PHRASE = 6  # words
MAX_CACHED = 100_000  # pairs of words that only look like the start of an entry; web text is full of them


@dataclass(frozen=True, slots=True)
class Phrase:
    """What a multi-word entry stands for."""

    label: int
    several: tuple[int, ...]  # all close meanings, if there is more than one
    lemma: str


Span = tuple[int, int, Phrase]  # first word, end, what it is


def word_hash(word: str) -> int:
    return hash(word) & 0xFFFFFFFF


class Phrases:
    """text, singular: of the word of a number; the singular for plurals at the end of a phrase (fire hydrants)."""

    def __init__(
        self,
        lexicon: Lexicon,
        index: dict[str, int],
        terms: dict[tuple[str, ...], tuple[str, ...]],
        text: Callable[[int], str],
        singular: Callable[[int], str],
    ) -> None:
        self.lexicon, self.index, self.terms = lexicon, index, terms
        self.text, self.singular = text, singular
        self._judged: dict[str, Phrase | None] = {}
        # Two words -> (what may follow as the third word of an entry, the entry that the two are themselves).
        self._pairs: dict[tuple[int, int], tuple[frozenset[str], Phrase | None]] = {}
        self._entries: dict[str, str] = {}  # "fire hydrant" -> lemma "fire_hydrant"
        self._longest: dict[str, int] = {}  # "fire hydrant" -> words of the longest entry that starts so
        self._thirds: dict[str, set[str]] = {}  # "hot air" -> {"balloon", "gun"}
        self._closed_up: dict[str, str] = {}  # "tshirt" -> "t shirt"
        self._open()

    def _open(self) -> None:
        """Index every entry of two or more words by its first two."""
        plain: list[str] = []
        skip = word_lists()["not-a-phrase"]
        for lemma in self.lexicon.lemmas:
            if "_" not in lemma and "-" not in lemma and "'" not in lemma:
                plain.append(lemma)
                continue
            text = lemma.replace("_", " ").replace("-", " ").replace(".", "")
            if "'" in text or "/" in text:
                text = " ".join(cleaning.normal(text))
            if text.split(" ", 1)[0] not in CLOSED and text not in skip and not text.endswith(" 's"):
                self._enter(text, lemma)
        for text in (*word_lists()["sense"], *word_lists()["never"]):
            if " " in text:
                self._enter(text, text)
        for words in self.terms:
            if len(words) > 1:
                self._enter(" ".join(words), "")
        self._enter_split_compounds(plain, skip)
        pairs = [pair.split(" ", 1) for pair in self._longest]
        self._parts = {word for text in self._entries for word in text.split(" ")}
        first = np.array([word_hash(a) for a, _ in pairs], np.uint32)
        second = np.array([word_hash(b) for _, b in pairs], np.uint32)
        self._may_start = np.zeros(1 << 22, bool)
        self._may_start[self._slot(first, second)] = True

    def _enter(self, text: str, lemma: str) -> None:
        words = text.split(" ")
        if not 1 < len(words) <= MAX_PHRASE:
            return
        self._entries.setdefault(text, lemma)
        pair = f"{words[0]} {words[1]}"
        self._longest[pair] = max(self._longest.get(pair, 0), len(words))
        if len(words) > 2:
            self._thirds.setdefault(pair, set()).add(words[2])
        if len(words) == 2:
            self._closed_up.setdefault(words[0] + words[1], text)

    def _enter_split_compounds(self, plain: list[str], skip: Collection[str]) -> None:
        """Closed compounds that people write apart: "skate board", "mouse pad"; `_judge_phrase` wants them visible."""
        known = set(plain)
        nouns = {w for w in known if w not in CLOSED and self._rather_noun(w)}  # no long beard
        for lemma in plain:
            if len(lemma) < 7 or not lemma.isalpha():
                continue
            for cut in range(3, len(lemma) - 2):
                head, tail = lemma[:cut], lemma[cut:]
                if head in nouns and tail in known and tail not in CLOSED:
                    text = f"{head} {tail}"
                    senses = self.lexicon.senses(lemma)  # not of towns: Cape Town has its space, Manchester none
                    thing = any(not s.capitalised or self.lexicon.synset(s.synset).pictured for s in senses)
                    if thing and text not in skip:
                        self._entries.setdefault(text, lemma)
                        self._longest.setdefault(text, 2)
                    break

    def _rather_noun(self, word: str) -> bool:
        others = self.lexicon.other_readings(word)
        return "a" not in others or others["a"] < sum(sense.count for sense in self.lexicon.senses(word))

    @staticmethod
    def _slot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (first * np.uint32(0x9E3779B1) ^ second * np.uint32(0x85EBCA6B)) >> np.uint32(10)

    def find(self, ids: np.ndarray, key: np.ndarray, key_singular: np.ndarray) -> list[Span]:
        """Leftmost longest phrases that can be seen. ids: number of each word; key, key_singular: uint32 hashes."""
        may = self._may_start[self._slot(key[:-1], key[1:])]
        may |= self._may_start[self._slot(key[:-1], key_singular[1:])]
        starts = np.flatnonzero(may)
        firsts, seconds = ids[starts].tolist(), ids[starts + 1].tolist()
        thirds = ids[np.minimum(starts + 2, len(ids) - 1)].tolist()  # the end of a caption starts or ends no phrase
        spans, done = [], 0
        pairs = self._pairs
        for start, first, second, third in zip(starts.tolist(), firsts, seconds, thirds, strict=True):
            if start < done:
                continue
            known = pairs.get((first, second))
            if known is None:
                known = self._open_pair(self.text(first), self.text(second), self.singular(second))
                if len(pairs) < MAX_CACHED:
                    pairs[first, second] = known
            goes_on, phrase = known
            if goes_on and (self.text(third) in goes_on or self.singular(third) in goes_on):
                found = self._match(ids[start : start + MAX_PHRASE].tolist())
                if found is not None:
                    done = start + found[0]
                    spans.append((start, done, found[1]))
            elif phrase is not None:
                done = start + 2
                spans.append((start, done, phrase))
        return spans

    def knows(self, word: str) -> bool:
        """Whether a word is part of an entry, or an entry written together."""
        return word in self._parts or word in self._closed_up

    def written_as_one(self, word: str) -> Phrase | None:
        """The two-word entry that a word no dictionary knows is, written together ("tshirt")."""
        text = self._closed_up.get(word)
        return self._phrase(text) if text else None

    def _open_pair(self, first: str, second: str, singular: str) -> tuple[frozenset[str], Phrase | None]:
        thirds = frozenset(self._thirds.get(f"{first} {second}", ()))
        return thirds, self._phrase(f"{first} {second}") or self._phrase(f"{first} {singular}")

    def _match(self, ids: list[int]) -> tuple[int, Phrase] | None:
        """(words, phrase): the longest entry that the words begin with."""
        texts = [self.text(number) for number in ids]
        for length in range(min(self._longest[f"{texts[0]} {texts[1]}"], len(texts)), 1, -1):
            head = " ".join(texts[: length - 1])
            for tail in (texts[length - 1], self.singular(ids[length - 1])):
                phrase = self._phrase(f"{head} {tail}")
                if phrase is not None:
                    return length, phrase
        return None

    def _phrase(self, text: str) -> Phrase | None:
        if text not in self._entries:
            return None
        if text not in self._judged:
            self._judged[text] = self._judge_phrase(text)
        return self._judged[text]

    def _judge_phrase(self, text: str) -> Phrase | None:
        own = self.terms.get(tuple(text.split(" ")))
        if own is not None:
            labels = tuple(self.index[label] for label in own)
            return Phrase(labels[0] if len(labels) == 1 else BY_CONTEXT, labels, text)
        lemma = self._entries[text]
        if text in word_lists()["never"]:
            return Phrase(NO_LABEL, (), lemma)
        chosen = word_lists()["sense"].get(text) or word_lists()["sense"].get(lemma)
        if chosen:
            return Phrase(self.index[chosen[0]], (), lemma)
        candidates, unseen = weigh(self.lexicon, self.lexicon.senses(lemma), phrase=True)
        seen = sum(c.weight for c in candidates)
        if math.log(seen + 1e-6) - math.log(unseen + 0.05) < THRESHOLD:
            return None
        labels = tuple(self.index[synset] for synset in close_meanings(candidates))
        return Phrase(labels[0], labels if len(labels) > 1 else (), lemma)
