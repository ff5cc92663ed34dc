"""The rule "nouns": captions -> synsets of the things that can be seen, 200,000 captions a second on one core.

A caption's words are judged in three steps, each on arrays over all words of a batch at once:
1. phrases: the longest WordNet entry that starts at a word ("fire hydrant"), if it can be seen;
2. nouns: the word's own score (`readings.py`) plus what the words before and after say (`neighbours.py`);
3. senses: one synset a word. Words of several visible meanings (bat, mouse, crane) look for cue words in the caption
   (words.tsv); in a caption that names nothing else all close meanings are kept, for there is nothing to choose by.

`explain` runs the very same code on one caption and reads its intermediate arrays, so that it cannot disagree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catlip.captions import cleaning
from catlip.captions.explained import Explained
from catlip.captions.neighbours import AFTER, BEFORE, table
from catlip.captions.phrases import BY_CONTEXT, NO_LABEL, Phrase, Span
from catlip.captions.readings import THRESHOLD, Kind, close_meanings, cue_words
from catlip.captions.wordnet import Lexicon
from catlip.captions.wordtable import WordTable

CHUNK = 1024  # captions at a time: their arrays stay in the processor's cache
ENGLISH = 0.34  # share of known words below which a caption is not English


@dataclass(slots=True)
class Batch:
    """Intermediate arrays over the words of a batch of captions, for `explain`."""

    ids: np.ndarray
    scores: np.ndarray
    spans: list[Span]  # first word, end, what it is
    emitted: np.ndarray  # bool: the word gives a label of its own
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
        ids = words.numbers(cleaning.plain(captions))
        spans = words.phrases.find(ids, words.key[ids], words.key_singular[ids])
        kind = words.kind[ids]
        form = words.form[ids]
        scores = words.score[ids]
        scores[1:] += self._before[kind[:-1], form[1:]]
        scores[:1] += self._before[Kind.BREAK, form[:1]]
        scores[:-1] += self._after[kind[1:], form[:-1]]
        labels = words.label[ids]
        emitted = (scores >= THRESHOLD) & (labels != NO_LABEL)
        for start, end, _ in spans:
            emitted[start:end] = False
        positions = np.flatnonzero(emitted)
        return self._resolve(ids, scores, spans, emitted, positions, labels[positions])

    def _resolve(
        self, ids: np.ndarray, scores: np.ndarray, spans: list[Span], emitted: np.ndarray,
         positions: np.ndarray, labels: np.ndarray,
    ) -> Batch:  # fmt: skip
        """Give every emitted word and phrase its labels, and every label its caption."""
        ends = ids == self._words.end
        row_of = np.cumsum(ends) - ends
        n_rows = int(ends.sum())
        if spans:
            positions = np.concatenate([positions, np.array([start for start, _, _ in spans])])
            labels = np.concatenate([labels, np.array([phrase.label for _, _, phrase in spans], np.int32)])
        real = labels != NO_LABEL
        positions, labels = positions[real], labels[real]
        rows = row_of[positions]
        counted = rows[~self._words.carrier[ids[positions]]]  # "a photo of": the photo is no company
        alone = np.bincount(counted, minlength=n_rows)[rows] == 1
        phrase_at = {start: phrase for start, _, phrase in spans}
        several = self._words.several[ids[positions]] | np.isin(positions, list(phrase_at))
        open_ = np.flatnonzero((labels == BY_CONTEXT) | (alone & several))
        if len(open_):
            extra_rows, extra_labels, extra_positions = [], [], []
            bounds = np.concatenate([[0], np.flatnonzero(ends) + 1])
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
        return Batch(ids, scores, spans, emitted, rows, labels, positions)

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
        """Captions of four words or more of which WordNet's nouns and English function words know too few."""
        if not captions:
            return 0
        ids = self._words.numbers(cleaning.plain(captions))
        starts = np.concatenate([[0], np.flatnonzero(ids == self._words.end)[:-1] + 1])
        words = np.add.reduceat(self._words.kind[ids] != Kind.BREAK, starts)
        known = np.add.reduceat(self._words.english[ids], starts)
        return int(((words >= 4) & (known < ENGLISH * words)).sum())

    def explain(self, caption: str) -> list[Explained]:
        """What became of each word, from the arrays of the very run that labels the caption."""
        texts = cleaning.split([caption])
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
            batch = self.run(captions[start : start + CHUNK])
            rows.append(batch.rows + start)
            labels.append(batch.labels)
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.int32)
        return np.concatenate(rows), np.concatenate(labels)
