"""Class names -> rows of a classifier of synsets: exact, by what lies below in WordNet, or by what lies above; or, for
Transfer Init, by path similarity.

A name is read as a caption is, by the labeler that made the classifier's labels, so that "tv", "dining tables" and
"mouse" (both of them) find the rows that such words were trained with.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from catlip.errors import UsageError, near
from catlip.evaluation.features import folder_of
from catlip.labels.labeler import Labeler, read_utf8
from catlip.labels.vocabulary import Vocabulary
from catlip.labels.wordnet import Lexicon
from catlip.notices import warn

WNID = re.compile(r"n\d{8}")
# entity, physical entity, object, whole: an image of anything is an image of these, so nothing backs off to them.
TOP_LEVELS = 4


@dataclass(frozen=True, slots=True)
class ClassName:
    """A class as a line of a file names it: its name, and the synsets it stands for if the line says so."""

    name: str
    synsets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """Where a class is found in a classifier."""

    name: str
    synsets: tuple[str, ...]  # what the name means; empty: no synset is known for it
    rows: tuple[int, ...]  # of the classifier; empty: missing
    how: str  # "exact", "below", "above", "similar", "parts", "missing"
    levels: int = 0  # "above": how many levels
    through: tuple[str, ...] = ()  # synsets of the rows
    similarity: float = 1.0  # "similar": of the rows' synsets; "parts": of the least similar part
    parts: "tuple[Match, ...]" = ()  # "parts": those of the name's nouns that have rows

    def told(self, name_of: dict[str, str]) -> str:
        """For people. name_of: synset -> name."""
        if self.parts:
            return "mean of parts: " + "; ".join(f"{part.name!r} {part.told(name_of)}" for part in self.parts)
        names = [name_of.get(synset, synset) for synset in self.through]
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        if self.how == "exact":
            return f"exact: {some}"
        if self.how == "below":
            return f"by {len(names)} below it: {some}"
        if self.how == "above":
            return f"backed off by {self.levels} level{'s' if self.levels > 1 else ''} to {some}"
        if self.how == "similar":
            return f"similar ({self.similarity:.2g}): {some}"
        return "missing: " + ("nothing near it in the vocabulary" if self.synsets else "no noun that WordNet knows")


def read_names(path: str | Path) -> list[ClassName]:
    """Class names, one a line in the order of the labels' numbers: a name or a wnid; or name, tab, wnid(s).

    Raises UsageError for a file that is missing or empty, an empty line between others, and a name that comes twice.
    """
    found: list[ClassName] = []
    for number, line in enumerate(text_of(path, "`classes`").rstrip().splitlines(), 1):
        name, *rest = (part.strip() for part in line.split("\t"))
        synsets = tuple(" ".join(rest).replace(",", " ").split())
        if not name:
            raise UsageError(f"`classes` {path}, line {number} is empty; the classes after it would be misnumbered")
        if wrong := [synset for synset in synsets if not WNID.fullmatch(synset)]:
            raise UsageError(f"`classes` {path}, line {number}: {wrong[0]!r} is no wnid such as n02084071")
        found.append(ClassName(name, synsets))
    name, times = Counter(normalized(entry.name) for entry in found).most_common(1)[0]
    if times > 1:
        raise UsageError(f"`classes` {path} names {name!r} twice")
    return found


def text_of(path: str | Path, field: str) -> str:
    """A text file that a setting names. Raises UsageError if it is not there, empty, or not in UTF-8."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{field}: no such file: {path}")
    text = read_utf8(path)
    if not text.strip():
        raise UsageError(f"{field} {path} is empty")
    return text


def rows_of(labels: Sequence[str], names: Sequence[ClassName], file: str | None, data: str) -> list[int]:
    """Place of each label in `names`. Labels are names (or wnids that a name stands for), or numbers from 0.

    file, data: what the names and the labels come from. Raises UsageError for a label that is not among the names.
    """
    index = {normalized(entry.name): i for i, entry in enumerate(names)}
    index |= {synset: i for i, entry in enumerate(names) for synset in entry.synsets if len(entry.synsets) == 1}
    unknown = sorted(label for label in labels if normalized(label) not in index)
    if unknown and all(label.isdecimal() for label in labels):
        highest = max(map(int, labels))
        if highest >= len(names):
            raise UsageError(f"`classes` {file} names {len(names)} classes; {data} has the label {highest}")
        return [int(label) for label in labels]
    if unknown:
        more = near(normalized(unknown[0]), index)
        raise UsageError(f"`classes` {file}: {len(unknown)} labels of {data} are not in it, e.g. {unknown[0]!r}{more}")
    return [index[normalized(label)] for label in labels]


def normalized(name: str) -> str:
    """A name as it is compared: lower case, one space between words."""
    return " ".join(name.replace("_", " ").lower().split())


