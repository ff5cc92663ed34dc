"""The rule "nouns": captions -> synsets of the things that can be seen, 200,000 captions a second on one core.

A caption's words are judged in three steps, each on arrays over all words of a batch at once:
1. phrases: the longest WordNet entry that starts at a word ("fire hydrant"), if it can be seen;
2. nouns: the word's own score (`readings.py`) plus what the words before and after say ("a watch" / "he watches");
3. senses: one synset a word. Words of several visible meanings (bat, mouse, crane) look for cue words in the caption
   (words.tsv); in a caption that names nothing else all close meanings are kept, for there is nothing to choose by.

`explain` runs the very same code on one caption and reads its intermediate arrays, so that it cannot disagree.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from catlip.captions import cleaning
from catlip.captions.explained import Explained
from catlip.captions.readings import CLOSED, Candidate, Form, Kind, Reading, read, weigh, word_lists
from catlip.captions.wordnet import Lexicon

NO_LABEL, BY_CONTEXT = -1, -2
THRESHOLD = -1.5  # log-odds from which on a word is a label
MAX_PHRASE = 6  # words
CLOSE = 0.06  # a concrete meaning is kept beside the best one from this share of its weight on
MAX_MEANINGS = 3  # labels of a word that stands alone
ENGLISH = 0.34  # share of known words below which a caption is not English
NOT_ONLY_ENGLISH = frozenset(
    ["a", "am", "an", "as", "do", "en", "he", "her", "i", "in", "me", "no", "on", "per", "so", "was", "will"]
)
MAX_CACHED_WORDS = 300_000  # words no dictionary knows (web text is full of them) are not remembered beyond this

# What a neighbour says for (+) or against (-) a noun, by the word's other reading. Log-odds, by hand, checked on the
# gold set; columns: PLAIN, BASE_VERB, S_FORM, ING_FORM, PAST_FORM, ADJECTIVE, ADVERB.
BEFORE = {
    Kind.BREAK: (0, 0.0, 0.2, -0.5, 0.0, 0.2, -0.5),
    Kind.DETERMINER: (0, 2.0, 1.5, 1.5, 1.5, 0.5, 1.0),
    Kind.PREPOSITION: (0, 1.0, 1.2, 0.8, 1.0, 0.3, 0.5),
    Kind.CONJUNCTION: (0, -0.3, 0.0, -0.7, -0.5, 0.0, -0.5),
    Kind.PRONOUN: (0, -4.0, -3.0, -2.0, -3.0, -0.5, -1.0),
    Kind.AUXILIARY: (0, -1.5, -0.5, -2.5, -2.0, -0.7, -0.7),
    Kind.NUMBER: (0, 1.5, 2.5, 1.0, 1.0, 0.3, 0.0),
    Kind.ADVERB: (0, -0.7, -0.5, -1.0, -0.5, -0.3, 0.0),
    Kind.SINGULAR: (0, 0.7, -0.5, -0.3, -0.7, 0.0, -1.0),
    Kind.PLURAL: (0, -1.5, -0.5, -1.5, -1.0, -0.3, -1.0),
    Kind.VERB: (0, 0.8, 1.0, -0.5, 0.3, 0.3, -0.7),
    Kind.OTHER: (0, 0.8, 1.0, 0.5, 0.5, 0.3, 0.0),
    Kind.TO: (0, -3.0, 0.0, -0.5, -1.0, 0.0, -0.5),
    Kind.AGENT: (0, 0.0, -2.5, -2.0, -2.0, -0.3, -1.0),
    Kind.AGENTS: (0, -3.0, -1.5, -2.5, -2.0, -0.3, -1.0),
}
AFTER = {
    Kind.DETERMINER: (0, -1.0, -1.5, -2.0, -1.5, -0.5, 0.0),
    Kind.PREPOSITION: (0, -0.5, -0.3, -0.2, -0.3, 0.7, 0.0),
    Kind.PRONOUN: (0, -0.5, -1.0, -1.0, -1.0, 0.0, 0.0),
    Kind.ADVERB: (0, -0.5, -0.7, -0.7, -0.7, 0.0, 0.0),
    Kind.BREAK: (0, 0.3, 0.2, 0.0, 0.3, 0.7, 0.0),
    Kind.CONJUNCTION: (0, 0.2, 0.2, 0.0, 0.2, 0.5, 0.0),
    Kind.AUXILIARY: (0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.0),
    Kind.SINGULAR: (0, 0.0, -0.3, -0.3, -0.3, -1.5, -0.5),
    Kind.PLURAL: (0, 0.0, -0.3, -0.3, -0.3, -1.5, -0.5),
    Kind.AGENT: (0, 0.0, -0.3, -0.3, -0.3, -1.5, -0.5),
    Kind.AGENTS: (0, 0.0, -0.3, -0.3, -0.3, -1.5, -0.5),
    Kind.VERB: (0, 0.5, 0.2, 0.2, 0.2, 0.7, 0.0),
    Kind.NUMBER: (0, -0.5, -1.0, -0.7, -0.7, 0.0, 0.0),
    Kind.TO: (0, -0.3, -0.5, -0.5, -0.5, 0.3, 0.0),
    Kind.OTHER: (0, 0.0, -0.3, -0.3, -0.3, -0.5, 0.0),
}


def _table(rows: dict[Kind, tuple[float, ...]]) -> np.ndarray:
    table = np.zeros((len(Kind), len(Form)), np.float32)
    for kind, row in rows.items():
        table[kind] = row
    return table


class Numbers(dict[str, int]):
    """Word -> number; a word met for the first time is numbered by `judge`."""

    def __init__(self, judge: Callable[[str], int]) -> None:
        self.judge = judge

    def __missing__(self, word: str) -> int:
        return self.judge(word)


@dataclass(slots=True)
class Words:
    """All distinct words met so far; row i of every column belongs to word number i."""

    number: dict[str, int]
    text: list[str] = field(default_factory=list)
    reading: list[Reading] = field(default_factory=list)
    # kind, form, score, label, alone (labels if the word stands alone: more than one), hash, hash of the singular
    kind: np.ndarray = field(default_factory=lambda: np.zeros(1024, np.uint8))
    form: np.ndarray = field(default_factory=lambda: np.zeros(1024, np.uint8))
    score: np.ndarray = field(default_factory=lambda: np.zeros(1024, np.float32))
    label: np.ndarray = field(default_factory=lambda: np.zeros(1024, np.int32))
    several: np.ndarray = field(default_factory=lambda: np.zeros(1024, bool))
    carrier: np.ndarray = field(default_factory=lambda: np.zeros(1024, bool))
    english: np.ndarray = field(default_factory=lambda: np.zeros(1024, bool))
    key: np.ndarray = field(default_factory=lambda: np.zeros(1024, np.uint32))
    key_singular: np.ndarray = field(default_factory=lambda: np.zeros(1024, np.uint32))

    def reserve(self) -> None:
        for name in (
            "kind",
            "form",
            "score",
            "label",
            "several",
            "carrier",
            "english",
            "key",
            "key_singular",
        ):
            column = getattr(self, name)
            if len(column) <= len(self.text):
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))


@dataclass(frozen=True, slots=True)
class Phrase:
    """What a multi-word entry stands for."""

    label: int
    several: tuple[int, ...]
    lemma: str


@dataclass(slots=True)
class Batch:
    """Intermediate arrays over the words of a batch of captions, for `explain`."""

    texts: list[str]
    ids: np.ndarray
    scores: np.ndarray
    spans: list[tuple[int, int, Phrase]]  # first word, end, what it is
    emitted: np.ndarray  # bool: the word gives a label of its own
    rows: np.ndarray  # caption of each label
    labels: np.ndarray
    positions: np.ndarray  # word of each label


def _hash(word: str) -> int:
    return hash(word) & 0xFFFFFFFF


class NounRule:
    """See the module. `index` numbers the labels; `terms` are a domain's own phrases -> labels."""

    name = "nouns"

    def __init__(
        self, lexicon: Lexicon, index: dict[str, int], terms: dict[str, tuple[str, ...]] | None = None
    ) -> None:
        self.lexicon = lexicon
        self.index = index
        self._terms = {tuple(cleaning.normal(phrase)): labels for phrase, labels in (terms or {}).items()}
        self._before, self._after = _table(BEFORE), _table(AFTER)
        self._words = Words(Numbers(self._number))
        self._phrases: dict[str, Phrase | None] = {}
        self._pairs: dict[tuple[str, str], tuple[int, Phrase | None]] = {}  # only of words that start an entry
        self._open_phrases()
        self._unknown = self._add("\0unknown")
        self._end = self._add(cleaning.END)

    # ---- phrases -------------------------------------------------------------------------------------------------

    def _open_phrases(self) -> None:
        """Index every entry of two or more words by its first two."""
        self._entries: dict[str, str] = {}  # "fire hydrant" -> lemma "fire_hydrant"
        self._longest: dict[str, int] = {}  # "fire hydrant" -> words of the longest entry that starts so
        self._closed_up: dict[str, str] = {}  # "tshirt" -> "t shirt"
        plain: list[str] = []
        skip = word_lists().get("not-a-phrase", {})
        for lemma in self.lexicon.lemmas:
            if "_" not in lemma and "-" not in lemma and "'" not in lemma:
                plain.append(lemma)
                continue
            text = lemma.replace("_", " ").replace("-", " ").replace(".", "")
            if "'" in text or "/" in text:
                text = " ".join(cleaning.normal(text))
            if text.split(" ", 1)[0] not in CLOSED and text not in skip and not text.endswith(" 's"):
                self._enter(text, lemma)
        for text in word_lists()["sense"]:
            if " " in text:
                self._enter(text, text)
        for words in self._terms:
            if len(words) > 1:
                self._enter(" ".join(words), "")
        self._enter_split_compounds(plain)
        pairs = [pair.split(" ", 1) for pair in self._longest]
        first = np.array([_hash(a) for a, _ in pairs], np.uint32)
        second = np.array([_hash(b) for _, b in pairs], np.uint32)
        self._may_start = np.zeros(1 << 22, bool)
        self._may_start[self._slot(first, second)] = True

    def _enter(self, text: str, lemma: str) -> None:
        words = text.split(" ")
        if not 1 < len(words) <= MAX_PHRASE:
            return
        self._entries.setdefault(text, lemma)
        pair = f"{words[0]} {words[1]}"
        self._longest[pair] = max(self._longest.get(pair, 0), len(words))
        if len(words) == 2:
            self._closed_up.setdefault(words[0] + words[1], text)

    def _enter_split_compounds(self, plain: list[str]) -> None:
        """Closed compounds that people write apart: "skate board", "sun glasses" (pictured ones only)."""
        known = set(plain)
        nouns = {w for w in known if w not in CLOSED and "a" not in self.lexicon.other_readings(w)}  # no long beard
        for lemma in plain:
            if len(lemma) < 7 or not lemma.isalpha():
                continue
            for cut in range(3, len(lemma) - 2):
                head, tail = lemma[:cut], lemma[cut:]
                if head in nouns and tail in known and tail not in CLOSED:
                    if any(self.lexicon.synset(s.synset).pictured for s in self.lexicon.senses(lemma)):
                        text = f"{head} {tail}"
                        self._entries.setdefault(text, lemma)
                        self._longest.setdefault(text, 2)
                    break

    @staticmethod
    def _slot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (first * np.uint32(0x9E3779B1) ^ second * np.uint32(0x85EBCA6B)) >> np.uint32(10)

    def _find_phrases(self, texts: list[str], ids: np.ndarray) -> list[tuple[int, int, Phrase]]:
        """Leftmost longest phrases that can be seen, as (first word, end, phrase)."""
        words = self._words
        key = words.key[ids]
        starts = self._may_start[self._slot(key[:-1], key[1:])]
        starts |= self._may_start[self._slot(key[:-1], words.key_singular[ids[1:]])]
        spans, done = [], 0
        pairs = self._pairs
        for start in np.flatnonzero(starts).tolist():
            if start < done:
                continue
            pair = texts[start], texts[start + 1]
            known = pairs.get(pair)
            if known is None:
                known = pairs[pair] = self._open_pair(*pair)
            longest, phrase = known
            if longest > 2:
                found = self._match(texts, ids, start, longest)
                if found is not None:
                    spans.append(found)
                    done = found[1]
            elif phrase is not None:
                done = start + 2
                spans.append((start, done, phrase))
        return spans

    def _open_pair(self, first: str, second: str) -> tuple[int, Phrase | None]:
        """(words of the longest entry that starts with these two, the entry that they are)."""
        singular = self._words.reading[self._words.number[second]].singular
        found = [self._longest.get(f"{first} {word}", 0) for word in (second, singular)]
        return max(found), self._phrase(f"{first} {second}") or self._phrase(f"{first} {singular}")

    def _match(self, texts: list[str], ids: np.ndarray, start: int, longest: int) -> tuple[int, int, Phrase] | None:
        for length in range(min(longest, len(texts) - start), 1, -1):
            head = " ".join(texts[start : start + length - 1])
            last = start + length - 1
            for tail in (texts[last], self._words.reading[ids[last]].singular):
                phrase = self._phrase(f"{head} {tail}")
                if phrase is not None:
                    return start, start + length, phrase
        return None

    def _phrase(self, text: str) -> Phrase | None:
        if text not in self._entries:
            return None
        if text not in self._phrases:
            self._phrases[text] = self._judge_phrase(text)
        return self._phrases[text]

    def _judge_phrase(self, text: str) -> Phrase | None:
        own = self._terms.get(tuple(text.split(" ")))
        if own is not None:
            labels = tuple(self.index[label] for label in own)
            return Phrase(labels[0] if len(labels) == 1 else BY_CONTEXT, labels, text)
        lemma = self._entries[text]
        chosen = word_lists().get("sense", {}).get(text)
        if chosen:
            return Phrase(self.index[chosen[0]], (), lemma)
        candidates, unseen = weigh(self.lexicon, self.lexicon.senses(lemma), phrase=True)
        seen = sum(c.weight for c in candidates)
        if math.log(seen + 1e-6) - math.log(unseen + 0.05) < THRESHOLD:
            return None
        labels = self._close(candidates)
        return Phrase(labels[0], labels if len(labels) > 1 else (), lemma)

    # ---- words ---------------------------------------------------------------------------------------------------

    def _close(self, candidates: Sequence[Candidate]) -> tuple[int, ...]:
        """Labels of the best candidate and of the concrete ones close to it."""
        best, *others = candidates
        close = [c for c in others if c.concrete and c.weight >= CLOSE * best.weight]
        return tuple(self.index[c.synset] for c in [best, *close][:MAX_MEANINGS])

    def _add(self, word: str) -> int:
        """Judge a word met for the first time; its number."""
        words = self._words
        number = len(words.text)
        reading = self._read(word)
        label, several = NO_LABEL, False
        if (word,) in self._terms:
            labels = self._terms[(word,)]
            reading = Reading(reading.kind, Form.PLAIN, math.inf, (), word, "a term of your own lexicon")
            label = self.index[labels[0]] if len(labels) == 1 else BY_CONTEXT
        elif not reading.candidates and word in self._closed_up and word not in self.lexicon:
            phrase = self._phrase(self._closed_up[word])
            if phrase is not None:
                reading = Reading(Kind.SINGULAR, Form.PLAIN, 0.0, (), word, f'"{phrase.lemma}" written as one word')
                label = phrase.label
        elif reading.candidates:
            label = self.index[reading.candidates[0].synset]
            several = len(self._close(reading.candidates)) > 1
            if word in word_lists()["cue"] or reading.singular in word_lists()["cue"]:
                label = BY_CONTEXT
        words.reserve()
        words.number[word] = number
        words.text.append(word)
        words.reading.append(reading)
        words.kind[number], words.form[number] = reading.kind, reading.form
        words.score[number], words.label[number], words.several[number] = reading.score, label, several
        words.carrier[number] = reading.singular in word_lists().get("carrier", {})
        known = len(word) > 3 and (word in self.lexicon or reading.singular in self.lexicon)
        words.english[number] = known or (word in CLOSED and word not in NOT_ONLY_ENGLISH)
        words.key[number], words.key_singular[number] = _hash(word), _hash(reading.singular)
        return number

    def _read(self, word: str) -> Reading:
        if word in (cleaning.END, cleaning.BREAK):
            return Reading(Kind.BREAK, Form.PLAIN, -math.inf, (), word, "punctuation")
        return read(self.lexicon, word)

    def _number(self, word: str) -> int:
        """Number of a word; a new one is judged, and remembered unless there are too many that no dictionary knows."""
        if len(self._words.text) >= MAX_CACHED_WORDS and word not in self.lexicon:
            return self._unknown
        return self._add(word)

    # ---- captions ------------------------------------------------------------------------------------------------

    def run(self, captions: Sequence[Any]) -> Batch:
        """All of the rule, on a batch of captions."""
        texts = cleaning.split(captions)
        ids = np.fromiter(map(self._words.number.__getitem__, texts), np.int32, len(texts))
        words = self._words
        spans = self._find_phrases(texts, ids)
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
        return self._resolve(texts, ids, scores, spans, emitted, positions, labels[positions])

    def _resolve(
        self, texts: list[str], ids: np.ndarray, scores: np.ndarray, spans: list[tuple[int, int, Phrase]],
        emitted: np.ndarray, positions: np.ndarray, labels: np.ndarray,
    ) -> Batch:  # fmt: skip
        """Give every emitted word and phrase its labels, and every label its caption."""
        ends = ids == self._end
        row_of = np.cumsum(ends) - ends
        n_rows = int(ends.sum())
        if spans:
            positions = np.concatenate([positions, np.array([start for start, _, _ in spans])])
            labels = np.concatenate([labels, np.array([phrase.label for _, _, phrase in spans], np.int32)])
        rows = row_of[positions]
        counted = rows[~self._words.carrier[ids[positions]]]  # "a photo of": the photo is no company
        alone = np.bincount(counted, minlength=n_rows)[rows] == 1
        phrase_at = {start: phrase for start, _, phrase in spans}
        several = self._words.several[ids[positions]] | (positions >= 0) & alone & np.isin(positions, list(phrase_at))
        open_ = np.flatnonzero((labels == BY_CONTEXT) | (alone & several))
        if len(open_):
            extra_rows, extra_labels, extra_positions = [], [], []
            bounds = np.concatenate([[0], np.flatnonzero(ends) + 1])
            for i in open_.tolist():
                row, position = int(rows[i]), int(positions[i])
                caption = texts[bounds[row] : bounds[row + 1]]
                meant = self._meanings(texts[position], ids[position], phrase_at.get(position), caption, bool(alone[i]))
                labels[i] = meant[0]
                for label in meant[1:]:
                    extra_rows.append(row)
                    extra_labels.append(label)
                    extra_positions.append(position)
            rows = np.concatenate([rows, np.array(extra_rows, rows.dtype)])
            labels = np.concatenate([labels, np.array(extra_labels, labels.dtype)])
            positions = np.concatenate([positions, np.array(extra_positions, positions.dtype)])
        return Batch(texts, ids, scores, spans, emitted, rows, labels, positions)

    def _meanings(self, text: str, number: int, phrase: Phrase | None, caption: list[str], alone: bool) -> list[int]:
        """Labels of a word of several meanings, given the words of its caption."""
        if phrase is not None:
            return list(phrase.several) or [phrase.label]
        if (text,) in self._terms:
            return [self.index[label] for label in self._terms[(text,)]]
        reading = self._words.reading[number]
        cues = word_lists()["cue"]
        fields = cues.get(text) or cues.get(reading.singular)
        if fields:
            present = set(caption)
            present |= {self._words.reading[self._words.number[w]].singular for w in caption if w in self._words.number}
            for synset_and_words in fields[1:]:
                synset, _, listed = synset_and_words.partition(" ")
                if not present.isdisjoint(listed.split(" ")):
                    return [self.index[synset]]
            if not alone:
                return [self.index[fields[0]]]
        close = self._close(reading.candidates) if alone else ()
        first = [self.index[fields[0]]] if fields else []
        meant = list(dict.fromkeys([*first, *close]))
        return meant or [self.index[reading.candidates[0].synset]]

    def foreign(self, captions: Sequence[Any]) -> int:
        """Captions of four words or more of which WordNet's nouns and English function words know too few."""
        if not captions:
            return 0
        texts = cleaning.split(captions)
        ids = np.fromiter(map(self._words.number.__getitem__, texts), np.int32, len(texts))
        starts = np.concatenate([[0], np.flatnonzero(ids == self._end)[:-1] + 1])
        words = np.add.reduceat(self._words.kind[ids] != Kind.BREAK, starts)
        known = np.add.reduceat(self._words.english[ids], starts)
        return int(((words >= 4) & (known < ENGLISH * words)).sum())

    def explain(self, caption: str) -> list[Explained]:
        """What became of each word, from the arrays of the very run that labels the caption."""
        batch = self.run([caption])
        synsets = sorted(self.index)
        given: dict[int, list[str]] = {}
        for position, label in zip(batch.positions.tolist(), batch.labels.tolist(), strict=True):
            given.setdefault(position, []).append(synsets[label])
        phrases = {start: (end, phrase) for start, end, phrase in batch.spans}
        told, position = [], 0
        while position < len(batch.texts) - 1:
            labels = tuple(dict.fromkeys(given.get(position, ())))
            if position in phrases:
                end, phrase = phrases[position]
                told.append(Explained(" ".join(batch.texts[position:end]), labels, f'phrase "{phrase.lemma}"'))
                position = end
                continue
            if batch.texts[position] != cleaning.BREAK:
                told.append(Explained(batch.texts[position], labels, self._reason(batch, position, labels)))
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
        batch = self.run(captions)
        return batch.rows, batch.labels
