"""Nouns of a caption that name nothing in the picture: what it denies or doubts, and units of measurement.

"a room without windows", "no dogs allowed", "a sugar-free drink", "batteries not included", "a 12 foot ladder"; in
reports also "rule out pneumonia", "possible fracture", "pneumothorax is not seen", as in NegEx (Chapman et al. 2001,
doi 10.1006/jbin.2001.1029): a trigger denies what follows or what it follows, up to a word that ends its scope. Only
captions with one of the words in `TRIGGERS` are looked at, one by one; they are few. What is denied is the noun phrase
after (or before) the trigger, and those that "or" joins to it; "and" begins something that is there (no shirt and blue
shorts: all of Flickr30k's), but for bare nouns after "without" and after "no evidence of".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from catlip.labels.cleaning import FREE
from catlip.labels.nouns.words import FUNCTION_WORDS, STOPS, Kind, word_list

# words.tsv says what each list is for.
_DENY, _DENY_OF = word_list("negation", "deny"), word_list("negation", "deny-of")
_PAIRS = word_list("negation", "deny-two")
_NOT_VERBS, _LIGHT_VERBS = word_list("negation", "not-verb"), word_list("negation", "light-verb")
_INDEFINITE, _DEFINITE = word_list("negation", "indefinite"), word_list("negation", "definite")
_NOT_THERE, _FORBIDDEN = word_list("negation", "not-there"), word_list("negation", "forbidden")
_IDIOMS, _TRACES = word_list("negation", "idiom"), word_list("negation", "trace")
_SIGNS, _FREE_OF = word_list("negation", "sign"), word_list("negation", "free-of")
_SINGULAR_UNITS = word_list("negation", "unit-singular")  # "two foot", but two feet
UNITS = _SINGULAR_UNITS | word_list("negation", "unit")
_OTHERS = {FREE, "not", "missing", "neither", "non", "anti", "separately", "represent"}
TRIGGERS = _DENY | _DENY_OF | _FORBIDDEN | UNITS | _OTHERS | {pair.split("_")[0] for pair in _PAIRS}
_MOST = 12  # words of a noun phrase, and noun phrases of a list

_NOUNS = (Kind.SINGULAR, Kind.PLURAL, Kind.AGENT, Kind.AGENTS)


@dataclass(slots=True)
class Caption:
    """The words of one caption; the last is what ends it, a `Kind.BREAK`."""

    words: Sequence[str]
    kinds: Sequence[int]  # `Kind` of each word
    units: Sequence[int]  # of each word 0: no label of its own, 1: a noun, or the number (from 2) of its phrase

    def denied(self) -> Iterator[int]:
        """Words that give no label because of what stands near them; repetitions are possible."""
        for i, word in enumerate(self.words):
            if word in TRIGGERS and self.units[i] < 2:
                yield from self._denied_by(i, word)

    def _denied_by(self, i: int, word: str) -> Iterator[int]:
        after = self.words[i + 1]
        if f"{word}_{after}" in _PAIRS:
            before = i > 0 and self.kinds[i - 1] == Kind.AUXILIARY and self.kinds[i + 2] in STOPS
            yield from self._before(i - 1) if before else self._after(i + 2)  # is ruled out; rule out
        elif word in _DENY_OF and after in ("of", "from"):
            yield from self._after(i + 2)
        elif word == "represent" and i and self.words[i - 1] in ("may", "might", "could"):
            yield from self._after(i + 1)
        elif word == "no" and after == "longer":
            yield from self._before(i - 1) if self.words[i + 2] in _NOT_THERE else ()
        elif word in _DENY:
            yield from self._after(i + 1, bare=word == "without")
        elif word == "neither":
            yield from self._after(i + 1, joined="nor")
        elif word == "not" and after in _INDEFINITE:
            yield from self._after(i + 1, definite=False)
        elif word == "not" and after in _NOT_VERBS:
            yield from self._after(i + 2, definite=False)
        elif (word == "not" and after in _NOT_THERE) or word in _FORBIDDEN:
            yield from self._before(i - 1)
        elif word == "separately" and i > 1 and self.words[i - 1] == "sold":
            yield from self._before(i - 2)
        elif word == "missing":
            absent = list(self._after(i + 1, definite=False))
            ends = self.kinds[i + 1] in (Kind.BREAK, Kind.PREPOSITION, Kind.CONJUNCTION)
            yield from absent or (self._before(i - 1) if ends else ())
        elif word == FREE or (word == "free" and i and self.words[i - 1] in _FREE_OF and self._noun(i + 1)):
            yield from self._unit(i - 1)
        elif word in ("non", "anti") and self._noun(i + 1) and self._noun(i + 2):
            yield from self._unit(i + 1)
        elif word in UNITS and i and self._measures(self.words[i - 1], singular=word in _SINGULAR_UNITS):
            yield i

    def _noun(self, i: int) -> bool:
        return i < len(self.words) and (self.units[i] > 0 or self.kinds[i] in _NOUNS)

    def _measures(self, number: str, *, singular: bool) -> bool:
        return number[0].isdigit() or (singular and number != "one" and FUNCTION_WORDS.get(number) == Kind.NUMBER)

    def _unit(self, i: int) -> Iterator[int]:
        """A word, or all words of its phrase."""
        if i < 0:
            return
        end = i + 1
        if self.units[i] > 1:
            while i > 0 and self.units[i - 1] == self.units[i]:
                i -= 1
            while self.units[end] == self.units[i]:
                end += 1
        yield from range(i, end)

    def _before(self, i: int) -> Iterator[int]:
        """The nouns that end at i or before an auxiliary there, and those that "or" joins to them."""
        while i >= 0 and self.kinds[i] in (Kind.AUXILIARY, Kind.ADVERB):
            i -= 1
        while i >= 0 and (self.units[i] or self.words[i] in ("or", "nor")):
            yield i
            i -= 1

    def _after(self, i: int, *, definite: bool = True, bare: bool = False, joined: str = "") -> Iterator[int]:
        """The nouns that begin at i, and what "or" joins to them; "of" too after a word such as evidence.

        definite: whether "the" may begin them; bare: whether "and" joins nouns without an article; joined: a word
        without which nothing is denied.
        """
        found: list[range] = []
        sure = 0  # how many of them are denied; a list after commas is, once it ends with "or"
        while len(found) < _MOST and (phrase := self._phrase(i, definite=definite)):
            found.append(phrase)
            if len(found) == 1:
                sure = int(not joined)
            i = phrase.stop
            comma = self.kinds[i] == Kind.BREAK and i + 1 < len(self.words)
            i += comma
            word = self.words[i]
            goes_on = word in ("or", "nor") and joined in ("", word)
            trace = word in ("of", "for") and self.words[i - 1] in _TRACES
            bare |= trace
            goes_on |= trace
            goes_on |= word == "and" and bare and bool(self.units[i + 1] and self.units[phrase.start])
            if goes_on:
                sure, i = len(found) + 1, i + 1
            elif not comma:
                break
        for phrase in found[:sure]:
            for j in phrase:
                yield from self._unit(j)

    def _phrase(self, i: int, *, definite: bool) -> range:
        """The words from i on that make a noun phrase; none if nothing that could be seen is denied there."""
        if self.words[i] in _LIGHT_VERBS:
            i += 1
        start, seen = i, False
        if self.words[i][0].isdigit() or (self.words[i].endswith("ing") and not self.units[i]):
            return range(0)  # No. 5; no parking sign, without looking at the dog
        end = i + _MOST
        while i < end and self.kinds[i] not in STOPS and (not seen or self.units[i] or self.words[i] == "'s"):
            word = self.words[i]
            idiom = word in _IDIOMS or (word == "more" and self.words[i + 1] == "than")
            if idiom or (not definite and word in _DEFINITE):
                return range(0)
            if self.kinds[i] == Kind.DETERMINER and seen:
                start, seen = i + 1, False  # 's: without the dog's leash
            else:
                seen = seen or self._noun(i)
            i += 1
        if i - 1 > start and self.words[i - 1] in _SIGNS and self.units[i - 1] == 1 and self._noun(i - 2):
            i -= 1
        return range(start, i) if seen else range(0)
