"""The noun half of WordNet 3.0, read from the one file that catlip ships. Needs neither NLTK nor a download.

Lines are split when a word is first asked for, so that opening the lexicon takes 0.2 s, not 1.5 s.
`tools/build_lexicon.py` made the file and describes its format.
"""

import lzma
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path

LEXICON_FILE = Path(__file__).with_name("wordnet.txt.xz")

# Lexicographer files of nouns, in WordNet's numbering from 03 on (lexnames(5WN)).
LEXFILES = (
    "tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
).split()

# Regular plurals: WordNet's own rules of detachment for nouns (morphy(7WN)).
DETACHMENTS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sense:
    """One meaning of a spelling."""

    synset: str  # wnid, "n02084071"
    count: int  # occurrences in WordNet's sense-tagged texts
    capitalised: bool  # the spelling is written with a capital letter in this meaning


@dataclass(frozen=True, slots=True)
class Synset:
    """One concept: a set of synonyms."""

    wnid: str
    name: str  # its first lemma as written in WordNet, "_" between words
    lexfile: str  # "animal", "artifact", ...
    pictured: bool  # in ImageNet-21k: people could find pictures of it
    parents: tuple[str, ...]  # direct hypernyms
    instance: bool  # a named individual: a city, a writer, a river


class Lexicon:
    """Spellings -> senses -> synsets -> hypernyms. Lemmas are lower case with "_" between words."""

    def __init__(self, path: Path = LEXICON_FILE) -> None:
        with lzma.open(path) as packed:
            data = packed.read()
        synsets, lemmas, plurals = data.decode().split("\n\n")
        self._data_hash = sha256(data).hexdigest()
        self._synsets = dict(line.split("\t", 1) for line in synsets.split("\n"))
        self._lemmas = dict(line.split("\t", 1) for line in lemmas.split("\n"))
        self._plurals = dict(line.split("\t", 1) for line in plurals.rstrip("\n").split("\n"))

    @property
    def hash(self) -> str:
        """Identifies the lexicon in a vocabulary's header (first 12 hex digits of its SHA-256)."""
        return self._data_hash[:12]

    @property
    def lemmas(self) -> list[str]:
        return list(self._lemmas)

    @cached_property
    def wnids(self) -> list[str]:
        """All noun synsets, in the order of their offsets."""
        return ["n" + offset for offset in self._synsets]

    def __contains__(self, lemma: str) -> bool:
        return lemma in self._lemmas

    def __getstate__(self) -> dict[str, object]:  # reopened from the file, which is quicker than pickling it
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()

    def senses(self, lemma: str) -> list[Sense]:
        """Senses of a lemma, the most frequent first; empty if it is no noun."""
        line = self._lemmas.get(lemma)
        return [] if line is None else [_parse_sense(text) for text in line.split("\t")[0].split(" ")]

    def other_readings(self, lemma: str) -> dict[str, int]:
        """Tag counts of a noun's spelling as base verb "b", inflected verb "i", adjective "a", adverb "r"."""
        line = self._lemmas.get(lemma)
        marks = line.split("\t")[1] if line else ""
        return {mark[0]: int(mark[1:]) for mark in marks.split(" ")} if marks else {}

    def synset(self, wnid: str) -> Synset:
        """Raises KeyError for an id that is no noun synset of WordNet 3.0."""
        lexfile, parents, name = self._synsets[wnid.removeprefix("n")].split("\t")
        return Synset(
            wnid=wnid,
            name=name,
            lexfile=LEXFILES[int(lexfile[:2]) - 3],
            pictured=lexfile.endswith("*"),
            parents=tuple("n" + parent[1:] for parent in parents.split(" ") if parent),
            instance=parents.startswith("~"),
        )

    def has_synset(self, wnid: str) -> bool:
        return wnid.startswith("n") and wnid[1:] in self._synsets

    def ancestors(self, wnid: str, levels: int) -> set[str]:
        """Hypernyms of a synset, up to `levels` steps above it; the synset itself is not among them."""
        return {synset for synset, steps in self.above(wnid).items() if 0 < steps <= levels}

    def above(self, wnid: str) -> dict[str, int]:
        """A synset and all its hypernyms -> steps of the shortest way up to each; the synset itself: 0."""
        steps, queue = {wnid: 0}, [wnid]
        for synset in queue:  # which grows on the way
            for parent in self.synset(synset).parents:
                if parent not in steps:
                    steps[parent] = steps[synset] + 1
                    queue.append(parent)
        return steps

    @cached_property
    def synonyms(self) -> dict[str, list[str]]:
        """Synset -> its lemmas, lower case. Built from all lemmas at first use (0.3 s)."""
        table: dict[str, list[str]] = {}
        for lemma in self._lemmas:
            for sense in self.senses(lemma):
                table.setdefault(sense.synset, []).append(lemma)
        return table

    def irregular(self, word: str) -> list[str]:
        """Singulars of an irregular plural ("men" -> ["man"]); for a regular word none."""
        return self._plurals[word].split(" ") if word in self._plurals else []

    def singulars(self, word: str) -> list[str]:
        """Lemmas that a word can be the plural of, irregular ones first; never the word itself."""
        found = [singular for singular in self.irregular(word) if singular in self._lemmas and singular != word]
        for ending, singular in DETACHMENTS:
            if word.endswith(ending):
                lemma = word[: len(word) - len(ending)] + singular
                if lemma in self._lemmas and lemma not in found and lemma != word:
                    found.append(lemma)
        return found


def _parse_sense(text: str) -> Sense:
    capitalised = text[0] == "^"
    offset, _, count = text.removeprefix("^").partition(":")
    return Sense("n" + offset, int(count or 0), capitalised)


@cache
def open_lexicon() -> Lexicon:
    """The bundled lexicon, opened once a process."""
    return Lexicon()
