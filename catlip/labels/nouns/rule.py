"""The rule "nouns": captions -> synsets of the things that can be seen, 200,000 captions a second on one core.

A caption's words are judged in three steps, each on arrays over all words of a batch at once:
1. phrases: the longest WordNet entry that starts at a word ("fire hydrant"), if it can be seen;
2. nouns: the word's own score (`words.py`) plus what the words before and after say;
3. senses: one synset a word. Words of several visible senses (bat, mouse, crane) look for cue words in the caption
   (words.tsv). Synsets that captions use for the same thing share one (synonyms.tsv), and a phrase also carries what it
   is a kind of (a swimming pool is a pool).

`explain` runs the very same code on one caption and reads its intermediate arrays, so that it cannot disagree.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from catlip.labels import cleaning
from catlip.labels.nouns.names import mark_names
from catlip.labels.nouns.negation import Caption
from catlip.labels.nouns.phrases import THRESHOLD, PhraseIndex
from catlip.labels.nouns.titles import WEARERS, Title, titles
from catlip.labels.nouns.words import COMMON_WORDS, FUNCTION_WORDS, STOPS, Form, Kind, canonical_synsets, word_lists
from catlip.labels.nouns.wordtable import BY_CONTEXT, NO_LABEL, Span, WordTable

CERTAIN = -12  # log-odds up to which a caption is in the rule's language, whatever else is said of it
FOREIGN = 7  # log-odds, summed over the words, from which on a caption is not English
BEYOND_LATIN = "\u0250"  # the first letter behind the last Latin block
_WORD = re.compile(r"[^\W\d_]+")
CHUNK = 2048  # captions at a time at most: their arrays stay in the processor's cache
SPOKEN_CHUNK = 128
CHUNK_CHARACTERS = 1 << 20  # a thousand pages of text would need gigabytes
# Why a noun gives no label, by its number in `Batch.muted`.
DENIED, NOT_ENGLISH, PURPOSE = 1, 2, 3
MUTED = (
    "",
    "absent, uncertain or no thing in the picture, by the words near it",
    "the caption is not in {language}",
    "says what goods are for, in a title",
)


@dataclass(slots=True)
class Batch:
    """Intermediate arrays over the words of a batch of captions, for `explain`."""

    ids: np.ndarray  # int32 [words]: row of each word in the table
    scores: np.ndarray  # float32 [words]: log-odds that it is a noun
    spans: list[Span]
    muted: np.ndarray  # uint8 [words]: why it gives no label, a number of `MUTED`
    rows: np.ndarray  # caption of each label
    labels: np.ndarray  # number of each label
    positions: np.ndarray  # word of each label


def evidence(lists: dict[str, dict[str, tuple[str, ...]]], side: str) -> np.ndarray:
    """float32 [Kind of the word before, or after; Form of the word]: what it says for (+) or against (-) a noun.

    side: "before" or "after". lists: what has these lines, for each kind of word; none for a kind says nothing.
    """
    lines = lists.get(side, {})
    numbers = [lines[kind.name.lower()][0].split() if kind.name.lower() in lines else [0] * len(Form) for kind in Kind]
    return np.array(numbers, np.float32)


class NounRule:
    """See the module. `index` numbers the labels; `phrases` hold a domain's own terms too.

    canonical: synsets that name the same thing share one. heads: a phrase also carries what it is a kind of. several: a
        word that is alone in its text keeps all its close senses. lists: of a language's words; default: English.
    """

    spoken_language = "English"
    own_words: Set[str] = FUNCTION_WORDS.keys() | COMMON_WORDS
    tables_hash = ""

    def __init__(
        self,
        phrases: PhraseIndex,
        index: dict[str, int],
        *,
        canonical: bool,
        heads: bool,
        several: bool = False,
        lists: dict[str, dict[str, tuple[str, ...]]] | None = None,
    ) -> None:
        self.phrases, self.index, self.several, self.heads = phrases, index, several, heads
        self.canonical = canonical_synsets() if canonical else {}
        self._synsets = list(index)
        self._words = self._new_table()
        self._before, self._after = (evidence(lists or word_lists(), side) for side in ("before", "after"))

    def _new_table(self) -> WordTable:
        return WordTable(self.phrases, self.index, self.canonical, heads=self.heads)

    def labels(self, captions: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """(caption of each label, label), in no particular order and with repetitions."""
        half = len(captions) // 2
        if half and (len(captions) > CHUNK or sum(map(len, map(str, captions))) > CHUNK_CHARACTERS):
            rows, labels = zip(self.labels(captions[:half]), self.labels(captions[half:]), strict=True)
            return np.concatenate([rows[0], rows[1] + half]), np.concatenate(labels)
        batch = self.run(captions)
        return batch.rows, batch.labels

    def foreign(self, captions: Sequence[Any]) -> int:
        """Captions that are not in the language of the rule by their words."""
        if not len(captions):
            return 0
        against = self.against(captions)
        others = (str(captions[i]) for i in np.flatnonzero((against > CERTAIN) & (against < FOREIGN)).tolist())
        beside = sum(self._in_another_script(caption) or self._elsewhere(caption) for caption in others)
        return beside + int((against >= FOREIGN).sum())

    def _elsewhere(self, caption: str) -> bool:
        """Whether a caption has two words of a language without tables, and no more function words of the rule's."""
        every, *lists = _elsewhere_words()
        words = set(_WORD.findall(caption.lower()))
        most = 0 if words.isdisjoint(every) else max(len(words & some) for some in lists)
        return most > 1 and most >= len(words & self.own_words)

    def _in_another_script(self, caption: str) -> bool:
        """Whether a caption has letters, but none that the language writes: too few, often, to tell it by its words."""
        if caption.isascii():
            return False
        letters = [letter for letter in unicodedata.normalize("NFKC", caption) if letter.isalpha()]
        return bool(letters) and not any(letter < BEYOND_LATIN or self.writes(letter) for letter in letters)

    def writes(self, letter: str) -> bool:
        """Whether a letter beyond the Latin ones is of the language's script."""
        return False

    def against(self, captions: Sequence[Any]) -> np.ndarray:
        """int32 [captions]: what the words of each say against the language of the rule, in log-odds."""
        ids = self._numbers(captions)
        return foreignness_of(self._words.rows.take(ids), self._bounds(ids))

    def run(self, captions: Sequence[Any]) -> Batch:
        """All of the rule, on a batch of captions."""
        ids = self._numbers(captions)
        words = self._words.rows.take(ids)  # which is many times quicker than rows[ids]
        bounds = self._bounds(ids)
        scores = self._scores(words, bounds)
        spans = self._words.find_phrases(ids, words)
        units = ((scores >= THRESHOLD) & (words["label"] != NO_LABEL)).astype(np.int32)
        for unit, (start, end, _) in enumerate(spans, 2):
            units[start:end] = unit
        muted = self._muted(ids, words, bounds, units, spans)
        spans = [span for span in spans if not muted[span[0]]]
        positions = np.flatnonzero((units == 1) & (muted == 0))
        denied = np.searchsorted(bounds, np.flatnonzero(muted == DENIED), side="right") - 1
        return Batch(ids, scores, spans, muted, *self._resolve(ids, bounds, spans, positions, denied))

    def _scores(self, words: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """float32 [words]: log-odds that each word is a noun, with what its neighbours say."""
        kind, form, scores = words["kind"], words["form"], words["score"].copy()
        scores[1:] += self._before[kind[:-1], form[1:]]
        scores[:1] += self._before[Kind.BREAK, form[:1]]
        scores[:-1] += self._after[kind[1:], form[:-1]]
        return scores

    def _numbers(self, captions: Sequence[Any]) -> np.ndarray:
        if self._words.full:
            self._words = self._new_table()
        return self._words.numbers(cleaning.normalize(captions, self._words.tag_words, mark_names))

    def _bounds(self, ids: np.ndarray) -> np.ndarray:
        """int64 [captions + 1]: the first word of each caption, and the end of the last."""
        return np.concatenate([[0], np.flatnonzero(ids == self._words.end) + 1])

    def _muted(
        self, ids: np.ndarray, words: np.ndarray, bounds: np.ndarray, units: np.ndarray, spans: list[Span]
    ) -> np.ndarray:
        """uint8 [words]: the number in `MUTED` of what forbids a word to give a label, or 0. units: see `Caption`."""
        table = self._words
        muted = np.zeros(len(ids), np.uint8)
        triggers = np.flatnonzero(words["trigger"])
        triggers = triggers[~words["unit"][triggers] | (words["kind"][triggers - 1] == Kind.NUMBER)]
        for row in np.unique(np.searchsorted(bounds, triggers, side="right") - 1).tolist():
            start, end = bounds[row], bounds[row + 1]
            texts = [table.text[number] for number in ids[start:end].tolist()]
            caption = Caption(texts, words["kind"][start:end].tolist(), units[start:end].tolist())
            muted[[start + i for i in caption.denied()]] = DENIED
        for owner in np.flatnonzero(ids[1:] == table.genitive).tolist():
            certain = words["kind"][owner - 1] in (Kind.DETERMINER, Kind.NUMBER)
            if table.text[ids[owner]] in WEARERS and not certain:
                muted[owner] = DENIED
                muted[self._brand(ids, words["kind"], units, owner + 2)] = DENIED
        purposes = self._purposes(ids, words, bounds, units, spans)
        muted[purposes[muted[purposes] == 0]] = PURPOSE
        foreign = foreignness_of(words, bounds) >= FOREIGN
        if foreign.any():
            muted[np.repeat(foreign, np.diff(bounds)) & (words["score"] < np.inf)] = NOT_ENGLISH
            for start, end, phrase in spans:
                if table.reading[phrase].own:
                    muted[start:end] = 0
        return muted

    def _purposes(
        self, ids: np.ndarray, words: np.ndarray, bounds: np.ndarray, units: np.ndarray, spans: list[Span]
    ) -> np.ndarray:
        """Words that say what goods are for, in titles."""
        roles = words["role"].copy()
        title = titles(roles, bounds)
        if not title.any():
            return np.zeros(0, np.int64)
        at = np.flatnonzero(np.repeat(title, np.diff(bounds)))
        ids, units = ids[at], np.where(words["score"][at] < np.inf, units[at], 0)  # terms of one's own are always meant
        roles = np.where(units == 1, roles[at], 0)
        for i in np.flatnonzero(units > 1).tolist():
            phrase = spans[units[i] - 2][2]
            roles[i] = self._words.rows["role"][phrase]
            units[i] = 0 if self._words.reading[phrase].own else units[i]
        some = Title(roles, units, words["kind"][at], words["form"][at], np.flatnonzero(ids == self._words.end))
        return at[some.purposes(ids == self._words.purpose, ids == self._words.genitive)]

    def _brand(self, ids: np.ndarray, kinds: np.ndarray, units: np.ndarray, start: int) -> list[int]:
        """The nouns between "men's" and the product, but for materials: Nike Air Max 90 before running shoe."""
        end = next((i for i in range(start, len(ids)) if kinds[i] in STOPS), len(ids))
        nouns = [i for i in range(start, end) if units[i]]
        phrase = units[nouns[-1]] if nouns else 0
        product = [i for i in nouns if units[i] == phrase > 1] or nouns[-1:]
        return [i for i in nouns if i not in product and not (units[i] == 1 and self._words.material(int(ids[i])))]

    def _resolve(
        self, ids: np.ndarray, bounds: np.ndarray, spans: list[Span], positions: np.ndarray, denied: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give every noun and phrase its labels, and every label its caption: (rows, labels, positions).

        positions: of the nouns. denied: the captions of what is said to be absent, which is company all the same.
        """
        numbers = ids[positions]
        if spans:
            starts, _, phrases = np.array(spans).T
            positions, numbers = np.concatenate([positions, starts]), np.concatenate([numbers, phrases])
        found = self._words.rows.take(numbers)
        real = found["label"] != NO_LABEL
        positions, numbers, found = positions[real], numbers[real], found[real]
        labels, rows = found["label"].copy(), np.searchsorted(bounds, positions, side="right") - 1
        alone = np.zeros(len(rows), bool)
        if self.several:  # "A photo of": the photo is no company.
            counted = np.concatenate([rows[~self._words.rows["carrier"][ids[positions]]], denied])
            alone = np.bincount(counted, minlength=len(bounds) - 1)[rows] == 1
        more: list[tuple[int, int, int]] = []
        unsure = np.flatnonzero((labels == BY_CONTEXT) | (alone & found["several"]))
        columns = numbers[unsure], bounds[rows[unsure]], bounds[rows[unsure] + 1], alone[unsure]
        for i, number, start, end, lone in zip(unsure.tolist(), *(column.tolist() for column in columns), strict=True):
            caption = [self._words.text[word] for word in ids[start:end].tolist()]
            labels[i], *others = self._senses(number, caption, lone)
            more += [(int(rows[i]), label, int(positions[i])) for label in others]
        if more:
            columns = zip((rows, labels, positions), np.array(more).T, strict=True)
            rows, labels, positions = (np.concatenate(pair) for pair in columns)
        above = np.flatnonzero(found["head"] != NO_LABEL)
        heads = rows[above], found["head"][above], positions[above]
        rows, labels, positions = map(np.append, (rows, labels, positions), heads)
        return rows, labels, positions

    def _senses(self, number: int, caption: list[str], alone: bool) -> list[int]:
        """Labels of a word or phrase of several senses, given the words of its caption."""
        reading = self._words.reading[number]
        for synset, cues in reading.cues:
            if not cues.isdisjoint(caption):
                return [self.index[synset]]
        return [self.index[synset] for synset in reading.synsets[: None if alone or reading.own else 1]]

    def spoken(self, captions: Sequence[Any]) -> Counter[tuple[str, str]]:
        """(synset, the word or phrase that it was read from, in the singular) -> uses."""
        if len(captions) > SPOKEN_CHUNK:
            parts = range(0, len(captions), SPOKEN_CHUNK)
            return sum((self.spoken(captions[i : i + SPOKEN_CHUNK]) for i in parts), Counter())
        batch = self.run(captions)
        phrases = {start: number for start, _, number in batch.spans}
        found: Counter[tuple[str, str]] = Counter()
        for position, label in zip(batch.positions.tolist(), batch.labels.tolist(), strict=True):
            number = phrases.get(position, batch.ids[position])
            reading, text = self._words.reading[number], self._words.text[number]
            if self._synsets[label] != reading.head:
                own = text in word_lists()["cue"] or text in word_lists()["sense"]  # glasses, trunks
                found[self._synsets[label], text if own else reading.singular.replace("_", " ")] += 1
        return found

    def explain(self, caption: str) -> list[tuple[str, tuple[str, ...], str]]:
        """(word or phrase, its labels, why), in order, from the arrays of the very run that labels the caption."""
        batch = self.run([caption])
        texts = [self._words.text[number].removesuffix(cleaning.NAME) for number in batch.ids.tolist()]
        given: dict[int, list[str]] = {}
        for position, label in zip(batch.positions.tolist(), batch.labels.tolist(), strict=True):
            given.setdefault(position, []).append(self._synsets[label])
        phrases = {start: (end, number) for start, end, number in batch.spans}
        told, position = [], 0
        while position < len(texts) - 1:
            labels = tuple(dict.fromkeys(given.get(position, ())))
            end, phrase = phrases.get(position, (position + 1, None))
            if phrase is not None:
                why = self._words.reading[phrase].why + ("; and what it is a kind of" if len(labels) > 1 else "")
                told.append((" ".join(texts[position:end]), labels, why))
            elif texts[position] != cleaning.BREAK:
                told.append((texts[position], labels, self._reason(batch, position, labels)))
            position = end
        return told if not self.foreign([caption]) else not_in(told, f"not in {self.spoken_language}")

    def _reason(self, batch: Batch, position: int, labels: tuple[str, ...]) -> str:
        reading = self._words.reading[batch.ids[position]]
        if batch.muted[position] and reading.synsets:
            return MUTED[batch.muted[position]].format(language=self.spoken_language)
        if math.isinf(reading.score):
            return reading.why
        score, context = float(batch.scores[position]), float(batch.scores[position]) - reading.score
        why = f"{reading.why}; score {reading.score:+.1f}, neighbours {context:+.1f}"
        if not labels:
            return f"{why}: {score:+.1f} is below {THRESHOLD}"
        if reading.head:
            return f"{why}; and what it is a kind of"
        if len(labels) > 1:
            return f"{why}; several meanings, and nothing else in the caption to choose by"
        if labels != reading.synsets[:1]:
            return f"{why}; meaning chosen by another word of the caption"
        return why


@cache
def _elsewhere_words() -> list[frozenset[str]]:
    """All of them, and those of each language."""
    lists = [frozenset(words.split()) for (words,) in word_lists()["elsewhere"].values()]
    return [frozenset().union(*lists), *lists]


def not_in(told: list[tuple[str, tuple[str, ...], str]], where: str) -> list[tuple[str, tuple[str, ...], str]]:
    """What `explain` says of a caption in another language: where it is not is why its words have no labels."""
    return [(text, labels, why if labels else f"the caption is {where}") for text, labels, why in told]


def foreignness_of(words: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """int32 [captions]: what the words of each say against the language of the rule, in log-odds."""
    return np.add.reduceat(words["foreign"], bounds[:-1], dtype=np.int32)
