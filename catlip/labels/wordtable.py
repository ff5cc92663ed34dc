"""All distinct words met so far, judged once, as columns: what makes a batch of captions a few array operations."""

import math
from collections.abc import Mapping

import numpy as np

from catlip.labels import cleaning, language
from catlip.labels.absence import TRIGGERS, UNITS
from catlip.labels.absence import WORDS as ABSENCE
from catlip.labels.hashtags import words_of
from catlip.labels.phrases import BY_CONTEXT, MAX_CACHED, NO_LABEL, Phrases, word_hash
from catlip.labels.readings import CLOSED, Form, Kind, Reading, all_cues, close_meanings, read, word_lists
from catlip.labels.wordhash import WordNumbers
from catlip.labels.wordnet import Lexicon

COLUMNS = {
    "kind": np.uint8,
    "form": np.uint8,
    "score": np.float32,
    "label": np.int32,  # or NO_LABEL, or BY_CONTEXT: the caption decides
    "several": bool,  # has more than one close meaning
    "carrier": bool,  # names the picture itself ("photo")
    "foreign": np.int8,  # what it says against the caption being English
    "trigger": bool,  # what stands near it may be said to be absent
    "unit": bool,  # of measurement, after a number
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
    foreign: np.ndarray
    trigger: np.ndarray
    unit: np.ndarray
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
        self._stand_ins: dict[tuple[Kind, int, bool], int] = {}
        self.end, self.genitive = (int(self.numbers(word)[0]) for word in (cleaning.END, "'s"))

    def singular(self, number: int) -> str:
        return self.reading[number].singular

    def known(self, word: str) -> bool:
        """Whether a hashtag may be cut into this word and others."""
        if word in CLOSED or word in language.COMMON:
            return len(word) > 1
        own = (word,) in self.terms or self.phrases.knows(word)
        return len(word) > 2 and (own or word in self.lexicon or bool(self.lexicon.singulars(word)))

    def tag_words(self, tag: str) -> str:
        """The words of a hashtag."""
        return words_of(tag, self.known)

    def numbers(self, text: str) -> np.ndarray:
        """int32 [words]: the number of each word of a text as `cleaning.plain` makes it."""
        return self._numbers.of(text)

    def _judge(self, word: str) -> tuple[int, bool]:
        """(number of a new word, whether to remember it): not one that nothing knows, when there are very many."""
        if len(self.reading) >= MAX_CACHED:
            reading = read(self.lexicon, word)
            known = reading.candidates or word in CLOSED or reading.singular in self.lexicon or word in self.lexicon
            listed = (word,) in self.terms or word in all_cues() or word in ABSENCE or self.phrases.knows(word)
            if not known and not listed:  # it must count as what it would have counted as
                alike = reading.kind, language.evidence(word, noun=False), word.endswith("ing")
                if alike in self._stand_ins:
                    return self._stand_ins[alike], False
                self._stand_ins[alike] = len(self.reading)
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
        self.foreign[number] = language.evidence(word, noun=word in self.lexicon or reading.singular in self.lexicon)
        self.trigger[number], self.unit[number] = word in TRIGGERS, word in UNITS
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
