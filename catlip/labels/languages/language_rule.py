"""The rule "nouns" for captions in other languages than English: the same labels, by the same arrays.

What differs from English is the judgement of a word (`language.py`), how phrases are spelled, and negation, which is
only what follows a word such as German "kein". A synset carries the label of what it is a kind of if its English name
does: a Schwimmbecken is a swimming pool and a pool.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from catlip.labels.languages.language import Language, names_of, open_languages
from catlip.labels.languages.language_files import ALONE
from catlip.labels.nouns.phrases import PhraseIndex, Terms
from catlip.labels.nouns.rule import CERTAIN, DENIED, FOREIGN, NOT_ENGLISH, Batch, NounRule, foreignness_of, not_in
from catlip.labels.nouns.words import (
    COMMON_WORDS,
    ENGLISH,
    FOREIGN_WORD,
    FUNCTION_WORDS,
    NOUN,
    SCRIPT,
    SHORT_NOUN,
    STOPS,
    Form,
    Kind,
    Reading,
    word_list,
)
from catlip.labels.nouns.wordtable import Span, WordTable
from catlip.labels.wordnet import Lexicon, open_lexicon

_OTHERS = FUNCTION_WORDS.keys() | COMMON_WORDS | word_list("language", "other")  # function words of any language
_FORMS = {"": Form.PLAIN, "a": Form.ADJECTIVE, "v": Form.S_FORM, "av": Form.S_FORM}
ENGLISH_FIRST = 3  # log-odds by which another language has to be likelier
UNKNOWN = 1  # log-odds that a word which nothing knows speaks against the language
# Where words are not spaced: a letter of another script (kana is not Chinese), and a noun in the language's own.
OTHER_SCRIPT, OWN_SCRIPT = 8, -3


class LanguagePhrases(PhraseIndex):
    """Multi-word nouns of a language, and a domain's own terms; both by the keys of their words."""

    def __init__(self, lexicon: Lexicon, language: Language, terms: Terms) -> None:
        self.language = language
        super().__init__(lexicon, terms)

    def _enter_all(self) -> None:
        language = self.language
        for words in self.terms:
            self._enter(" ".join(words), " ".join(words))
        for lemma in reversed(language.lemmas):  # those that words.tsv explains are the last of them
            if " " in lemma or ("-" in lemma and not language.spelling.compounds):
                words = language.normalize([lemma]).split()[:-1]
                if words and (words[0].lower() not in language.function or language.by_hand(lemma)):
                    self._enter(" ".join(map(language.key, words)), lemma)

    def _meaning(self, text: str, lemma: str) -> Reading | None:
        noun = self.language.entry(lemma)
        return reading_of(lemma, noun.synsets, noun.why) if noun else None


@lru_cache(maxsize=16)
def phrases_of(language: Language) -> LanguagePhrases:
    """Without terms of a domain's own."""
    return LanguagePhrases(open_lexicon(), language, {})


def reading_of(lemma: str, synsets: tuple[str, ...], why: str, form: Form = Form.PLAIN) -> Reading:
    """synsets: the one meant, and another label that the noun carries; none: no label."""
    head = synsets[1] if len(synsets) > 1 else ""
    return Reading(Kind.SINGULAR, lemma, why, form, 0.0 if synsets else -math.inf, synsets[:1], head=head)


