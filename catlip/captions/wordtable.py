"""All distinct words met so far, judged once, as columns: what makes a batch of captions a few array operations."""

import math
from collections.abc import Mapping

import numpy as np

from catlip.captions import cleaning
from catlip.captions.phrases import BY_CONTEXT, MAX_CACHED, NO_LABEL, Phrases, word_hash
from catlip.captions.readings import CLOSED, Form, Kind, Reading, all_cues, close_meanings, read, word_lists
from catlip.captions.wordhash import WordNumbers
from catlip.captions.wordnet import Lexicon

NOT_ONLY_ENGLISH = frozenset("a am an as do en he her i in me no on per so was will".split())
COLUMNS = {
    "kind": np.uint8,
    "form": np.uint8,
    "score": np.float32,
    "label": np.int32,  # or NO_LABEL, or BY_CONTEXT: the caption decides
    "several": bool,  # has more than one close meaning
    "carrier": bool,  # names the picture itself ("photo")
    "english": bool,
    "key": np.uint32,  # hash of the word
    "key_singular": np.uint32,  # and of its singular
}


class WordTable:
    """Row i of every column belongs to word number i."""

    kind: np.ndarray
    form: np.ndarray
    score: np.ndarray
    label: np.ndarray
    several: np.ndarray
    carrier: np.ndarray
    english: np.ndarray
    key: np.ndarray
    key_singular: np.ndarray

    def __init__(
        self, lexicon: Lexicon, index: Mapping[str, int], terms: dict[tuple[str, ...], tuple[str, ...]]
    ) -> None:
        self.lexicon, self.index, self.terms = lexicon, index, terms
        self.text: list[str] = []
        self.reading: list[Reading] = []
        for name, kind in COLUMNS.items():
            setattr(self, name, np.zeros(4096, kind))
        self.phrases = Phrases(lexicon, dict(index), terms, self.text.__getitem__, self.singular)
        self._numbers = WordNumbers(self._judge)
        # For words that are not remembered: they must count as what they would have counted as.
        self._stand_ins = {read(lexicon, word).kind: self._add(word) for word in ("0", "\0ly", "\0ing", "\0\0")}
        self.end = int(self.numbers(cleaning.END)[0])

    def singular(self, number: int) -> str:
        return self.reading[number].singular

    def numbers(self, text: str) -> np.ndarray:
        """int32 [words]: the number of each word of a text as `cleaning.plain` makes it."""
        return self._numbers.of(text)

    def _judge(self, word: str) -> tuple[int, bool]:
        """(number of a new word, whether to remember it): not one that nothing knows, when there are very many."""
        if len(self.reading) >= MAX_CACHED:
            reading = read(self.lexicon, word)
            known = reading.candidates or word in CLOSED or reading.singular in self.lexicon or word in self.lexicon
            listed = (word,) in self.terms or word in all_cues() or self.phrases.knows(word)
            if not known and not listed:
                return self._stand_ins[reading.kind], False
        return self._add(word), True

    def _add(self, word: str) -> int:
        number = len(self.reading)
        reading, label, several = self._read(word)
        if number >= len(self.kind):
            for name in COLUMNS:
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self.text.append(word)
        self.reading.append(reading)
        self.kind[number], self.form[number], self.score[number] = reading.kind, reading.form, reading.score
        self.label[number], self.several[number] = label, several
        self.carrier[number] = reading.singular in word_lists()["carrier"]
        known = len(word) > 3 and (word in self.lexicon or reading.singular in self.lexicon)
        self.english[number] = known or (word in CLOSED and word not in NOT_ONLY_ENGLISH)
        self.key[number], self.key_singular[number] = word_hash(word), word_hash(reading.singular)
        return number

    def _read(self, word: str) -> tuple[Reading, int, bool]:
        """(reading, label, whether it has several close meanings)."""
        if word in (cleaning.END, cleaning.BREAK):
            return Reading(Kind.BREAK, Form.PLAIN, -math.inf, (), word, "punctuation"), NO_LABEL, False
        reading = read(self.lexicon, word)
        own = self.terms.get((word,)) or self.terms.get((reading.singular,))
        if own:
            reading = Reading(reading.kind, Form.PLAIN, math.inf, (), word, "a term of your own lexicon")
            return reading, self.index[own[0]] if len(own) == 1 else BY_CONTEXT, False
        if reading.candidates:
            lists = word_lists()["cue"]
            by_cue = word in lists or reading.singular in lists
            label = BY_CONTEXT if by_cue else self.index[reading.candidates[0].synset]
            return reading, label, len(close_meanings(reading.candidates)) > 1
        phrase = self.phrases.written_as_one(word) if word not in self.lexicon else None
        if phrase:
            why = f'"{phrase.lemma}" written as one word'
            return Reading(Kind.SINGULAR, Form.PLAIN, 0.0, (), word, why), phrase.label, False
        return reading, NO_LABEL, False
