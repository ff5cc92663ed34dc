"""Multi-word entries of WordNet, and a domain's own: which there are, and what they stand for.

Sixty thousand entries are indexed by the hashes of their first two words in one bit table, so that nearly all pairs of
words are dismissed in a few array operations; the few that are left are looked up as text.
"""

import math
from collections.abc import Iterable, Set

import numpy as np

from catlip.labels import cleaning
from catlip.labels.nouns.words import FUNCTION_WORDS, Kind, Reading, close_senses, weigh, word_lists
from catlip.labels.wordnet import Lexicon

THRESHOLD = -1.5  # log-odds from which on a word, with what its neighbours say, or a phrase is a label
MAX_PHRASE = 6  # words
Terms = dict[tuple[str, ...], tuple[str, ...]]  # words of a phrase of one's own -> its labels


def word_hash(word: str) -> int:
    return hash(word) & 0xFFFFFFFF


class PhraseIndex:
    """Texts such as "fire hydrant" -> what they mean. terms: a domain's own, which win over WordNet's."""

    def __init__(self, lexicon: Lexicon, terms: Terms) -> None:
        self.lexicon, self.terms = lexicon, terms
        self._lemmas: dict[str, str] = {}  # "fire hydrant" -> "fire_hydrant"
        self._next: dict[str, set[str]] = {}  # two or more words -> words that follow: "hot air" -> {"balloon", "gun"}
        self._closed_up: dict[str, str] = {}  # "tshirt" -> "t shirt"
        self._enter_all()
        self._parts = {word for text in self._lemmas for word in text.split(" ")}
        self._may_start = pair_table(self._lemmas)

    def _enter_all(self) -> None:
        """Of entries with one text the first stays."""
        lists, words = word_lists(), list[str]()
        for lemma in self.lexicon.lemmas:
            if "_" not in lemma and "-" not in lemma and "'" not in lemma:
                words.append(lemma)
                continue
            text = lemma.replace("_", " ").replace("-", " ").replace(".", "")
            if "'" in text or "/" in text:
                text = " ".join(cleaning.phrase_words(text))
            first = text.split(" ", 1)[0]
            if first not in FUNCTION_WORDS and text not in lists["not-a-phrase"] and not text.endswith(" 's"):
                self._enter(text, lemma)
        for text in (*lists["sense"], *lists["never"], *map(" ".join, self.terms)):
            self._enter(text, text)
        self._enter_split_compounds(words)

    def _enter(self, text: str, lemma: str) -> None:
        words = text.split(" ")
        if 1 < len(words) <= MAX_PHRASE:
            self._lemmas.setdefault(text, lemma)
            for count in range(2, len(words)):
                self._next.setdefault(" ".join(words[:count]), set()).add(words[count])
            if len(words) == 2:
                self._closed_up.setdefault(words[0] + words[1], text)

    def _enter_split_compounds(self, words: list[str]) -> None:
        """Closed compounds that people write apart: "skate board", "mouse pad"; `read` wants them visible."""
        parts = set(words) - FUNCTION_WORDS.keys()
        heads = {word for word in parts if self._rather_noun(word)}  # no long beard
        for word in words:
            if len(word) < 7 or not word.isalpha():
                continue
            for cut in range(3, len(word) - 2):
                if word[:cut] in heads and word[cut:] in parts:
                    text = f"{word[:cut]} {word[cut:]}"
                    if text not in word_lists()["not-a-phrase"] and self._is_thing(word):
                        self._lemmas.setdefault(text, word)
                    break

    def _is_thing(self, word: str) -> bool:
        """Whether a word is not only a name: Cape Town has its space, Manchester none."""
        senses = self.lexicon.senses(word)
        return any(not sense.capitalised or self.lexicon.synset(sense.synset).pictured for sense in senses)

    def _rather_noun(self, word: str) -> bool:
        as_adjective = self.lexicon.other_readings(word).get("a")
        return as_adjective is None or as_adjective < sum(sense.count for sense in self.lexicon.senses(word))

    def starts(self, hashes: np.ndarray, singular_hashes: np.ndarray) -> np.ndarray:
        """Positions at which an entry may begin, given the hash of each word and of its singular: uint32 [words]."""
        may = self._may_start[_slot(hashes[:-1], hashes[1:])]
        may |= self._may_start[_slot(hashes[:-1], singular_hashes[1:])]
        return np.flatnonzero(may)

    def next_words(self, text: str) -> Set[str]:
        """How entries go on after these two or more words."""
        return self._next.get(text, frozenset())

    def knows(self, word: str) -> bool:
        """Whether a word is part of an entry, or an entry written together."""
        return word in self._parts or word in self._closed_up

    def read_closed_up(self, word: str) -> Reading | None:
        """The two-word entry that a word no dictionary knows is, written together ("tshirt")."""
        return self.read(self._closed_up.get(word, ""))

    def read(self, text: str) -> Reading | None:
        """What an entry stands for; None if the text is no entry, or nothing that can be seen."""
        lemma = self._lemmas.get(text)
        if lemma is None:
            return None
        own = self.terms.get(tuple(text.split(" ")))
        if own:
            return Reading(Kind.SINGULAR, text, f'phrase "{text}"', score=math.inf, synsets=own, own=True)
        return self._meaning(text, lemma)

    def _meaning(self, text: str, lemma: str) -> Reading | None:
        """What an entry stands for that is none of the domain's own."""
        why = f'phrase "{lemma}"'
        if text in word_lists()["never"]:
            return Reading(Kind.SINGULAR, lemma, why)
        chosen = word_lists()["sense"].get(text) or word_lists()["sense"].get(lemma)
        if chosen:
            return Reading(Kind.SINGULAR, lemma, why, synsets=chosen[:1])
        candidates, unseen = weigh(self.lexicon, self.lexicon.senses(lemma), phrase=True)
        score = math.log(sum(c.weight for c in candidates) + 1e-6) - math.log(unseen + 0.05)
        if score < THRESHOLD:
            return None
        return Reading(Kind.SINGULAR, lemma, why, score=score, synsets=close_senses(candidates))


def pair_table(texts: Iterable[str]) -> np.ndarray:
    """bool [slots]: true at the slot of the first two words of each text."""
    table = np.zeros(1 << 22, bool)
    pairs = {tuple(text.split(" ", 2)[:2]) for text in texts}
    if pairs:
        hashes = np.array([[word_hash(first), word_hash(second)] for first, second in pairs], np.uint32)
        table[_slot(hashes[:, 0], hashes[:, 1])] = True
    return table


def _slot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first * np.uint32(0x9E3779B1) ^ second * np.uint32(0x85EBCA6B)) >> np.uint32(10)
