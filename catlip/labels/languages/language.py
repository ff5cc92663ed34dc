"""What is known of one language other than English: its nouns with their synsets, its function words, its spelling."""

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from catlip.errors import UsageError
from catlip.labels import cleaning
from catlip.labels.cleaning import BREAK, END
from catlip.labels.languages.language_files import FLAGS, WORDS, read_nouns, read_words, tables_hash
from catlip.labels.languages.unspaced import WordCutter
from catlip.labels.nouns.words import Kind
from catlip.labels.wordnet import open_lexicon

HERE = Path(__file__).parent
SHIPPED = tuple(sorted(path.parent.name for path in HERE.glob(f"*/{WORDS}")))
NAMES = ("en", *SHIPPED, "auto")
_MARKS = re.compile("[«»„“”‚‘…–—―·•¡¿、。！？，：；（）「」『』【】《》〈〉〔〕～]")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")  # soft hyphens, joiners, directions
_UMLAUTS = {"ä": "a", "ö": "o", "ü": "u", "Ä": "A", "Ö": "O", "Ü": "U"}


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a language is written."""

    name: str
    capitals: bool = False  # nouns have a capital
    compounds: bool = False  # nouns are joined to one word, whose end says what it is
    apostrophes: bool = False  # an apostrophe ends a word (l'eau)
    unspaced: bool = False  # no spaces between words


@dataclass(frozen=True, slots=True)
class Noun:
    """What a spelling means as a noun."""

    lemma: str
    synsets: tuple[str, ...]  # the one meant, and what it is a kind of, or made of; none: no label
    other: str = ""  # "a", "v": the spelling is an adjective, a verb too
    why: str = ""


class Language:
    """Reads a folder of `language_files`. Raises UsageError, naming the line, for what is no language's table."""

    def __init__(self, folder: Path) -> None:
        lexicon = open_lexicon()
        self.lists = read_words(folder, lexicon)
        self.shipped = folder.parent == HERE
        self._nouns = read_nouns(folder, lexicon)
        self.hash = tables_hash(folder)
        spelling = self.lists["spelling"]
        self.spelling = Spelling(spelling["name"][0], *(spelling.get(flag) == ("yes",) for flag in FLAGS))
        self.function = {
            word: Kind[kind.upper()] for kind, (words,) in self.lists["function"].items() for word in words.split()
        }
        self.set_endings(
            (old, new.strip("-"))
            for old, (replacements,) in self.lists.get("ending", {}).items()
            for new in replacements.split()
        )
        self.adjectives = self.words("adjective")
        self.common = self.words("common")
        self.deny, self.join, self.deny_through = map(self.words, ("deny", "join", "deny-through"))
        self.deny_before = {
            word: needed for needed, (words,) in self.lists.get("deny-before", {}).items() for word in words.split()
        }
        self._abbreviations = {short: words for short, (words,) in self.lists.get("abbreviation", {}).items()}
        self._terms: frozenset[str] = frozenset()  # a domain's own
        self.scripts = {_script(letter) for word in self.function for letter in word}
        self._letters = {
            ord(a): b for old, (new,) in self.lists.get("letter", {}).items() for a, b in zip(old, new, strict=True)
        }
        self._others = self.words("word")
        self._charsets = [self.lists.get("charset", {}).get(side, ("",))[0].split() for side in ("own", "other")]
        self._foreign = {word.translate(self._letters) for word in self.words("foreign")}
        self._meant = self.lists.get("sense", {})
        self._never = self.lists.get("never", {})
        if self.spelling.unspaced:
            known = (self.lemmas, self._others, self._foreign, self.function, self.common, self.adjectives)
            self._cut_at = [word for words in (*known, self.deny, self.join) for word in words]
            self._cut = WordCutter(self._cut_at, self.writes)
        self.noun = lru_cache(maxsize=100_000)(self._noun)

    def knowing(self, terms: Collection[str]) -> "Language":
        """The same language, in which a domain's terms are nouns: inflected, in compounds, without spaces."""
        if not terms:
            return self
        other = copy(self)
        if self.spelling.unspaced:
            other._cut = WordCutter([*self._cut_at, *(term.translate(self._letters) for term in terms)], self.writes)
        spelled = str.capitalize if self.spelling.capitals else str
        other._terms = frozenset(spelled(term) for term in terms if " " not in term)
        other.noun = lru_cache(maxsize=100_000)(other._noun)
        return other

    def set_endings(self, endings: Iterable[tuple[str, str]]) -> None:
        """(ending of a form, what its lemma has in its place), the likelier first."""
        self._endings: dict[str, list[tuple[int, str]]] = {}
        for place, (old, new) in enumerate(endings):
            self._endings.setdefault(old, []).append((place, new))
        self._longest = max(map(len, self._endings), default=0)

    def words(self, section: str) -> frozenset[str]:
        """All words of a section of lists."""
        return frozenset(word for fields in self.lists.get(section, {}).values() for word in " ".join(fields).split())

    @property
    def lemmas(self) -> list[str]:
        return [*self._nouns, *self._meant, *self._never]

    def writes(self, letter: str) -> bool:
        """Whether a letter is of the language's script."""
        return _script(letter) in self.scripts

    def is_foreign(self, word: str) -> bool:
        """Whether a word, or a letter of it, is of another language in the same script: Japanese 映画 and 駅."""
        own, other = self._charsets
        return word in self._foreign or any(_is_in(letter, other) and not _is_in(letter, own) for letter in word)

    def by_hand(self, lemma: str) -> bool:
        """Whether words.tsv says what a noun or phrase means."""
        return lemma in self._meant or lemma in self._never

    def entry(self, lemma: str) -> Noun | None:
        """A noun, or phrase, as the tables spell it."""
        if lemma in self._never:
            return Noun(lemma, (), why=self._never[lemma][0])
        synset, other = self._nouns.get(lemma, ("", ""))
        if lemma in self._meant:
            synsets = tuple(self._meant[lemma][0].split())
            return Noun(lemma, synsets, other, why=f"{self.spelling.name} {lemma!r}, as captions use it")
        if synset:
            return Noun(lemma, (synset,), other, why=f"{self.spelling.name} noun {lemma!r}")
        return Noun(lemma, (), why="a term of your own lexicon") if lemma in self._terms else None

    def _noun(self, word: str) -> Noun | None:
        """What a word, as it is written, may mean as a noun: itself, its singular, or the end of the compound."""
        if word in self._others:
            return None
        spellings = dict.fromkeys(self._spellings(word))
        found = [noun for look in (self.entry, self._singular) for noun in map(look, spellings) if noun is not None]
        if found:
            return found[0]
        if self.spelling.compounds and len(word) > 6 and not (self.spelling.capitals and word.islower()):
            return self._compound(word)
        return None

    def _spellings(self, word: str) -> Sequence[str]:
        if self.spelling.capitals:
            spelled = word.capitalize() if word.isupper() or word.islower() else word
            return spelled, spelled.replace("ss", "ß")  # as in Switzerland, and in capitals
        return word, word.capitalize()

    def _singular(self, word: str) -> Noun | None:
        cuts = range(max(0, len(word) - self._longest), len(word) + 1)
        fitting = sorted((place, cut, new) for cut in cuts for place, new in self._endings.get(word[cut:], ()))
        for _, cut, new in fitting:
            stem = word[:cut]
            if len(stem) > 1 or len(stem + new) > 3:
                for base in (stem, _without_umlaut(stem)) if self.spelling.capitals else (stem,):
                    found = self.entry(base + new)
                    if found is not None:
                        return found
        return None

    def _compound(self, word: str) -> Noun | None:
        spelled = str.capitalize if self.spelling.capitals else str
        *_, last = word.split("-")
        if last != word:
            return self._noun(spelled(last)) if len(last) > 2 else None
        for cut in range(3, len(word) - 2):
            tail = spelled(word[cut:])
            found = self.entry(tail) or self._singular(tail)
            if found is not None and ((found.lemma in self._terms and len(tail) > 4) or self._begins(word[:cut])):
                return Noun(found.lemma, found.synsets, why=f"{self.spelling.name} compound with {found.lemma!r}")
        return None

    def _begins(self, word: str) -> bool:
        """Whether a compound may begin like this: with a noun, labelled or not, and what joins it to the next."""
        known = (self._nouns, self._meant, self._never)
        return any(
            word.removesuffix(joint) + more in nouns
            for joint in ("", "s", "n", "en", "es", "er", "e")
            for more in ("", "e")
            for nouns in known
        )

    def key(self, word: str) -> str:
        """A word as phrases are looked up: the lemma of a noun or adjective, in lower case."""
        noun = self.noun(word)
        if noun is not None and " " not in noun.lemma:
            return noun.lemma.lower()
        lower = word.lower()
        for ending in self.lists.get("adjective-ending", ()):
            if lower.endswith(ending) and len(lower) > len(ending) + 2:
                return lower.removesuffix(ending)
        return lower

    def normalize(self, captions: Sequence[Any], tag_words: Callable[[str], str] = str) -> str:
        """As cleaning.normalize, but letters keep their accents, and their case where it says what a noun is."""
        joined = cleaning.plain(captions, tag_words)
        for short, words in self._abbreviations.items():
            joined = joined.replace(short, words)
        if not joined.isascii():
            form = "NFKC" if self.spelling.unspaced else "NFC"  # K: full-width letters and digits
            joined = unicodedata.normalize(form, _UNSEEN.sub("", joined).replace("’", "'"))
            joined = joined.translate(self._letters) if self._letters else joined
            joined = _MARKS.sub(f" {BREAK} ", joined)
        if not self.spelling.capitals:
            joined = joined.lower()
        joined = joined.translate(cleaning.ASCII) if joined.isascii() else _translate(joined)
        if self.spelling.unspaced:
            joined = self._cut(joined)
        if "'" in joined:
            joined = joined.replace("'", "' " if self.spelling.apostrophes else " ")
        return f"{joined.replace(BREAK, f' {BREAK} ')} {END}" if joined or captions else ""


