"""Caption -> synsets, with the reason for each: the public face of the caption side, and the verb explain."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from catlip.config import configure
from catlip.errors import UsageError
from catlip.labels.cleaning import phrase_words
from catlip.labels.wordnet import Lexicon, open_lexicon

if TYPE_CHECKING:
    from catlip.labels.nouns.phrases import PhraseIndex

RULES = ("nouns", "corenet")
# Of what a rule makes of captions. Another version's vocabularies are refused for labelling: their labels would differ.
VERSIONS = {"nouns": 4, "corenet": 1}
SETTINGS = ("rule", "canonical", "heads", "language", "ancestors", "lexicon")
_NAMING = "a photo of a"  # before a class name, so that it is read as a noun


@dataclass(kw_only=True, slots=True)
class ExplainConfig:
    """Show what becomes of each word of a caption, and why."""

    caption: str
    rule: Literal["nouns", "corenet"] = "nouns"
    canonical: bool = True  # near-synonyms (girl, female child, lass) share one label
    heads: bool = True  # a phrase also carries the label of what it is a kind of (swimming pool: pool)
    language: str = "en"  # of the caption: en, de, ..., auto, a folder, or auto,FOLDER (docs/labels.md)
    ancestors: int = 0  # also show the labels with hypernyms up to so many levels
    lexicon: str | None = None  # TSV of your own terms: phrase, label


@dataclass(frozen=True, slots=True)
class ExplainedWord:
    """What became of one word or phrase of a caption."""

    text: str
    labels: tuple[str, ...]  # empty: no label
    why: str


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """A caption's words in their order, and its labels. Prints itself as a table, a word a line."""

    words: list[ExplainedWord]
    labels: list[str]  # sorted; with hypernyms, if the labeler adds them
    names: dict[str, str]  # of all labels

    def __iter__(self) -> Iterator[ExplainedWord]:
        return iter(self.words)

    def __str__(self) -> str:
        width = max((len(word.text) for word in self.words), default=0)
        rows = [
            (word, ", ".join(f"{label} {self.names[label]}" for label in word.labels) or "-") for word in self.words
        ]
        lines = [f"{word.text:<{width}}  {labels:<28}  {word.why}" for word, labels in rows]
        named = ", ".join(f"{self.names[label]} ({label})" for label in self.labels)
        return "\n".join([*lines, f"{len(self.labels)} labels: {named}" if named else "no labels"])

    __repr__ = __str__


