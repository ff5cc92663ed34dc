"""Titles of products: nouns that say what the goods are for, and are not in the picture.

"floor mats", "a laptop bag" in a title, "lamp for bedrooms, office and car", "socks women". A title is a caption with
goods and without the words that make a sentence (the, his, is): in a sentence the dog of "a dog on a dog bed" is there.
What a thing is made of stays (a leather bag), and what it is of the same kind (a backpack bag).
"""

import numpy as np

from catlip.labels.nouns.words import STOPS, Form, Kind, word_list
from catlip.labels.wordnet import Lexicon

WEARERS = word_list("negation", "wearer")
SENTENCE = (Kind.DETERMINER, Kind.PRONOUN, Kind.AUXILIARY)  # what titles lack,
IN_TITLES = word_list("title", "also")  # but for these
MATERIALS = {"n14580897", "n03309808"}  # material, fabric
PLACES = {"n04341686", "n02735688", "n04362025", "n00027167"}  # structure, area (rooms), surface, location
TOOLS = {"n03575240", "n04014297", "n04151940"}  # instrumentality, protective covering, cover
GOODS = {*TOOLS, "n03076708", "n03122748"}  # and commodities, coverings
PARTS = {"n04081844", "n04461879", "n03964744", "n03619396", "n03619650"}  # fasteners and chains, toys, kits
CONTAINER, VEHICLE = "n03094503", "n04524313"
_VERBS = {int(form) for form in (Form.BASE_VERB, Form.S_FORM, Form.ING_FORM, Form.PAST_FORM)}


class Role:
    """What a word is in a title: the sum of some of these. No enum, whose members take long to look up."""

    GOODS = 1
    LIVING_OR_PLACE = 2  # a person, animal, sport, place, part of the body, vehicle: what goods after it are for
    USED = 4  # a thing, or food: what tools after it are for
    TOOL = 8  # goods that are no clothes, toys or fasteners
    CONTAINER = 16
    WEARERS = 32  # women, kids
    SENTENCE = 64  # no word of a title


def role_of(lexicon: Lexicon, synset: str) -> int:
    above, lexfile = lexicon.above(synset).keys(), lexicon.synset(synset).lexfile
    place, material, part = above & PLACES, above & MATERIALS, above & PARTS
    goods = above & GOODS and not place
    role = Role.GOODS if goods else 0
    if place or VEHICLE in above or lexfile in ("person", "animal", "act") or (lexfile == "body" and not material):
        role |= Role.LIVING_OR_PLACE
    if (goods or lexfile == "food") and not (part or material):
        role |= Role.USED
    if goods and above & TOOLS and not part:
        role |= Role.TOOL
    return role | Role.CONTAINER if CONTAINER in above else role


def titles(roles: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """bool [captions]: which captions are titles of goods. roles: of each word."""
    return np.bitwise_or.reduceat(roles, bounds[:-1]) & (Role.SENTENCE | Role.GOODS) == Role.GOODS


class Title:
    """The words of titles, one after the other; each title ends with a `Kind.BREAK` of its own.

    role: of each noun or phrase; 0 for other words. units: 0 no noun, 1 a noun, or the number (from 2) of its phrase.
    ends: the last word of each title.
    """

    def __init__(
        self, role: np.ndarray, units: np.ndarray, kind: np.ndarray, form: np.ndarray, ends: np.ndarray
    ) -> None:
        self.role, self.units, self.kind, self.form, self.ends = role, units, kind, form, ends

    def purposes(self, fors: np.ndarray, genitives: np.ndarray) -> np.ndarray:
        """bool [words]: which say what the goods are for. fors, genitives: which words are "for", and "'s"."""
        left, right = self.role[:-1], self.role[1:]
        living = left & Role.LIVING_OR_PLACE > 0
        found = np.zeros(len(self.role), bool)
        found[:-1] = living & (right & Role.GOODS > 0) | living & genitives[1:]
        found[:-1] |= (left & Role.USED > 0) & (right & Role.TOOL > 0) & (left & right & Role.CONTAINER == 0)
        found[:-1] &= (self.units[:-1] == 1) | (self.units[:-1] != self.units[1:])
        for i in np.flatnonzero(left & Role.WEARERS).tolist():
            found[i] = found[i] or not self._there(i)
        for i in np.flatnonzero(fors).tolist():
            title = int(np.searchsorted(self.ends, i))
            start = int(self.ends[title - 1]) if title else 0
            if self.kind[i - 1] != Kind.PREPOSITION and (self.role[start:i] & Role.GOODS).any():  # not "except for"
                found[self._joined(i + 1, int(self.ends[title]))] = True
        phrases = self.units[found & (self.units > 1)]
        return found | np.isin(self.units, phrases)

    def _there(self, i: int) -> bool:
        """Whether people are there to be seen: two small boys, women in coats, girls playing, past women."""
        if self._does(i + 1) or self.kind[i + 1] in (Kind.PREPOSITION, Kind.CONJUNCTION, Kind.VERB):
            return True
        before = i - 1
        while before >= 0 and self.kind[before] not in (*STOPS, Kind.NUMBER) and not self.units[before]:
            if self._does(before):
                return True
            before -= 1
        return before >= 0 and self.kind[before] in (Kind.NUMBER, Kind.PREPOSITION)

    def _does(self, i: int) -> bool:
        return bool(self.units[i] == 0 and self.form[i] in _VERBS)

    def _joined(self, i: int, end: int) -> list[int]:
        """The nouns from word i on, behind "for": of one phrase and of those joined to it (home, office and car)."""
        found: list[int] = []
        while i < end and (self.kind[i] not in STOPS or self.kind[i] in (Kind.CONJUNCTION, Kind.BREAK)):
            behind = bool(found) and found[-1] == i - 1
            if self.kind[i] == Kind.BREAK:
                after = i + 1
                while after < end and (self._is(after, Role.LIVING_OR_PLACE) or self.kind[after] == Kind.CONJUNCTION):
                    after += 1
                if not found or after == i + 1 or self.kind[after] not in STOPS:
                    break
            elif self.units[i]:
                begins = self._is(i, Role.GOODS) and not self._is(i, Role.LIVING_OR_PLACE)
                if behind and begins and self._is(i - 1, Role.LIVING_OR_PLACE):
                    break  # bags for women, in a list without commas: for women shoes
                found.append(i)
            elif behind and self.kind[i] != Kind.CONJUNCTION:
                break
            i += 1
        return found

    def _is(self, i: int, role: int) -> bool:
        return bool(self.role[i] & role)
