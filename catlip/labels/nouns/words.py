"""One word, out of context: which senses can be seen in a picture, and how likely is it a noun at all?

WordNet lists "a" (angstrom), "are" (100 square metres), "white" (a person) and "while" (a time) as nouns. What
separates them from "dog" is in WordNet too: how often its tagged texts use a spelling as verb, adjective or adverb;
which lexicographer file a sense is in (animal, artifact, ... against cognition, time, ...); and which synsets people
could find pictures for (ImageNet-21k). Those three become one score per word; `rule.py` adds what its neighbours say.

Tried and rejected: the first sense of every token (precision .39 on captions), dropping every word that has a verb
reading (loses park, building, stand, swing), and a learned tagger (no corpus that may be shipped; see LOG.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from pathlib import Path

from catlip.labels.cleaning import BREAK, END, NAME
from catlip.labels.wordnet import Lexicon, Sense, Synset

SYNONYMS_FILE = Path(__file__).with_name("synonyms.tsv")  # made by tools/build_synonyms.py, verdicts reviewed by hand
# How visible the senses of a lexicographer file are, for synsets outside ImageNet-21k. Tuned on the gold set's
# development half; the order matters more than the values.
VISIBLE = {
    "animal": 1.0, "artifact": 1.0, "body": 1.0, "food": 1.0, "plant": 1.0, "person": 0.9, "object": 0.9, "tops": 0.8,
    "substance": 0.5, "group": 0.4, "location": 0.4, "shape": 0.3, "phenomenon": 0.25, "communication": 0.08,
    "event": 0.06, "act": 0.03, "possession": 0.03, "process": 0.02, "state": 0.02, "attribute": 0.02,
    "cognition": 0.02, "quantity": 0.02, "time": 0.01, "feeling": 0.01, "relation": 0.01, "motive": 0.0,
}  # fmt: skip
PICTURED = 0.9  # visibility of a synset of ImageNet-21k, whatever its file but attribute (colours)
# Captions are lower-cased, so a capitalised sense (Crane the writer, Turkey the country) must wait for the others.
CAPITALISED = 0.1
CONCRETE = 0.3  # kinds of things from this visibility on
PREFERENCE = 1.5  # of a pictured sense over one that is only of a visible kind
# Share of a verb's tagged uses that a given spelling of it can claim: base forms are rare in captions.
BASE_VERB, S_FORM, INFLECTED, ADJECTIVE, ADVERB = 0.25, 0.25, 0.5, 1.0, 1.0
OWN_LEMMA = 0.3  # "glasses" stays its own lemma from this share of the weight of "glass" on
UNTAGGED = 0.5  # count given to a reading that the tagged texts never use
CLOSE = 0.06  # a concrete sense is kept beside the best one from this share of its weight on
MAX_SENSES = 3  # labels of a word that stands alone
# Log-odds of a word against its caption being English: a function word of English; a noun of WordNet, which may be
# borrowed or coincide (court, plage), and a short one; a word that nothing knows, such as a brand; a function word of
# another language in names, and elsewhere; a word in another script, one for each letter but no more than SCRIPT.
ENGLISH, NOUN, SHORT_NOUN, UNKNOWN, OF_NAMES, FOREIGN_WORD, SCRIPT = -6, -2, -1, 2, 4, 6, 24


class Form(IntEnum):
    """What else than a noun a word can be: decides how its neighbours speak for or against the noun."""

    PLAIN = 0
    BASE_VERB = 1  # walk, stand
    S_FORM = 2  # walks, stands
    ING_FORM = 3  # building, clothing
    PAST_FORM = 4  # ground, rose, left
    ADJECTIVE = 5  # orange, head, adult
    ADVERB = 6  # home, outside


class Kind(IntEnum):
    """What a word is to its neighbours."""

    BREAK = 0
    DETERMINER = 1
    PREPOSITION = 2
    CONJUNCTION = 3
    PRONOUN = 4
    AUXILIARY = 5
    NUMBER = 6
    ADVERB = 7
    SINGULAR = 8
    PLURAL = 9
    VERB = 10
    OTHER = 11
    TO = 12
    AGENT = 13  # a person or animal: what follows may be what it does
    AGENTS = 14


STOPS = (Kind.BREAK, Kind.PREPOSITION, Kind.CONJUNCTION, Kind.PRONOUN, Kind.AUXILIARY, Kind.TO)  # end a noun phrase


@dataclass(frozen=True, slots=True)
class Reading:
    """What a word, or a phrase, is out of context."""

    kind: Kind
    singular: str  # the lemma it was found under ("men" -> "man"), or the word itself
    why: str  # for people: what decided
    form: Form = Form.PLAIN
    score: float = -math.inf  # log-odds that it is a noun for something visible; inf: a term of one's own
    # The sense meant, then those close to it, which count where nothing in the caption speaks for one of them.
    synsets: tuple[str, ...] = ()
    cues: tuple[tuple[str, frozenset[str]], ...] = ()  # (another sense, words of the caption that announce it)
    own: bool = False  # a term of one's own: all its labels count
    head: str = ""  # of a phrase: the synset of its last word, if the phrase is a kind of it


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sense that a word may have in a picture."""

    synset: str
    weight: float
    pictured: bool = True
    concrete: bool = True  # pictured and a thing, not a person, a sport or a broadcast: may stand beside the best sense