def run_labeler(run: Any) -> Labeler:
    """The labeler that a run's labels were made with, or the default one for an encoder without a vocabulary. Names of
    classes are English whatever the language of the captions is."""
    folder = folder_of(run)
    file = folder / "vocab.tsv" if folder is not None else None
    if file is None or not file.is_file():
        return Labeler()
    vocabulary = Vocabulary.load(file)  # of another version of WordNet too: reading a name hardly changes with it
    there = vocabulary.terms and Path(vocabulary.terms).is_file()
    terms = vocabulary.terms if there else None
    same: dict[str, Any] = {"canonical": vocabulary.canonical, "heads": vocabulary.heads, "lexicon": terms}
    try:
        labeler = Labeler(vocabulary.rule, language=vocabulary.language, **same)
    except UsageError as error:  # a folder that was elsewhere
        warn(f"{error}; captions are read in English")
        labeler = Labeler(vocabulary.rule, **same)
    if vocabulary.terms and vocabulary.terms_hash not in ("", labeler.terms_hash):
        how = "have changed since" if there else "are not there; class names are read without them"
        warn(f"{vocabulary.terms}: the terms that the labels of {run} were made with {how}")
    return labeler


class Matcher:
    """Finds classes among a classifier's labels (wnids, in the order of its rows)."""

    def __init__(self, labels: Sequence[str], labeler: Labeler) -> None:
        """Raises UsageError for labels that are no synsets: the classifier of a data set, not of captions."""
        self.labeler, self.wordnet = labeler, labeler.wordnet
        self.row = {label: i for i, label in enumerate(labels)}
        if not any(self.wordnet.has_synset(label) for label in labels):
            some = f", e.g. {labels[0]!r}" if labels else ": this encoder has no classifier"
            raise UsageError(f"its labels are no synsets of WordNet{some}; the text route needs none")
        self._below = _below(self.row, self.wordnet)

    def __call__(self, classes: Sequence[ClassName]) -> list[Match]:
        """One match a class. A row belongs to the nearest classes above it: among "dog" and "animal", poodles to dog.

        Of a class that has no row and none below, the nearest synset above that has one stands in.
        """
        meanings = [self._meant(entry) for entry in classes]
        own = {synset for found in meanings for synset in found}
        return [self._match(entry.name, found, own) for entry, found in zip(classes, meanings, strict=True)]

    def similar(self, classes: Sequence[ClassName], alpha: float) -> list[Match]:
        """One match a class by CatLIP's Transfer Init (arXiv 2404.15653, section 4.2): rows of the class' own synsets,
        else those of the most path-similar synsets, if their similarity is alpha or more.

        A name of several nouns that is no entry of its own is matched noun by noun. Unlike in `__call__`, a sibling
        can stand in, and what lies further below a class than something lies beside it does not count.
        """
        return [self._similar(entry, alpha) for entry in classes]

    def _similar(self, entry: ClassName, alpha: float) -> Match:
        nouns = [] if entry.synsets or WNID.fullmatch(entry.name) else self._nouns(normalized(entry.name))
        if len(nouns) < 2:
            return self._closest(entry.name, self._meant(entry), alpha)
        found = [self._closest(text, self._labels(synsets), alpha) for text, synsets in nouns]
        good = tuple(part for part in found if part.rows)
        meant = tuple(s for part in found for s in part.synsets)
        if not good:
            return Match(entry.name, meant, (), "missing")
        return Match(
            entry.name,
            meant,
            tuple(row for part in good for row in part.rows),
            "parts",
            through=tuple(s for part in good for s in part.through),
            similarity=min(part.similarity for part in good),
            parts=good,
        )

    def _closest(self, name: str, synsets: tuple[str, ...], alpha: float) -> Match:
        if found := [synset for synset in synsets if synset in self.row]:
            return Match(name, synsets, tuple(self.row[s] for s in found), "exact", 0, tuple(found))
        ways = [
            (up + down, label)
            for synset in synsets
            if self.wordnet.has_synset(synset)
            for ancestor, up in self.wordnet.above(synset).items()
            for down, labels in [self._reach.get(ancestor, (0, ()))]
            for label in labels
        ]
        steps = min((steps for steps, _ in ways), default=0)
        # Path similarity is 1 / (steps + 1), steps of the shortest way in the is-a graph by a common hypernym.
        if not ways or 1 / (steps + 1) < alpha - 1e-9:
            return Match(name, synsets, (), "missing")
        found = sorted({label for far, label in ways if far == steps}, key=self.row.__getitem__)
        return Match(name, synsets, tuple(self.row[s] for s in found), "similar", 0, tuple(found), 1 / (steps + 1))

    @cached_property
    def _reach(self) -> dict[str, tuple[int, list[str]]]:
        """Synset -> (steps down to the labels that are nearest below it or at it, those labels)."""
        found: dict[str, tuple[int, list[str]]] = {}
        for label in filter(self.wordnet.has_synset, self.row):
            for ancestor, steps in self.wordnet.above(label).items():
                least, labels = found.get(ancestor, (steps, []))
                if steps <= least:
                    found[ancestor] = (steps, [*labels, label] if steps == least else [label])
        return found

    def _nouns(self, text: str) -> list[tuple[str, tuple[str, ...]]]:
        """Nouns that the labeler reads in a name: (as it stands there, synsets)."""
        return [(word.text, tuple(sorted(word.labels))) for word in self.labeler.meanings(text) if word.labels]

    def _meant(self, entry: ClassName) -> tuple[str, ...]:
        return self._labels(entry.synsets) if entry.synsets else self.synsets_of(entry.name)

    def _labels(self, synsets: tuple[str, ...]) -> tuple[str, ...]:
        """The synsets, and in place of one that is no label the near-synonym that stands for it."""
        return tuple(dict.fromkeys(s if s in self.row else self.labeler.synonym(s) for s in synsets))

    def synsets_of(self, name: str) -> tuple[str, ...]:
        """What a name means: a wnid itself; else its head noun as the labeler reads it; else WordNet's first sense."""
        return self._labels(self._read(name))

    def _read(self, name: str) -> tuple[str, ...]:
        if WNID.fullmatch(name):
            return (name,) if self.wordnet.has_synset(name) else ()
        text = normalized(name)
        told = [word for word in self.labeler.meanings(text) if word.labels]
        if told:
            # "sports ball" is a ball, "potted plant" a plant, "slice of pizza" a slice.
            heads = [word for word in told if text.find(word.text.lower()) < _preposition(text)]
            return tuple(sorted((heads or told)[-1].labels))
        lemma = text.replace(" ", "_")
        for spelling in (lemma, *self.wordnet.singulars(lemma)):
            if senses := [sense for sense in self.wordnet.senses(spelling) if not sense.capitalised]:
                return (senses[0].synset,)
        return ()

    def _match(self, name: str, synsets: tuple[str, ...], own: set[str]) -> Match:
        known = [synset for synset in synsets if synset in self.row or self.wordnet.has_synset(synset)]
        if not known:
            return Match(name, synsets, (), "missing")
        for how, found in (
            ("exact", [synset for synset in known if synset in self.row]),
            ("below", sorted({s for synset in known for s in self._owned(synset, own)}, key=self.row.__getitem__)),
        ):
            if found:
                return Match(name, synsets, tuple(self.row[s] for s in found), how, 0, tuple(found))
        found, levels = self._above(known)
        return Match(name, synsets, tuple(self.row[s] for s in found), "above" if found else "missing", levels, found)

    def _owned(self, synset: str, own: set[str]) -> set[str]:
        """Labels below a synset, without those that lie below another class of the evaluation."""
        found: set[str] = set()
        open_ = [synset]
        while open_:
            for child in self._below.get(open_.pop(), ()):
                if child in own or child in found:
                    continue
                found.add(child)
                open_.append(child)
        return {child for child in found if child in self.row}

    def _above(self, synsets: list[str]) -> tuple[tuple[str, ...], int]:
        """(labels of the nearest level above that has some, how many levels)."""
        frontier = {synset for synset in synsets if self.wordnet.has_synset(synset)}
        level = 0
        while frontier:
            frontier = {parent for synset in frontier for parent in self.wordnet.synset(synset).parents}
            level += 1
            found = [s for s in frontier if s in self.row and depth(self.wordnet, s) >= TOP_LEVELS]
            if found:
                return tuple(sorted(found, key=self.row.__getitem__)), level
        return (), 0