class LanguageTable(WordTable):
    """The words of captions in one language."""

    def __init__(self, language: Language, phrases: PhraseIndex, *args: Any, heads: bool) -> None:
        self.language = language
        super().__init__(phrases, *args, heads=heads)

    def _known(self, word: str) -> bool:
        return len(word) > 2 and (word in self.language.function or self.language.noun(word) is not None)

    def _with_head(self, phrase: Reading) -> Reading:
        """A noun with what it is a kind of, if the English name of its synset is a phrase that carries it."""
        if not self.heads:
            return replace(phrase, head="")
        if phrase.head == ALONE:
            return replace(phrase, head="")
        if phrase.own or phrase.head or not phrase.synsets:
            return phrase
        name = self.lexicon.synset(phrase.synsets[0]).name
        return replace(phrase, head=super()._with_head(replace(phrase, singular=name)).head)

    def _add_word(self, word: str) -> int:
        own = self.phrases.terms.get((self.language.key(word),))
        if own and word[0].isalnum():
            why = "a term of your own lexicon"
            reading = Reading(Kind.SINGULAR, word, why, score=math.inf, synsets=own, own=True)
        else:
            reading = self._with_head(self._read(word))
        return self._add(word, reading)

    def _read(self, word: str) -> Reading:
        language, lower = self.language, word.lower()
        if not word[0].isalnum():
            return Reading(Kind.BREAK, word, "punctuation", Form.BASE_VERB)
        if lower in language.function:
            return Reading(language.function[lower], word, "function word", Form.BASE_VERB)
        if word[0].isdigit():
            return Reading(Kind.NUMBER, word, "number", Form.BASE_VERB)
        noun = language.noun(word) if len(word) > 1 or language.spelling.unspaced else None
        form = Form.PLAIN if noun is None or language.spelling.capitals else _FORMS[noun.other]
        if lower in language.adjectives:
            form = Form.ADJECTIVE
        if language.spelling.capitals and not word[0].isupper():
            form = Form.BASE_VERB  # anything but a noun
        if noun is None:
            return Reading(Kind.OTHER, word, "no noun that the tables know", form)
        return reading_of(noun.lemma, noun.synsets, noun.why, form)

    def _key(self, text: str, reading: Reading) -> str:
        return reading.singular if " " in text else self.language.key(text)

    def _add(self, text: str, reading: Reading) -> int:
        number = super()._add(text, replace(reading, head=self._canonical(reading.head)))
        self.rows[number]["trigger"] = text.lower() in self.language.deny or text.lower() in self.language.deny_before
        return number

    def _foreignness(self, text: str, reading: Reading) -> int:
        lower = text.lower()
        if lower in self.language.function or lower in self.language.common:
            return 0 if lower in _OTHERS and lower in FUNCTION_WORDS else ENGLISH
        if not text[0].isalpha():
            return 0
        if lower in _OTHERS:
            return FOREIGN_WORD
        if self.language.is_foreign(lower):
            return SCRIPT
        letters = sum(letter > "ɏ" and not self.language.writes(letter) for letter in text)
        if letters:
            return min(letters * (OTHER_SCRIPT if self.language.spelling.unspaced else 1), SCRIPT)
        if self.language.spelling.unspaced and self.language.writes(text[0]):
            return OWN_SCRIPT if reading.synsets else 0
        if reading.synsets:
            return NOUN if len(text) > 3 else SHORT_NOUN
        return UNKNOWN


