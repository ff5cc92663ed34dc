"""One word, out of context: which senses can be seen in a picture, and how likely is it a noun at all?

WordNet lists "a" (angstrom), "are" (100 square metres), "white" (a person) and "while" (a time) as nouns. What
separates them from "dog" is in WordNet too: how often its tagged texts use a spelling as verb, adjective or adverb;
which lexicographer file a sense is in (animal, artifact, ... against cognition, time, ...); and which synsets people
could find pictures for (ImageNet-21k). Those three become one score per word; `neighbours.py` adds the others.

Tried and rejected: the first sense of every token (precision .39 on captions), dropping every word that has a verb
reading (loses park, building, stand, swing), and a learned tagger (no corpus that may be shipped; see LOG.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from importlib import resources

from catlip.labels.wordnet import Lexicon, Sense, Synset

# How visible the senses of a lexicographer file are, for synsets outside ImageNet-21k. Tuned on the gold set's
# development half; the order matters more than the values.
VISIBLE = {
    "animal": 1.0, "artifact": 1.0, "body": 1.0, "food": 1.0, "plant": 1.0, "person": 0.9, "object": 0.9, "tops": 0.8,
    "substance": 0.5, "group": 0.4, "location": 0.4, "shape": 0.3, "phenomenon": 0.25, "communication": 0.08,
    "event": 0.06, "act": 0.03, "possession": 0.03, "process": 0.02, "state": 0.02, "attribute": 0.02,
    "cognition": 0.02, "quantity": 0.02, "time": 0.01, "feeling": 0.01, "relation": 0.01, "motive": 0.0,
}  # fmt: skip
PICTURED = 0.9  # visibility of a synset of ImageNet-21k, whatever its file
# Captions are lower-cased, so a capitalised sense (Crane the writer, Turkey the country) must wait for the others.
CAPITALISED = 0.1
CONCRETE = 0.3  # kinds of things from this visibility on
PREFERENCE = 1.5  # of a pictured sense over one that is only of a visible kind
# Share of a verb's tagged uses that a given spelling of it can claim: base forms are rare in captions.
BASE_VERB, S_FORM, INFLECTED, ADJECTIVE, ADVERB = 0.25, 0.25, 0.5, 1.0, 1.0
OWN_LEMMA = 0.3  # "glasses" stays its own lemma from this share of the weight of "glass" on
UNTAGGED = 0.5  # count given to a reading that the tagged texts never use


THRESHOLD = -1.5  # log-odds from which on a word, with what its neighbours say, is a label
CLOSE = 0.06  # a concrete meaning is kept beside the best one from this share of its weight on
MAX_MEANINGS = 3  # labels of a word that stands alone


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


CLOSED_CLASS: dict[Kind, str] = {
    Kind.DETERMINER: """a an the this these those each every some any no another his her its their my your our 's both
        all several many few other various more most much own such what whose either neither same""",
    Kind.PREPOSITION: """in on at of with by for from into onto over under near beside besides behind through across
        along around between among against toward towards during outside inside above below beneath underneath upon
        within without off past like per via atop amid amidst about beyond next despite except throughout opposite
        aboard alongside amongst after before until since versus vs""",
    Kind.CONJUNCTION: """and or but while as when where who which that because so if than whilst though although
        whether how why nor n yet & plus""",
    Kind.PRONOUN: """i you he she it we they me him them us himself herself itself themselves someone something
        somebody everyone everybody anyone anything nothing everything there here mine yours ours theirs hers myself
        yourself ourselves one-another whom 'll 've 're 'm 'd""",
    Kind.AUXILIARY: """is are was were be been being am has have had having do does did can could will would shall
        should may might must not don didn doesn isn aren wasn won cannot let lets gets get got getting""",
    Kind.TO: "to",
    Kind.NUMBER: """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million
        billion dozen zero first second third fourth fifth ii iii iv""",
    Kind.ADVERB: """up down out away back together apart very too also just only still then now again ahead forward
        backward upwards downward downwards forwards backwards once twice else even ever never always often soon well
        far almost quite rather maybe perhaps please yes ok okay around overhead aside upside midair mid-air""",
}
CLOSED = {word: kind for kind, words in CLOSED_CLASS.items() for word in words.split()}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sense that a word may have in a picture."""

    synset: str
    weight: float
    pictured: bool = True
    concrete: bool = True  # pictured and a thing, not a person, a sport or a broadcast: may stand beside the best sense


@dataclass(frozen=True, slots=True)
class Reading:
    """A word out of context."""

    kind: Kind
    form: Form
    score: float  # log-odds that it is a noun for something visible; -inf: never a label
    candidates: tuple[Candidate, ...]  # visible senses, the most likely first
    singular: str  # the lemma it was found under ("men" -> "man"), or the word itself
    why: str  # for people: what decided


def visibility(synset: Synset) -> float:
    """How likely a sense is meant when a caption uses its spelling, by what kind of thing it is (0..1)."""
    return PICTURED if synset.pictured else VISIBLE[synset.lexfile]


@cache
def word_lists() -> dict[str, dict[str, tuple[str, ...]]]:
    """The hand-made tables of words.tsv: {section: {word: fields}}."""
    tables: dict[str, dict[str, tuple[str, ...]]] = {}
    text = resources.files("catlip.labels").joinpath("words.tsv").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            section, word, *fields = line.split("\t")
            tables.setdefault(section, {})[word] = tuple(fields)
    return tables


@cache
def cue_words(word: str, singular: str) -> tuple[str, tuple[tuple[str, frozenset[str]], ...]] | None:
    """(usual synset, ((other synset, words that announce it), ...)) of a word of several meanings, else None."""
    lists = word_lists()["cue"]
    fields = lists.get(word) or lists.get(singular)
    if fields is None:
        return None
    others = []
    for field in fields[1:]:
        synset, *cues = field.split(" ")
        others.append((synset, frozenset([*cues, *(cue + "s" for cue in cues)])))
    return fields[0], tuple(others)


@cache
def all_cues() -> frozenset[str]:
    """Every word that announces a meaning."""
    words = word_lists()["cue"]
    return frozenset().union(*(cues for word in words for _, cues in (cue_words(word, word) or ("", ()))[1]))


def lookup(lexicon: Lexicon, word: str) -> tuple[str, list[Sense]]:
    """(lemma, senses) of a single word, singular or plural.

    An irregular plural is the plural of its singular (men: several of man, not the work force). A spelling that is a
    lemma of its own and a regular plural too is what weighs more: glasses are spectacles, hands are no work force.
    """
    for irregular in lexicon.irregular(word):
        if irregular in lexicon and irregular != word:
            return irregular, lexicon.senses(irregular)
    own = lexicon.senses(word)
    for singular in lexicon.singulars(word):
        if len(singular) > 1:
            senses = lexicon.senses(singular)
            if not own or _seen(lexicon, own) < OWN_LEMMA * _seen(lexicon, senses):
                return singular, senses
            break
    return word, own


def _seen(lexicon: Lexicon, senses: list[Sense]) -> float:
    return sum(candidate.weight for candidate in weigh(lexicon, senses)[0])


def weigh(lexicon: Lexicon, senses: list[Sense], *, phrase: bool = False) -> tuple[list[Candidate], float]:
    """(visible senses by weight, mass of the senses that cannot be seen).

    Captions are lower-cased here, so a capitalised sense has to stand back where there is another; and a named
    individual, a city or a writer, nearly always. A phrase (Christmas tree, Great Dane) is itself whatever its case.
    """
    candidates, unseen = [], 0.0
    only_capitalised = phrase or all(sense.capitalised for sense in senses)
    for rank, sense in enumerate(senses):
        synset = lexicon.synset(sense.synset)
        mass = sense.count + UNTAGGED / (1 + rank)
        visible = visibility(synset)
        if synset.instance or (sense.capitalised and not only_capitalised):
            visible *= CAPITALISED
        pictured = synset.pictured and not synset.instance
        # A person is no second meaning: either it is the same one (boy, son) or a figure of speech (puppy, peach).
        concrete = pictured and VISIBLE[synset.lexfile] >= CONCRETE and synset.lexfile != "person"
        candidates.append(Candidate(sense.synset, mass * visible, pictured, concrete))
        unseen += mass * (1 - visible)
    candidates.sort(key=lambda c: -c.weight * (PREFERENCE if c.pictured else 1))
    return candidates, unseen


def other_mass(lexicon: Lexicon, word: str, lemma: str) -> tuple[Form, float]:
    """(the strongest other reading of a word, how much its readings other than noun weigh)."""
    own = lexicon.other_readings(word)
    masses: dict[Form, float] = {}
    if word != lemma and "b" in (base := lexicon.other_readings(lemma)) and word.endswith("s"):
        masses[Form.S_FORM] = S_FORM * (base["b"] + UNTAGGED)
    if "b" in own:
        masses[Form.BASE_VERB] = BASE_VERB * (own["b"] + UNTAGGED)
    if "i" in own:
        form = Form.ING_FORM if word.endswith("ing") else Form.S_FORM if word.endswith("s") else Form.PAST_FORM
        masses[form] = INFLECTED * (own["i"] + UNTAGGED)
    if "a" in own:
        masses[Form.ADJECTIVE] = ADJECTIVE * (own["a"] + UNTAGGED)
    if "r" in own:
        masses[Form.ADVERB] = ADVERB * (own["r"] + UNTAGGED)
    if not masses:
        return Form.PLAIN, 0.0
    return max(masses, key=masses.__getitem__), sum(masses.values())


def read(lexicon: Lexicon, word: str) -> Reading:
    """Judge one lower-case word out of context."""
    never = Reading(Kind.OTHER, Form.PLAIN, -math.inf, (), word, "")
    if word in CLOSED:
        return replace(never, kind=CLOSED[word], why="function word")
    if word[0].isdigit():
        return replace(never, kind=Kind.NUMBER, why="number")
    if len(word) == 1:
        return replace(never, why="single letter")
    lists = word_lists()
    lemma, senses = lookup(lexicon, word)
    chosen = lists["sense"].get(word) or lists["sense"].get(lemma) or lists["cue"].get(word) or lists["cue"].get(lemma)
    if not senses and not chosen:
        return replace(never, kind=_kind_by_ending(word), why="not a noun of WordNet")
    candidates, unseen = weigh(lexicon, senses)
    if chosen:
        own = {c.synset: c.weight for c in candidates}
        others = [c for c in candidates if c.synset != chosen[0]]
        best = Candidate(chosen[0], max([1.0, *(c.weight for c in others)]))
        if word in lists["sense"] or lemma in lists["sense"]:  # no kid is a goat, but a crane can be a bird
            others = [replace(c, concrete=c.concrete and c.weight >= CLOSE * own.get(chosen[0], 0)) for c in others]
        candidates = [best, *others]
    form, others = other_mass(lexicon, word, lemma)
    if form == Form.ADJECTIVE and candidates and lexicon.synset(candidates[0].synset).lexfile == "substance":
        form = Form.PLAIN  # a cardboard box, a rubber boot: a material before a noun is still there to be seen
    seen = sum(candidate.weight for candidate in candidates)
    if chosen:  # whoever chose it has seen it
        seen, unseen = seen + unseen, 0.0
    score = math.log(seen + 1e-6) - math.log(unseen + others + 0.05)
    why = f"visible {seen:.1f} : other senses {unseen:.1f}, as {form.name.lower().replace('_', ' ')} {others:.1f}"
    kind = _kind(lexicon, candidates, plural=lemma != word or word in PLURAL_LEMMAS)
    if form != Form.PLAIN and others > 4 * (seen + unseen):
        kind = Kind.VERB if form in (Form.S_FORM, Form.ING_FORM, Form.PAST_FORM) else Kind.OTHER
    banned = lists["never"].get(word) or lists["never"].get(lemma)
    if banned:
        return replace(never, kind=kind, form=form, singular=lemma, why=banned[0])
    return Reading(kind, form, score, tuple(c for c in candidates if c.weight > 0), lemma, why)


PLURAL_LEMMAS = frozenset(
    ["people", "glasses", "clothes", "pants", "jeans", "trousers", "shorts", "scissors", "police"]
)


def _kind(lexicon: Lexicon, candidates: list[Candidate], plural: bool) -> Kind:
    acts = bool(candidates) and lexicon.synset(candidates[0].synset).lexfile in ("person", "animal", "group")
    if plural:
        return Kind.AGENTS if acts else Kind.PLURAL
    return Kind.AGENT if acts else Kind.SINGULAR


def _kind_by_ending(word: str) -> Kind:
    if word.endswith("ly"):
        return Kind.ADVERB
    if word.endswith(("ing", "ed")):
        return Kind.VERB
    return Kind.OTHER


def close_meanings(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Synset of the best candidate and of the concrete ones close to it."""
    best, *others = candidates
    close = [c for c in others if c.concrete and c.weight >= CLOSE * best.weight]
    return tuple(c.synset for c in [best, *close][:MAX_MEANINGS])