@cache
def word_lists() -> dict[str, dict[str, tuple[str, ...]]]:
    """The tables of words.tsv, which describes them: {section: {word: fields}}."""
    tables: dict[str, dict[str, tuple[str, ...]]] = {}
    for line in Path(__file__).with_name("words.tsv").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            section, word, *fields = line.split("\t")
            tables.setdefault(section, {})[word] = tuple(fields)
    return tables


@cache
def canonical_synsets() -> dict[str, str]:
    """Synset -> the one that stands for it, of those that name the same visible thing (synonyms.tsv)."""
    found: dict[str, str] = {}
    for line in SYNONYMS_FILE.read_text(encoding="utf-8").splitlines():
        verdict, *row = line.split("\t")
        if verdict == "same":
            found[row[0]] = row[1]
    for synset, canonical in found.items():
        while canonical in found:
            canonical = found[canonical]
        found[synset] = canonical
    return found


def word_list(section: str, name: str) -> frozenset[str]:
    """One of the lists at the end of words.tsv."""
    return frozenset(word_lists()[section][name][0].split())


FUNCTION_WORDS = {
    word: Kind[kind.upper()] for kind, (words,) in word_lists()["function"].items() for word in words.split()
}
# The commonest words of captions that are neither nouns of WordNet nor function words.
COMMON_WORDS = word_list("language", "english")
_SHARED, _OTHER, _NAMES = (word_list("language", name) for name in ("shared", "other", "names"))


