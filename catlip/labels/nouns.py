"""The rule "nouns": captions -> synsets of the things that can be seen, 200,000 captions a second on one core.

A caption's words are judged in three steps, each on arrays over all words of a batch at once:
1. phrases: the longest WordNet entry that starts at a word ("fire hydrant"), if it can be seen;
2. nouns: the word's own score (`readings.py`) plus what the words before and after say (`neighbours.py`);
3. senses: one synset a word. Words of several visible meanings (bat, mouse, crane) look for cue words in the caption
   (words.tsv); in a caption that names nothing else all close meanings are kept, for there is nothing to choose by.

`explain` runs the very same code on one caption and reads its intermediate arrays, so that it cannot disagree.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catlip.labels import cleaning
from catlip.labels.absence import Denial
from catlip.labels.explained import Explained
from catlip.labels.language import FOREIGN
from catlip.labels.neighbours import AFTER, BEFORE, table
from catlip.labels.phrases import BY_CONTEXT, NO_LABEL, Phrase, Span
from catlip.labels.readings import THRESHOLD, Kind, close_meanings, cue_words
from catlip.labels.wordnet import Lexicon
from catlip.labels.wordtable import WordTable

CHUNK = 1024  # captions at a time: their arrays stay in the processor's cache
CHUNK_CHARACTERS = 1 << 20  # a thousand pages of text would need gigabytes
# "Men's shoes" are made for men, "the men's shoes" have their men beside them.
WEARERS = frozenset("babies boys children gentlemen girls juniors kids ladies men toddlers women".split())
# Why a noun gives no label, by its number in `Batch.muted`.
MUTED = ("", "by the words near it, nothing in the picture", "the caption is not English")


@dataclass(slots=True)
class Batch:
    """Intermediate arrays over the words of a batch of captions, for `explain`."""

    ids: np.ndarray
    scores: np.ndarray
    spans: list[Span]  # first word, end, what it is
    muted: np.ndarray  # uint8, of each word: why it gives no label, a number of MUTED
    rows: np.ndarray  # caption of each label
    labels: np.ndarray
    positions: np.ndarray  # word of each label


class NounRule:
    """See the module. `index` numbers the labels; `terms` are a domain's own phrases -> labels."""

    def __init__(
        self, lexicon: Lexicon, index: dict[str, int], terms: dict[str, tuple[str, ...]] | None = None
    ) -> None:
        self.index = index
        self._synsets = list(index)
        self._terms = {tuple(cleaning.normal(phrase)): labels for phrase, labels in (terms or {}).items()}
        self._words = WordTable(lexicon, index, self._terms)
        self._before, self._after = table(BEFORE), table(AFTER)

    def run(self, captions: Sequence[Any]) -> Batch:
        """All of the rule, on a batch of captions."""
        words = self._words
        ids = words.numbers(cleaning.plain(captions, words.tag_words))
        spans = words.phrases.find(ids, words.key[ids], words.key_singular[ids])
        kind = words.kind[ids]
        form = words.form[ids]
        scores = words.score[ids]
        scores[1:] += self._before[kind[:-1], form[1:]]
        scores[:1] += self._before[Kind.BREAK, form[:1]]
        scores[:-1] += self._after[kind[1:], form[:-1]]
        labels = words.label[ids]
        units = ((scores >= THRESHOLD) & (labels != NO_LABEL)).astype(np.int32)
        for unit, (start, end, _) in enumerate(spans, 2):
            units[start:end] = unit
        bounds = np.concatenate([[0], np.flatnonzero(ids == words.end) + 1])
        muted = self._muted(ids, bounds, units, spans)
        emitted = (units == 1) & (muted == 0)
        spans = [span for span in spans if not muted[span[0]]]
        denied = np.searchsorted(bounds, np.flatnonzero(muted == 1), side="right") - 1
        rows, given, positions = self._resolve(ids, bounds, spans, emitted, labels, denied)
        return Batch(ids, scores, spans, muted, rows, given, positions)

    def _muted(self, ids: np.ndarray, bounds: np.ndarray, units: np.ndarray, spans: list[Span]) -> np.ndarray:
        """uint8 [words]: the number in `MUTED` of what forbids a word to give a label, or 0. units: see `Denial`."""
        words = self._words
        muted = np.zeros(len(ids), np.uint8)
        triggers = np.flatnonzero(words.trigger[ids])
        after_number = words.kind[ids[triggers - 1]] == Kind.NUMBER
        triggers = triggers[after_number | ~words.unit[ids[triggers]]]
        for row in np.unique(np.searchsorted(bounds, triggers, side="right") - 1).tolist():
            start, end = int(bounds[row]), int(bounds[row + 1])
            caption = ids[start:end].tolist()
            kinds = words.kind[ids[start:end]].tolist()
            denial = Denial([words.text[n] for n in caption], kinds, units[start:end].tolist())
            muted[[start + i for i in denial.positions()]] = 1
        for owner in np.flatnonzero(ids[1:] == words.genitive).tolist():
            if words.text[ids[owner]] in WEARERS and words.kind[ids[owner - 1]] not in (Kind.DETERMINER, Kind.NUMBER):
                muted[owner] = 1
        foreign = self._foreign(ids, bounds)
        if foreign.any():
            muted[np.repeat(foreign, np.diff(bounds)) & (words.score[ids] < np.inf)] = 2
            for start, end, phrase in spans:
                if tuple(phrase.lemma.split(" ")) in self._terms:
                    muted[start:end] = 0
        return muted

    def _foreign(self, ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """bool [captions]: not English by its words."""
        return np.add.reduceat(self._words.foreign[ids], bounds[:-1], dtype=np.int32) >= FOREIGN

    def _resolve(
        self,
        ids: np.ndarray,
        bounds: np.ndarray,
        spans: list[Span],
        emitted: np.ndarray,
        labels: np.ndarray,
        denied: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give every emitted word and phrase its labels, and every label its caption: (rows, labels, positions).

        denied: the captions of what is said to be absent; it gives no label, and is company all the same.
        """
        n_rows = len(bounds) - 1
        positions = np.flatnonzero(emitted)
        labels = labels[positions]
        if spans:
            positions = np.concatenate([positions, np.array([start for start, _, _ in spans])])
            labels = np.concatenate([labels, np.array([phrase.label for _, _, phrase in spans], np.int32)])
        real = labels != NO_LABEL
        positions, labels = positions[real], labels[real]
        rows = np.searchsorted(bounds, positions, side="right") - 1
        counted = rows[~self._words.carrier[ids[positions]]]  # "a photo of": the photo is no company
        alone = np.bincount(np.concatenate([counted, denied]), minlength=n_rows)[rows] == 1
        phrase_at = {start: phrase for start, _, phrase in spans}
        several = self._words.several[ids[positions]] | np.isin(positions, list(phrase_at))
        open_ = np.flatnonzero((labels == BY_CONTEXT) | (alone & several))
        if len(open_):
            extra_rows, extra_labels, extra_positions = [], [], []
            for i in open_.tolist():
                row, position = int(rows[i]), int(positions[i])
                caption = [self._words.text[n] for n in ids[bounds[row] : bounds[row + 1]].tolist()]
                meant = self._meanings(int(ids[position]), phrase_at.get(position), caption, bool(alone[i]))
                labels[i] = meant[0]
                for label in meant[1:]:
                    extra_rows.append(row)
                    extra_labels.append(label)
                    extra_positions.append(position)
            rows = np.concatenate([rows, np.array(extra_rows, rows.dtype)])
            labels = np.concatenate([labels, np.array(extra_labels, labels.dtype)])
            positions = np.concatenate([positions, np.array(extra_positions, positions.dtype)])
        return rows, labels, positions

    def _meanings(self, number: int, phrase: Phrase | None, caption: list[str], alone: bool) -> list[int]:
        """Labels of a word of several meanings, given the words of its caption."""
        text, reading = self._words.text[number], self._words.reading[number]
        own = self._terms.get((text,)) or self._terms.get((reading.singular,))
        if own and phrase is None:
            return [self.index[label] for label in own]
        phrase = phrase or (None if reading.candidates else self._words.phrases.written_as_one(text))
        if phrase is not None:
            return list(phrase.several) or [phrase.label]
        usual, others = cue_words(text, reading.singular) or (reading.candidates[0].synset, ())
        for synset, cues in others:
            if not cues.isdisjoint(caption):
                return [self.index[synset]]
        close = close_meanings(reading.candidates) if alone else ()
        return [self.index[synset] for synset in dict.fromkeys([usual, *close])]

    def foreign(self, captions: Sequence[Any]) -> int:
        """Captions that are not English by their words."""
        ids = self._words.numbers(cleaning.plain(captions, self._words.tag_words))
        return int(self._foreign(ids, np.concatenate([[0], np.flatnonzero(ids == self._words.end) + 1])).sum())

    def explain(self, caption: str) -> list[Explained]:
        """What became of each word, from the arrays of the very run that labels the caption."""
        texts = cleaning.split([caption], self._words.tag_words)
        batch = self.run([caption])
        given: dict[int, list[str]] = {}
        for position, label in zip(batch.positions.tolist(), batch.labels.tolist(), strict=True):
            given.setdefault(position, []).append(self._synsets[label])
        phrases = {start: (end, phrase) for start, end, phrase in batch.spans}
        told, position = [], 0
        while position < len(texts) - 1:
            labels = tuple(dict.fromkeys(given.get(position, ())))
            if position in phrases:
                end, phrase = phrases[position]
                told.append(Explained(" ".join(texts[position:end]), labels, f'phrase "{phrase.lemma}"'))
                position = end
                continue
            if texts[position] != cleaning.BREAK:
                told.append(Explained(texts[position], labels, self._reason(batch, position, labels)))
            position += 1
        return told

    def _reason(self, batch: Batch, position: int, labels: tuple[str, ...]) -> str:
        reading = self._words.reading[batch.ids[position]]
        if math.isinf(reading.score):
            return reading.why
        if batch.muted[position]:
            return MUTED[batch.muted[position]]
        score, context = float(batch.scores[position]), float(batch.scores[position]) - reading.score
        why = f"{reading.why}; score {reading.score:+.1f}, neighbours {context:+.1f}"
        if not labels:
            return f"{why}: {score:+.1f} is below {THRESHOLD}"
        if len(labels) > 1:
            why += "; several meanings, and nothing else in the caption to choose by"
        elif reading.candidates and labels[:1] != (reading.candidates[0].synset,):
            why += "; meaning chosen by another word of the caption"
        return why

    def labels(self, captions: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """(caption of each label, label), in no particular order and with repetitions."""
        rows, labels = [], []
        for start in range(0, len(captions), CHUNK):
            for first, part in _light(captions[start : start + CHUNK], start):
                batch = self.run(part)
                rows.append(batch.rows + first)
                labels.append(batch.labels)
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.int32)
        return np.concatenate(rows), np.concatenate(labels)


def _light(captions: Sequence[Any], first: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """(number of the first, captions): in halves until no part has too many characters for its arrays."""
    half = len(captions) // 2
    try:
        characters = sum(map(len, captions))
    except TypeError:  # some are missing
        characters = sum(len(caption) for caption in captions if isinstance(caption, str))
    if half and characters > CHUNK_CHARACTERS:
        yield from _light(captions[:half], first)
        yield from _light(captions[half:], first + half)
    else:
        yield first, captions