class LanguageRule(NounRule):
    """Captions in one language -> labels. As NounRule."""

    def __init__(self, phrases: LanguagePhrases, english: NounRule) -> None:
        """english: the rule whose labels and settings are shared."""
        self.language = phrases.language
        canonical, lists = bool(english.canonical), self.language.lists
        super().__init__(phrases, english.index, canonical=canonical, heads=english.heads, lists=lists)
        self.tables_hash = self.language.hash
        self.spoken_language = self.language.spelling.name
        self.own_words = self.language.function.keys() | self.language.common

    def writes(self, letter: str) -> bool:
        return self.language.writes(letter)

    def _elsewhere(self, caption: str) -> bool:
        return self.language.shipped and super()._elsewhere(caption)

    def _new_table(self) -> WordTable:
        return LanguageTable(self.language, self.phrases, self.index, self.canonical, heads=self.heads)

    def _numbers(self, captions: Sequence[Any]) -> np.ndarray:
        if self._words.full:
            self._words = self._new_table()
        return self._words.numbers(self.language.normalize(captions, self._words.tag_words))

    def _scores(self, words: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        scores = super()._scores(words, bounds)
        if self.language.spelling.capitals:
            form = words["form"]
            capital = (form == Form.PLAIN) | (form == Form.ADJECTIVE)
            capital[bounds[:-1]] = False  # any word has one there
            lower = form == Form.BASE_VERB
            scores[lower & np.repeat(np.logical_or.reduceat(capital, bounds[:-1]), np.diff(bounds))] = -np.inf
        return scores

    def _muted(
        self, ids: np.ndarray, words: np.ndarray, bounds: np.ndarray, units: np.ndarray, spans: list[Span]
    ) -> np.ndarray:
        muted = np.zeros(len(ids), np.uint8)
        for trigger in np.flatnonzero(words["trigger"]).tolist():
            muted[self._denied_by(ids, words["kind"], units, trigger)] = DENIED
        foreign = foreignness_of(words, bounds) >= FOREIGN
        if foreign.any():
            muted[np.repeat(foreign, np.diff(bounds)) & (words["score"] < np.inf)] = NOT_ENGLISH
            for start, end, phrase in spans:
                if self._words.reading[phrase].own:
                    muted[start:end] = 0
        return muted

    def _denied_by(self, ids: np.ndarray, kinds: np.ndarray, units: np.ndarray, trigger: int) -> list[int]:
        word = self._words.text[ids[trigger]].lower()
        needed = self.language.deny_before.get(word)
        if needed is None:
            return self._following(ids, kinds, units, trigger + 1)
        near = [self._words.text[number].lower() for number in ids[max(0, trigger - 2) : trigger].tolist()]
        return self._preceding(ids, kinds, units, trigger) if needed == "all" or needed in near else []

    def _following(self, ids: np.ndarray, kinds: np.ndarray, units: np.ndarray, start: int) -> list[int]:
        """The noun phrase that begins at start, and those that are joined to it."""
        found: list[int] = []
        seen, bridge = False, -1  # a word that leads on: no evidence of an effusion
        for i in range(start, len(ids)):
            text = self._words.text[ids[i]].lower()
            if text in self.language.deny_through and not seen:
                found.append(i)
                bridge = i + 1 if kinds[i + 1] != Kind.BREAK else -1
            elif units[i]:
                found.append(i)
                seen = True
            elif seen and text in self.language.join:
                if kinds[i + 1] == Kind.DETERMINER:
                    break  # no dog and a cat
                seen = False
            elif seen or (kinds[i] in STOPS and (i != start or kinds[i] != Kind.PREPOSITION) and i != bridge):
                break
        return found

    def _preceding(self, ids: np.ndarray, kinds: np.ndarray, units: np.ndarray, end: int) -> list[int]:
        """The last noun phrase before end, and those that are joined to it."""
        found: list[int] = []
        for i in range(end - 1, -1, -1):
            if units[i]:
                found.append(i)
            elif kinds[i] == Kind.BREAK or (
                found and not (self._words.text[ids[i]].lower() in self.language.join and i and units[i - 1])
            ):
                break
        return found

    def _reason(self, batch: Batch, position: int, labels: tuple[str, ...]) -> str:
        reading = self._words.reading[batch.ids[position]]
        if reading.synsets and (batch.muted[position] or labels):
            return super()._reason(batch, position, labels) if not labels else reading.why
        return f"{reading.why}; no noun here, by its neighbours and capitals" if reading.synsets else reading.why


class AutoRule:
    """Each caption by the rule of its language: English unless its words say another."""

    def __init__(self, rules: Sequence[NounRule]) -> None:
        """rules: of the languages, English first."""
        self.rules = rules
        self.tables_hash = " ".join(rule.tables_hash for rule in rules[1:])

    def languages(self, captions: Sequence[Any]) -> np.ndarray:
        """int64 [captions]: the number of the rule of each."""
        found = np.zeros(len(captions), np.int64)
        english = self.rules[0].against(captions) if len(captions) else found
        unsure = np.flatnonzero(english > CERTAIN)
        if len(unsure):
            some = [captions[i] for i in unsure.tolist()]
            others = [rule.against(some) for rule in self.rules[1:]]
            found[unsure] = np.stack([english[unsure] - ENGLISH_FIRST, *others]).argmin(0)
        return found

    def _parts(self, captions: Sequence[Any]) -> list[tuple[NounRule, np.ndarray, list[Any]]]:
        """(rule, numbers of its captions, they themselves) of each language that there is."""
        of = self.languages(captions)
        numbered = [(rule, np.flatnonzero(of == i)) for i, rule in enumerate(self.rules)]
        return [(rule, rows, [captions[i] for i in rows.tolist()]) for rule, rows in numbered if len(rows)]

    def labels(self, captions: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        found = [(rows, *rule.labels(some)) for rule, rows, some in self._parts(captions)]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int32)
        return np.concatenate([rows[row] for rows, row, _ in found]), np.concatenate([labels for *_, labels in found])

    def foreign(self, captions: Sequence[Any]) -> int:
        return sum(rule.foreign(some) for rule, _, some in self._parts(captions))

    def spoken(self, captions: Sequence[Any]) -> Counter[tuple[str, str]]:
        return sum((rule.spoken(some) for rule, _, some in self._parts(captions)), Counter())

    def explain(self, caption: str) -> list[tuple[str, tuple[str, ...], str]]:
        rule = self._parts([caption])[0][0]
        told = rule.explain(caption)
        return not_in(told, "in no language that `auto` knows") if rule.foreign([caption]) else told


def language_rule(language: str, english: NounRule, terms: dict[str, tuple[str, ...]]) -> LanguageRule | AutoRule:
    """The rule of a language, or of several ("auto", "auto,FOLDER"), with the settings of the English one.

    terms: a domain's own, phrase -> labels. Raises UsageError as `open_languages` does.
    """

    def rule_of(tables: Language) -> LanguageRule:
        tables = tables.knowing(terms)
        own = {tuple(map(tables.key, tables.normalize([text]).split()[:-1])): labels for text, labels in terms.items()}
        phrases = LanguagePhrases(english.phrases.lexicon, tables, own) if own else phrases_of(tables)
        return LanguageRule(phrases, english)

    rules = list(map(rule_of, open_languages(language)))
    return AutoRule([english, *rules]) if names_of(language)[0] == "auto" else rules[0]
