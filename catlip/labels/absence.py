"""Nouns of a caption that name nothing in the picture: what it says is not there, and units of measurement.

"a room without windows", "no dogs allowed", "a sugar-free drink", "batteries not included", "a 12 foot ladder". Only
captions with one of the words in `TRIGGERS` are looked at, one by one; they are few. What is denied is the noun phrase
after (or before) the trigger, and those that "or" joins to it; "and" begins something that is there (no shirt and blue
shorts: all of Flickr30k's), but for bare nouns after "without".
"""

from collections.abc import Iterator, Sequence

from catlip.labels.cleaning import FREE
from catlip.labels.readings import CLOSED, Kind

_DENY = frozenset("no without lack lacks lacking minus sans".split())
_DENY_WITH_OF = frozenset("absence bereft clear devoid empty free instead lack void".split())
_NOT_VERBS = frozenset(
    """carry carrying contain containing find got have having hold holding include including own see
    show showing use using wear wearing""".split()
)
_LIGHT = frozenset("carrying having holding showing using wearing".split())
_INDEFINITE = frozenset("a an any one single".split())
_DEFINITE = frozenset("the this that these those each every all both".split())
_NOT_THERE = frozenset("allowed included permitted pictured present seen shown visible".split())
_FORBIDDEN = frozenset("banned forbidden prohibited".split())
# No doubt, no longer, no matter what, Comic Sans Serif: nothing is denied that could be seen.
_IDIOMS = frozenset("doubt fail fewer less longer matter mere ordinary question serif sooner wonder".split())
# No evidence of a fracture: what is denied comes after "of".
_TRACES = frozenset(
    """evidence hint indication indications kind presence sign signs sort suggestion trace traces type
    view""".split()
)
# The thing itself is there in "a no dogs sign", "a no entry zone".
_SIGNS = frozenset("area board icon label logo notice poster sign signs sticker stickers symbol zone zones".split())
# Before "free", written apart: in "dog free vector" nothing is free of dogs.
_FREE_OF = frozenset(
    """alcohol car dairy drug dust duty egg fat fragrance gluten grain ice lead meat milk nut oil
    peanut pet plastic rust scent smoke soy sugar tax toll wheat wire""".split()
)
UNITS = {
    unit: unit in ("foot", "yard", "star", "thread", "knot")  # whether it is a singular: "two foot", but two feet
    for unit in "foot feet yard yards star thread knot knots".split()
}
TRIGGERS = frozenset({*_DENY, *_DENY_WITH_OF, *_FORBIDDEN, *UNITS, FREE, "not", "missing", "neither", "non", "anti"})

WORDS = frozenset().union(
    TRIGGERS, _NOT_VERBS, _LIGHT, _INDEFINITE, _DEFINITE, _NOT_THERE, _IDIOMS, _TRACES, _SIGNS, _FREE_OF
)
_MOST = 12  # words of a noun phrase, and noun phrases of a list

_STOPS = (Kind.BREAK, Kind.PREPOSITION, Kind.CONJUNCTION, Kind.PRONOUN, Kind.AUXILIARY, Kind.TO)
_NOUNS = (Kind.SINGULAR, Kind.PLURAL, Kind.AGENT, Kind.AGENTS)


class Denial:
    """One caption. units: of each word 0: no label of its own, 1: a noun, or the number (from 2) of its phrase.

    words and kinds end with what ends a caption, which is a `Kind.BREAK`.
    """

    def __init__(self, words: Sequence[str], kinds: Sequence[int], units: Sequence[int]) -> None:
        self.words, self.kinds, self.units = words, kinds, units

    def positions(self) -> Iterator[int]:
        """Words that give no label because of what stands near them; repetitions are possible."""
        for i, word in enumerate(self.words):
            if word in TRIGGERS and self.units[i] < 2:
                yield from self._of(i, word)

    def _of(self, i: int, word: str) -> Iterator[int]:
        after = self.words[i + 1]
        if word in _DENY_WITH_OF and after in ("of", "from"):
            yield from self._after(i + 2)
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
        elif word == "missing":
            absent = list(self._after(i + 1, definite=False))
            ends = self.kinds[i + 1] in (Kind.BREAK, Kind.PREPOSITION, Kind.CONJUNCTION)
            yield from absent or (self._before(i - 1) if ends else ())
        elif word == FREE or (word == "free" and i and self.words[i - 1] in _FREE_OF and self._noun(i + 1)):
            yield from self._unit(i - 1)
        elif word in ("non", "anti") and self._noun(i + 1) and self._noun(i + 2):
            yield from self._unit(i + 1)
        elif word in UNITS and i and self._measures(self.words[i - 1], singular=UNITS[word]):
            yield i

    def _noun(self, i: int) -> bool:
        return i < len(self.words) and (self.units[i] > 0 or self.kinds[i] in _NOUNS)

    def _measures(self, number: str, *, singular: bool) -> bool:
        return number[0].isdigit() or (singular and number != "one" and CLOSED.get(number) == Kind.NUMBER)

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
            goes_on |= word == "of" and self.words[i - 1] in _TRACES
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
        if self.words[i] in _LIGHT:
            i += 1
        start, seen = i, False
        if self.words[i][0].isdigit() or (self.words[i].endswith("ing") and not self.units[i]):
            return range(0)  # No. 5; no parking sign, without looking at the dog
        end = i + _MOST
        while i < end and self.kinds[i] not in _STOPS and (not seen or self.units[i] or self.words[i] == "'s"):
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