def read(lexicon: Lexicon, word: str) -> Reading:
    """Judge one lower-case word out of context."""
    if word in (END, BREAK):
        return Reading(Kind.BREAK, word, "punctuation")
    if word in FUNCTION_WORDS:
        return Reading(FUNCTION_WORDS[word], word, "function word")
    if word[0].isdigit():
        return Reading(Kind.NUMBER, word, "number")
    if word[-1] == NAME:
        return Reading(Kind.AGENT, word[:-1], "part of a name")
    if len(word) == 1:
        return Reading(Kind.OTHER, word, "single letter")
    lemma, senses = lookup(lexicon, word)
    never, sense, cue = (word_lists()[section].get(word) for section in ("never", "sense", "cue"))
    if not (never or sense or cue):  # shorts are visible, although nothing short is
        never, sense, cue = (word_lists()[section].get(lemma) for section in ("never", "sense", "cue"))
    if len(lemma) < 3 and not (sense or cue):
        return Reading(Kind.OTHER, word, "an abbreviation")  # no actinium, selenium or district attorney
    if not (senses or sense or cue):
        return Reading(_kind_by_ending(word), word, "not a noun of WordNet")
    candidates, unseen = weigh(lexicon, senses)
    chosen = sense or cue
    if chosen:
        candidates = _corrected(candidates, chosen[0], only=bool(sense))
    seen = sum(candidate.weight for candidate in candidates)
    if chosen:  # whoever chose it has seen it
        seen, unseen = seen + unseen, 0.0
    lexfile = lexicon.synset(candidates[0].synset).lexfile if candidates else ""
    form, others = _other_readings(lexicon, word, lemma)
    if form == Form.ADJECTIVE and lexfile == "substance":
        form = Form.PLAIN  # a cardboard box, a rubber boot: a material before a noun is still there to be seen
    plural = lemma != word or word in word_lists()["plural"]
    if form != Form.PLAIN and others > 4 * (seen + unseen):
        kind = Kind.VERB if form in (Form.S_FORM, Form.ING_FORM, Form.PAST_FORM) else Kind.OTHER
    elif lexfile in ("person", "animal", "group"):
        kind = Kind.AGENTS if plural else Kind.AGENT
    else:
        kind = Kind.PLURAL if plural else Kind.SINGULAR
    if never:
        return Reading(kind, lemma, never[0], form)
    score = math.log(seen + 1e-6) - math.log(unseen + others + 0.05)
    why = f"visible {seen:.1f} : other senses {unseen:.1f}, as {form.name.lower().replace('_', ' ')} {others:.1f}"
    synsets = close_senses([candidate for candidate in candidates if candidate.weight > 0])
    if cue:
        synsets = tuple(dict.fromkeys([cue[0], *synsets]))
    return Reading(kind, lemma, why, form, score, synsets, tuple(map(_cues, cue[1:])) if cue else ())


def lookup(lexicon: Lexicon, word: str) -> tuple[str, list[Sense]]:
    """(lemma, senses) of a single word, singular or plural.

    An irregular plural is the plural of its singular (men: several of man, not the work force). A spelling that is a
    lemma of its own and a regular plural too is what weighs more: glasses are spectacles, hands are no work force.
    """
    for irregular in lexicon.irregular(word):
        if irregular in lexicon and irregular != word:
            return irregular, lexicon.senses(irregular)
    own = lexicon.senses(word)
    singular = next((singular for singular in lexicon.singulars(word) if len(singular) > 1), "")
    if singular:
        senses = lexicon.senses(singular)
        if not own or _seen(lexicon, own) < OWN_LEMMA * _seen(lexicon, senses):
            return singular, senses
    return word, own


def _seen(lexicon: Lexicon, senses: list[Sense]) -> float:
    return sum(candidate.weight for candidate in weigh(lexicon, senses)[0])


def weigh(lexicon: Lexicon, senses: list[Sense], *, phrase: bool = False) -> tuple[list[Candidate], float]:
    """(visible senses by weight, mass of the senses that cannot be seen).

    Captions are lower-cased here, so a capitalised sense has to stand back where there is another; and a named
    individual, a city or a writer, nearly always. A phrase (Christmas tree, Great Dane) is itself whatever its case.
    """
    candidates, unseen, order = [], 0.0, dict[str, float]()
    tagged = any(sense.count for sense in senses)  # else the order of the senses says nothing
    only_capitalised = phrase or all(sense.capitalised for sense in senses)
    for rank, sense in enumerate(senses):
        synset = lexicon.synset(sense.synset)
        mass = sense.count + UNTAGGED / (1 + rank)
        visible = visibility(synset)
        if synset.instance or (sense.capitalised and not only_capitalised):
            visible *= CAPITALISED
        pictured = synset.pictured and not synset.instance
        # A person is no second sense: either it is the same one (boy, son) or a figure of speech (puppy, peach).
        concrete = pictured and VISIBLE[synset.lexfile] >= CONCRETE and synset.lexfile != "person"
        candidates.append(Candidate(sense.synset, mass * visible, pictured, concrete))
        order[sense.synset] = (mass if tagged else VISIBLE[synset.lexfile]) * visible * (PREFERENCE if pictured else 1)
        unseen += mass * (1 - visible)
    candidates.sort(key=lambda c: -order[c.synset])
    return candidates, unseen