def depth(wordnet: Lexicon, synset: str) -> int:
    """Levels from the root, entity, by the shortest way."""
    level, frontier = 0, {synset}
    while True:
        parents = [wordnet.synset(s).parents for s in frontier]
        if not all(parents):
            return level
        frontier = {parent for some in parents for parent in some}
        level += 1


def alike(matches: Sequence[Match]) -> list[list[str]]:
    """Groups of classes with the same rows, which no score can tell apart."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for match in matches:
        if match.rows:
            groups.setdefault(tuple(sorted(match.rows)), []).append(match.name)
    return [names for names in groups.values() if len(names) > 1]


def _below(labels: dict[str, int], wordnet: Lexicon) -> dict[str, set[str]]:
    """Synset -> its children, of those that are labels or lie above one."""
    children: dict[str, set[str]] = {}
    open_, met = [label for label in labels if wordnet.has_synset(label)], set()
    while open_:
        synset = open_.pop()
        if synset in met:
            continue
        met.add(synset)
        for parent in wordnet.synset(synset).parents:
            children.setdefault(parent, set()).add(synset)
            open_.append(parent)
    return children


def _preposition(text: str) -> int:
    found = re.search(r"\s(of|in|on|with|for|at|from|to)\s", text)
    return found.start() if found else len(text)