def _translate(text: str) -> str:
    """str.translate of what is not only ASCII, byte by byte: twenty times quicker."""
    return text.encode("utf-8", "replace").translate(_BYTES).decode()


_BYTES = bytes(ord(cleaning.ASCII.get(i, chr(i))) if i < 128 else i for i in range(256))


def _without_umlaut(word: str) -> str:
    for i in range(len(word) - 1, -1, -1):
        if word[i] in _UMLAUTS:
            return word[:i] + _UMLAUTS[word[i]] + word[i + 1 :]
    return word


def _is_in(letter: str, codecs: Iterable[str]) -> bool:
    """Whether one of the character sets has a letter."""
    return any(letter.encode(codec, "ignore") for codec in codecs)


def _script(letter: str) -> str:
    """LATIN, CYRILLIC, ..."""
    return unicodedata.name(letter, "").split(" ")[0]


@cache
def _shipped(code: str) -> Language:
    return Language(HERE / code)


def names_of(language: str) -> list[str]:
    """What a setting names: one language, or "auto" and folders of one's own, with commas between."""
    return language.split(",") if language.startswith("auto,") else [language]


def absolute(language: str) -> str:
    """A setting for processes with another working directory."""
    return ",".join(name if name in NAMES else os.path.abspath(name) for name in names_of(language))


def open_languages(language: str) -> list[Language]:
    """The tables of a language: of one that is shipped, by its code, of a folder, or of all that are shipped ("auto").

    "auto,FOLDER,FOLDER" are all that are shipped, and these. Raises UsageError for a language that there are no tables
    of, and for a folder that is none.
    """
    first, *folders = names_of(language)
    if first == "auto":
        return [*map(_shipped, SHIPPED), *(one for folder in folders for one in open_languages(folder))]
    if language in SHIPPED:
        return [_shipped(language)]
    if not Path(language).is_dir():
        known = ", ".join(NAMES)
        raise UsageError(
            f"`language` {language!r}: there are {known}; a folder of your own may be named, or auto,FOLDER"
        )
    return [Language(Path(language))]