class Rule(Protocol):
    """Captions -> labels, by number."""

    tables_hash: str  # identifies what it knows beside WordNet; "" if that is part of the program

    def labels(self, captions: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """(caption of each label, label); in any order, repetitions allowed."""
        ...

    def foreign(self, captions: Sequence[Any]) -> int: ...

    def spoken(self, captions: Sequence[Any]) -> Counter[tuple[str, str]]: ...

    def explain(self, caption: str) -> list[tuple[str, tuple[str, ...], str]]:
        """(word or phrase, its labels, why), in the order of the caption."""
        ...


@lru_cache(maxsize=8)  # it takes half a second, and a run makes several labelers
def phrase_index(terms: tuple[tuple[str, tuple[str, ...]], ...]) -> "PhraseIndex":
    """The phrases of WordNet, and of a lexicon of one's own."""
    from catlip.labels.nouns.phrases import PhraseIndex

    return PhraseIndex(open_lexicon(), {tuple(phrase_words(text)): labels for text, labels in terms})


class Labeler:
    """Captions -> synsets of WordNet 3.0. Needs neither torch nor a download.

    A labeler is called with a list of captions and returns for each its wnids (ImageNet's ids), sorted and unique.
    None and NaN are captions without labels.

        >>> import catlip
        >>> labeler = catlip.Labeler()
        >>> labeler(["two dogs near a fire hydrant", "no dogs allowed"])
        [['n02084071', 'n03346898'], []]
        >>> labeler.name("n03346898")
        'fireplug'

    canonical: synsets that captions use for the same visible thing share one label (catlip/labels/nouns/synonyms.tsv).
    heads: a phrase also carries the label of what it is a kind of, so that "pool" and "swimming pool" agree.
    language: of the captions, "en", "de", "es", ..., a folder that describes another one (docs/labels.md), or "auto":
        each caption's own of those that are shipped, and in "auto,FOLDER" of a folder. The labels are the same synsets.
    rule: "nouns", ours, or "corenet", the official CatLIP code's behaviour, for whoever reproduces the paper or uses
        the official vocabulary and weights.
    ancestors: add the hypernyms of every synset, up to so many levels.
    lexicon: a TSV file `phrase<TAB>label[<TAB>label ...]` of a domain's own terms, which win over WordNet's; a label
        is a wnid or an id of your own.

    Raises UsageError for settings that do not exist and for a file that is no such table; when called, for a caption
    that is no text. A labeler can be pickled; the copy opens the lexicon anew and keeps the terms.
    """

    def __init__(
        self,
        rule: str = "nouns",
        *,
        canonical: bool = True,
        heads: bool = True,
        language: str | Path = "en",
        ancestors: int = 0,
        lexicon: str | Path | None = None,
    ) -> None:
        if rule not in RULES:
            raise UsageError(f"`rule` {rule!r}: there are {' and '.join(map(repr, RULES))}")
        if rule == "corenet" and language != "en":
            raise UsageError(f"`language` {language!r}: the official rule, 'corenet', reads English only")
        if ancestors < 0:
            raise UsageError(f"`ancestors` {ancestors}: a number of levels, 0 or more")
        self.rule = rule
        self.version = VERSIONS[rule]
        self.canonical = canonical and rule == "nouns"
        self.heads = heads and rule == "nouns"
        self.language = str(language)
        self.ancestors = ancestors
        self.lexicon = str(lexicon) if lexicon is not None else None
        self.terms = read_terms(Path(self.lexicon)) if self.lexicon else {}
        self._open()

    def _open(self) -> None:
        self.wordnet: Lexicon = open_lexicon()
        own = {label for labels in self.terms.values() for label in labels if not self.wordnet.has_synset(label)}
        if slips := sorted(label for label in own if re.fullmatch(r"n\d{8}", label)):
            raise UsageError(
                f"`lexicon` {self.lexicon}: {slips[0]} is no noun synset of WordNet 3.0, and looks like one"
            )
        # Sorted, so that a label's number sorts like the label itself.
        self.synsets: list[str] = sorted([*self.wordnet.wnids, *own]) if own else self.wordnet.wnids
        self._names = np.array(self.synsets, dtype=object)
        self._index = {synset: i for i, synset in enumerate(self.synsets)}
        self._above: dict[int, np.ndarray] = {}  # label -> its hypernyms
        self._rule = self._make_rule()

    def _make_rule(self) -> Rule:
        # Imported here: the official rule's text repair takes a while to load and few need it.
        if self.rule == "corenet":
            from catlip.labels.corenet_rule import CorenetRule

            if self.terms:
                raise UsageError("`rule` 'corenet' reproduces the official code, which has no `lexicon` of one's own")
            return CorenetRule(self.wordnet, self._index)
        from catlip.labels.nouns.rule import NounRule

        phrases = phrase_index(tuple(self.terms.items()))
        english = NounRule(phrases, self._index, canonical=self.canonical, heads=self.heads)
        if self.language == "en":
            return english
        from catlip.labels.languages.language_rule import language_rule

        return language_rule(self.language, english, self.terms)

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with: `Labeler(**settings)` labels alike."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def absolute_settings(self) -> dict[str, Any]:
        """`settings` for processes with another working directory."""
        from catlip.labels.languages.language import absolute

        lexicon = os.path.abspath(self.lexicon) if self.lexicon else None
        return {**self.settings, "language": absolute(self.language), "lexicon": lexicon}

    def __getstate__(self) -> dict[str, Any]:  # worker processes open their own
        return {**self.settings, "version": self.version, "terms": self.terms}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        settings = [f"{name}={value!r}" for name, value in self.settings.items()]
        return f"Labeler({', '.join(settings)})"

    def __call__(self, captions: Sequence[Any]) -> list[list[str]]:
        if isinstance(captions, str):
            raise UsageError(f"a list of captions is needed, not one caption: labeler([{captions[:40]!r}])")
        if not hasattr(captions, "__getitem__"):
            raise UsageError(f"a list of captions is needed, not {type(captions).__name__}: labeler(list(captions))")
        indices, offsets = self.sparse(captions)
        names = self._names[indices].tolist()
        return [names[start:end] for start, end in pairwise(offsets.tolist())]

    def sparse(self, captions: Sequence[Any], rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Labels as arrays: (indices into `synsets`, sorted and unique in each row; offsets of the rows).

        rows: the row of each caption, ascending from 0, when several captions share one (those of one image);
            without it every caption is a row. Shapes: indices int32 [sum L], offsets int32 [rows + 1].
        """
        n_rows = len(captions) if rows is None else int(rows[-1]) + 1 if len(rows) else 0
        row, label = self._rule.labels(captions)
        if rows is not None:
            row = rows[row]
        if self.ancestors:
            row, label = self._with_hypernyms(row, label)
        keys = np.sort(row.astype(np.int64) << 32 | label.astype(np.int64))
        keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]  # np.unique hashes, which is slower by far
        offsets = np.searchsorted(keys, np.arange(n_rows + 1, dtype=np.int64) << 32)
        return (keys & 0xFFFFFFFF).astype(np.int32), offsets.astype(np.int32)

    def _with_hypernyms(self, row: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        groups = [self._hypernyms(number) for number in label.tolist()]
        lengths = np.fromiter(map(len, groups), np.int64, len(groups))
        return np.append(row, np.repeat(row, lengths)), np.concatenate([label, *groups])

    def _hypernyms(self, number: int) -> np.ndarray:
        if number not in self._above:
            synset = self.synsets[number]
            above = self.wordnet.ancestors(synset, self.ancestors) if self.wordnet.has_synset(synset) else set()
            self._above[number] = np.array(sorted(self._index[s] for s in above), np.int64)
        return self._above[number]

    @property
    def terms_hash(self) -> str:
        """Identifies the terms of a lexicon of one's own by what they say; "" without one."""
        lines = sorted("\t".join((phrase, *labels)) for phrase, labels in self.terms.items())
        return sha256("\n".join(lines).encode()).hexdigest()[:12] if lines else ""

    @property
    def data_hash(self) -> str:
        """Identifies the tables that labels are made with: WordNet, and those of the language."""
        tables = self._rule.tables_hash
        return sha256(f"{self.wordnet.hash} {tables}".encode()).hexdigest()[:12] if tables else self.wordnet.hash

    def name(self, synset: str) -> str:
        """A label for people: the synset's first lemma, or the id itself for a label of one's own."""
        return self.wordnet.synset(synset).name if self.wordnet.has_synset(synset) else synset

    def foreign(self, captions: Sequence[Any]) -> int:
        """How many captions are not in `language` by their words; of "auto": in none of the languages."""
        return self._rule.foreign(captions)

    def meanings(self, name: str) -> list[ExplainedWord]:
        """The words of a class name with all synsets that may be meant: of a name that is one word, its close senses.

        Labels for training are one sense a word, near-synonyms as one; a class is looked for under each of its own.

        >>> [len(word.labels) for word in Labeler().meanings("crane")]
        [2]
        """
        told = self._naming.explain(f"{_NAMING} {name}")
        return [ExplainedWord(*word) for word in told[len(_NAMING.split()) :]]

    @cached_property
    def _naming(self) -> Rule:
        if self.rule == "corenet":
            return self._rule
        from catlip.labels.nouns.rule import NounRule

        phrases = phrase_index(tuple(self.terms.items()))
        return NounRule(phrases, self._index, canonical=False, heads=False, several=True)

    def synonym(self, synset: str) -> str:
        """The label under which a synset is found: the canonical one of its near-synonyms, or itself."""
        from catlip.labels.nouns.words import canonical_synsets

        return canonical_synsets().get(synset, synset) if self.canonical else synset

    def spoken(self, captions: Sequence[Any]) -> Counter[tuple[str, str]]:
        """(label, the word or phrase that it was read from, in the singular) -> uses, for names that people know."""
        return self._rule.spoken(captions)

    def explain(self, caption: str) -> Explanation:
        """Word by word: what was matched, which synset and why, what was dropped and why.

        >>> for word in Labeler().explain("a dog watches a watch"):
        ...     print(word.text, word.labels)
        a ()
        dog ('n02084071',)
        watches ()
        a ()
        watch ('n04555897',)
        """
        words = [ExplainedWord(*told) for told in self._rule.explain(caption)]
        labels = self([caption])[0]
        named = {*labels, *(label for word in words for label in word.labels)}
        return Explanation(words, labels, {label: self.name(label) for label in named})


def explain(caption: str | None = None, *, config: ExplainConfig | None = None, **settings: Any) -> Explanation:
    """`catlip explain`: a caption's labels, word by word. Raises UsageError as `Labeler` does.

    >>> explain("a bat in a cave").labels == Labeler()(["a bat in a cave"])[0]
    True
    """
    cfg = configure(ExplainConfig, config, caption=caption, **settings)
    settings = {name: getattr(cfg, name) for name in SETTINGS}
    return Labeler(**settings).explain(cfg.caption)


def read_utf8(path: Path) -> str:
    """A text file, with any line ends and with or without a byte-order mark. Raises UsageError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not in UTF-8 (byte {error.start}); save it again with this encoding") from None


def read_terms(path: Path) -> dict[str, tuple[str, ...]]:
    """A lexicon of one's own: TSV lines `phrase<TAB>label[<TAB>label ...]`; # starts a comment line.

    Raises UsageError, naming the line, for anything else.
    """
    if not path.is_file():
        raise UsageError(f"`lexicon`: no such file: {path}")
    terms: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        phrase, *labels = (part.strip() for part in line.split("\t"))
        labels = [label for label in labels if label]
        if not phrase or not labels:
            raise UsageError(f"{path}, line {number}: expected `phrase<TAB>label`, found {line[:60]!r}")
        terms[phrase.lower()] = (*terms.get(phrase.lower(), ()), *labels)
    if not terms:
        raise UsageError(f"{path} holds no terms; a line is `phrase<TAB>label`")
    return terms