def visibility(synset: Synset) -> float:
    """How likely a sense is meant when a caption uses its spelling, by what kind of thing it is (0..1)."""
    return PICTURED if synset.pictured and synset.lexfile != "attribute" else VISIBLE[synset.lexfile]


def close_senses(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Synset of the best candidate and of the concrete ones close to it; none without candidates."""
    close = [c for c in candidates[1:] if c.concrete and c.weight >= CLOSE * candidates[0].weight]
    return tuple(c.synset for c in [*candidates[:1], *close][:MAX_SENSES])


def foreignness(word: str, *, noun: bool) -> int:
    """Log-odds, rounded, that a word (lower case, without accents) speaks against its caption being English.

    They are from Multi30k's German and French and Flickr30k's English. A sum over the words, so that a caption of three
    words can be judged too; what only says "dog" or "adidas" says nothing of its language. noun: of WordNet.
    """
    if word in COMMON_WORDS or (word in FUNCTION_WORDS and word not in _SHARED):
        return ENGLISH
    if word in FUNCTION_WORDS or not word[0].isalpha() or word[-1] == NAME:
        return 0
    if word in _OTHER:
        return OF_NAMES if word in _NAMES else FOREIGN_WORD
    letters = sum(character > "ɏ" for character in word)  # behind the last Latin block
    if letters:
        return min(letters, SCRIPT)
    if noun:
        return NOUN if len(word) > 3 else SHORT_NOUN
    return 0 if word.endswith(("ing", "ed", "ly")) or len(word) == 1 else UNKNOWN


def _corrected(candidates: list[Candidate], chosen: str, *, only: bool) -> list[Candidate]:
    """The candidates with the one that words.tsv has chosen in front.

    only: no other is close but what WordNet itself finds close: no kid is a goat, while a crane can be a bird.
    """
    weight = sum(c.weight for c in candidates if c.synset == chosen)
    others = [c for c in candidates if c.synset != chosen]
    best = Candidate(chosen, max([1.0, *(c.weight for c in others)]))
    if only:
        others = [replace(c, concrete=c.concrete and c.weight >= CLOSE * weight) for c in others]
    return [best, *others]


def _cues(field: str) -> tuple[str, frozenset[str]]:
    synset, *words = field.split(" ")
    return synset, frozenset([*words, *(word + "s" for word in words)])


def _other_readings(lexicon: Lexicon, word: str, lemma: str) -> tuple[Form, float]:
    """(the strongest other reading of a word, how much its readings other than noun weigh)."""
    own = {} if word in word_lists()["noun"] else lexicon.other_readings(word)
    inflected = Form.ING_FORM if word.endswith("ing") else Form.S_FORM if word.endswith("s") else Form.PAST_FORM
    readings = [
        (Form.BASE_VERB, BASE_VERB, own.get("b")),
        (inflected, INFLECTED, own.get("i")),
        (Form.ADJECTIVE, ADJECTIVE, own.get("a")),
        (Form.ADVERB, ADVERB, own.get("r")),
    ]
    if word != lemma and word.endswith("s"):
        readings.insert(0, (Form.S_FORM, S_FORM, lexicon.other_readings(lemma).get("b")))
    masses = {form: share * (count + UNTAGGED) for form, share, count in readings if count is not None}
    return max(masses, key=masses.__getitem__, default=Form.PLAIN), sum(masses.values())


def _kind_by_ending(word: str) -> Kind:
    if word.endswith("ly"):
        return Kind.ADVERB
    return Kind.VERB if word.endswith(("ing", "ed")) else Kind.OTHER
