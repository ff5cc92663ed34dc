"""Synset <-> class index, with counts: what the encoder learns to tell apart.

A vocabulary is one table in plain text, `vocab.tsv`, that a person can grep and sort:

    # catlip vocabulary; rule=nouns version=4 canonical=1 heads=1 language=en ancestors=0 lexicon=1a2b3c samples=6 ...
    0   n10287213   man   2714

A fifth column is yours to add: the class' weight in the loss.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from catlip.atomic import write_text
from catlip.errors import UsageError
from catlip.labels.labeler import SETTINGS, VERSIONS, Labeler, read_utf8
from catlip.labels.wordnet import open_lexicon

AT_ONCE = 4096  # samples whose captions are labelled at a time
_HEADER = "# catlip vocabulary;"
_COUNT = re.compile("[0-9]{1,18}")
_WEIGHT = re.compile(r"1000|[0-9]{1,3}(\.[0-9]{1,9})?")


@dataclass(kw_only=True, slots=True, repr=False)
class Vocabulary:
    """Classes in the order of their indices, the most frequent first. Made by `count`, `load` or `load_corenet`.

    >>> import catlip
    >>> vocabulary = catlip.Vocabulary.count(["a dog on a lawn", "two dogs", "a cat", None])
    4 samples, 4 captions (1 missing); 1.00 labels a sample, 25.0% of the samples without a label
    vocabulary: 3 of 3 labels kept; they cover 100.0% of 4 label uses
    >>> vocabulary
    Vocabulary of 3 labels, counted on 4 samples by the rule 'nouns': dog 2, cat 1, lawn 1
    >>> vocabulary.encode(["n02121620", "n02084071"])
    [0, 1]
    """

    synsets: list[str]
    names: list[str]
    counts: list[int]  # samples (images) that have the label; several captions of one image count once
    samples: int  # counted over so many images, with or without a label
    captions: int = 0
    rule: str = "nouns"
    version: int = VERSIONS["nouns"]  # of the rule; the versions' labels differ
    canonical: bool = True  # near-synonyms share one label
    heads: bool = True  # phrases also carry what they are a kind of
    language: str = "en"  # of the captions
    ancestors: int = 0
    lexicon: str = ""  # hash of the lexicon the labels were made with
    source: str = ""
    terms: str | None = None  # file of the domain's own terms, as given to the labeler
    terms_hash: str = ""  # of what that file said; "" in vocabularies of older versions
    weights: list[float] = field(default_factory=list)  # of each class' own term in the loss; none: 1 for all
    _index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._index = {synset: i for i, synset in enumerate(self.synsets)}
        if len(self._index) != len(self.synsets):
            raise UsageError(f"the vocabulary lists a synset twice ({len(self.synsets) - len(self._index)} repeated)")

    def __len__(self) -> int:
        return len(self.synsets)

    def __contains__(self, synset: str) -> bool:
        return synset in self._index

    def __repr__(self) -> str:
        most = [f"{name.replace('_', ' ')} {count:,}" for name, count in zip(self.names, self.counts, strict=True)][:12]
        more = ", ..." if len(self) > len(most) else ""
        return (
            f"Vocabulary of {len(self):,} labels, counted on {self.samples:,} samples by the rule {self.rule!r}: "
            f"{', '.join(most)}{more}"
        )

    def index(self, synset: str) -> int:
        """Class index of a synset. Raises KeyError if it is not in the vocabulary."""
        return self._index[synset]

    def name(self, synset: str) -> str:
        """A class' name for people. Raises KeyError if it is not in the vocabulary."""
        return self.names[self._index[synset]]

    def encode(self, labels: Iterable[str]) -> list[int]:
        """Class indices of the labels that are in the vocabulary, ascending."""
        return sorted({self._index[label] for label in labels if label in self._index})

    @property
    def hash(self) -> str:
        """Identifies the classes, their order and weights, the domain's own terms and the language of the captions."""
        weights = " ".join(map(str, self.weights))
        more = [self.terms_hash, self.lexicon if self.language != "en" else "", weights]
        return sha256("\n".join([*self.synsets, *filter(None, more)]).encode()).hexdigest()[:12]

    def labeler(self) -> Labeler:
        """The labeler that the counts were made with.

        Raises UsageError if this version's rule or lexicon or the file of the domain's own terms is another one.
        """
        if self.terms and not Path(self.terms).is_file():
            raise UsageError(f"the vocabulary was made with the terms of {self.terms}, and there is no such file")
        settings = {name: getattr(self, name) for name in SETTINGS if name != "lexicon"}
        labeler = Labeler(**settings, lexicon=self.terms)
        if self.version != labeler.version:
            raise UsageError(
                f"the vocabulary was made with version {self.version} of the rule {self.rule!r}, this catlip has "
                f"{labeler.version}: its labels would differ. Make it anew with `catlip vocab`"
            )
        if self.lexicon and self.lexicon != labeler.data_hash:
            raise UsageError(
                f"the vocabulary was made with lexicon {self.lexicon}, this version of catlip has "
                f"{labeler.data_hash}: its labels would differ. Make it anew with `catlip vocab`"
            )
        if self.terms_hash and self.terms_hash != labeler.terms_hash:
            raise UsageError(
                f"the vocabulary was made with the terms {self.terms_hash} of {self.terms}, which now says others "
                f"({labeler.terms_hash}): its labels would differ. Restore the file or make it anew with `catlip vocab`"
            )
        return labeler

    def classes_of(self, labeler: Labeler) -> np.ndarray:
        """int32 [len(labeler.synsets)]: class index of each of the labeler's labels, -1 outside the vocabulary."""
        return np.array([self._index.get(synset, -1) for synset in labeler.synsets], np.int32)

    def sparse(self, samples: Iterable[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """The classes that the captions of each sample name, as arrays; of any number of samples.

        Sample n has the classes labels[offsets[n]:offsets[n + 1]], ascending. Returns labels int32 [sum L], offsets
        int64 [samples + 1]. Raises UsageError as `labeler` does.
        """
        labeler, left = self.labeler(), iter(samples)
        classes, found, sizes = self.classes_of(labeler), [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        while some := list(islice(left, AT_ONCE)):
            labels, offsets = classes_in(some, labeler, classes)
            found.append(labels.astype(np.int32))
            sizes.append(np.diff(offsets))
        return np.concatenate(found), np.cumsum(np.concatenate(sizes))

    # Counting reads datasets and the report draws images: rooms that stand on this one. These two methods are doors to
    # them, opened late, so that labels alone need neither.

    @classmethod
    def count(cls, data: Any, **settings: Any) -> "Vocabulary":
        """Count the labels of captions: of each label, the samples that have it.

        data: what `catlip.open` takes, or an iterable of the caption, or the list of captions, of each image; None is a
            missing one. Files are counted by several processes.
        settings: fields of `VocabularyConfig`, the settings of `catlip vocab`: `min_count`, `max_size`, `rule`,
            `ancestors`, `lexicon`, `text_col`, `workers`, ... With `out` the vocabulary is saved there, and a count of
            files that was killed resumes.

        Raises UsageError for data that cannot be read, and if no label is left.
        """
        return import_module("catlip.data.corpus").build_vocabulary(data, **{"out": "", **settings})

    def report(self, out: str | Path = "labels.html", data: Any = None, *, min_count: int = 1) -> Path:
        """Write a page to look at before paying for a GPU: the long tail, captions without a label, images by label.

        data: where examples come from, as for `count`; default: `source`, where it can still be opened.
        min_count: where the cut is drawn.

        Returns the path of the page.
        """
        return import_module("catlip.report.label_report").label_report(self, data, out, min_count=min_count)

    @classmethod
    def from_counts(
        cls,
        counts: dict[str, int],
        labeler: Labeler,
        *,
        samples: int,
        captions: int,
        source: str,
        names: dict[str, str] | None = None,
        min_count: int = 1,
        max_size: int | None = None,
        max_share: float = 1.0,
    ) -> "Vocabulary":
        """Keep labels that occur at least `min_count` times, of those the `max_size` most frequent.

        names: words that people use for labels; the others have WordNet's name. The paper keeps counts above tau = 500
        (CatLIP, 3.1). Raises UsageError if nothing is left.
        """
        whole = cls(
            synsets=list(counts),
            names=[_name(labeler.name(synset), (names or {}).get(synset, "")) for synset in counts],
            counts=list(counts.values()),
            samples=samples,
            captions=captions,
            rule=labeler.rule,
            version=labeler.version,
            canonical=labeler.canonical,
            heads=labeler.heads,
            language=labeler.language,
            ancestors=labeler.ancestors,
            lexicon=labeler.data_hash,
            source=source,
            terms=labeler.lexicon,
            terms_hash=labeler.terms_hash,
        )
        return whole.prune(min_count=min_count, max_size=max_size, max_share=max_share)

    def prune(self, *, min_count: int = 1, max_size: int | None = None, max_share: float = 1.0) -> "Vocabulary":
        """The classes that occur at least `min_count` times, of those the `max_size` most frequent.

        max_share: of the samples that may have a class. Raises UsageError if nothing is left.
        """
        order = sorted(range(len(self)), key=lambda i: (-self.counts[i], self.synsets[i]))
        order = [i for i in order if self.counts[i] <= max_share * max(self.samples, self.counts[i])]
        kept = [i for i in order if self.counts[i] >= min_count][:max_size]
        if not kept:
            raise UsageError(
                f"no label occurs `min_count` {min_count} times or more: of {len(self):,} labels in {self.captions:,} "
                f"captions the most frequent occurs {max(self.counts, default=0):,} times"
            )
        return replace(
            self,
            synsets=[self.synsets[i] for i in kept],
            names=[self.names[i] for i in kept],
            counts=[self.counts[i] for i in kept],
            weights=[self.weights[i] for i in kept if self.weights],
        )

    @classmethod
    def merge(cls, vocabularies: Sequence["Vocabulary"]) -> "Vocabulary":
        """Counts of several corpora added up. Merge before pruning: what one corpus has lost cannot come back.
        Weights of classes fall away.

        Raises UsageError if they were not made with the same rule and lexicon.
        """
        first = vocabularies[0]
        for other in vocabularies[1:]:
            terms = "terms_hash" if other.terms_hash else "terms"
            for fact in ("rule", "version", "canonical", "heads", "language", "ancestors", "lexicon", terms):
                if fact == "language" and first.lexicon == other.lexicon:
                    continue  # a folder by another path
                if getattr(first, fact) != getattr(other, fact):
                    mine, theirs = getattr(first, fact), getattr(other, fact)
                    raise UsageError(f"vocabularies of different {fact} cannot be merged: {mine!r} and {theirs!r}")
        counts: Counter[str] = Counter()
        names: dict[str, str] = {}
        for vocabulary in vocabularies:
            counts.update(dict(zip(vocabulary.synsets, vocabulary.counts, strict=True)))
            names.update(zip(vocabulary.synsets, vocabulary.names, strict=True))
        merged = replace(
            first,
            synsets=list(counts),
            names=[names[s] for s in counts],
            counts=list(counts.values()),
            samples=sum(v.samples for v in vocabularies),
            captions=sum(v.captions for v in vocabularies),
            source=" + ".join(v.source for v in vocabularies),
            weights=[],
        )
        return merged.prune()

    def compare(self, other: "Vocabulary") -> dict[str, Any]:
        """Which classes two vocabularies share: {"shared", "only_here", "only_there": synsets; "uses_shared": share of
        this vocabulary's label uses that the other has too}."""
        shared = [synset for synset in self.synsets if synset in other]
        uses = sum(self.counts[self.index(synset)] for synset in shared)
        return {
            "shared": shared,
            "only_here": [synset for synset in self.synsets if synset not in other],
            "only_there": [synset for synset in other.synsets if synset not in self],
            "uses_shared": uses / max(sum(self.counts), 1),
        }

    def save(self, path: str | Path) -> None:
        """Write `vocab.tsv`; a file that is there is replaced in one step."""
        path = Path(path)
        facts: dict[str, Any] = {
            "rule": self.rule,
            "version": self.version,
            "canonical": int(self.canonical),
            "heads": int(self.heads),
            "language": quote(os.fsencode(self.language)),
            "ancestors": self.ancestors,
            "lexicon": self.lexicon,
            "samples": self.samples,
            "captions": self.captions,
            "terms": quote(os.fsencode(self.terms or "")),
            "terms_hash": self.terms_hash,
            "source": self.source,
        }
        header = " ".join(f"{key}={_quiet(value)}" for key, value in facts.items())
        more = [self.weights] if self.weights else []
        columns = zip(self.synsets, map(_quiet, self.names), self.counts, *more, strict=True)
        rows = ("\t".join(map(str, (i, *row))) for i, row in enumerate(columns))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join([f"{_HEADER} {header}", *rows]) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read `vocab.tsv`. Raises UsageError, naming the line, for anything else."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"no such vocabulary: {path}. Make one with `catlip vocab DATA --out {path}`")
        lines = read_utf8(path).removesuffix("\n").split("\n")
        if not lines[0].startswith(_HEADER):
            raise UsageError(f"{path} is no vocabulary: its first line should start with {_HEADER!r}")
        facts = _facts(path, lines[0].removeprefix(_HEADER))
        synsets, names, counts, weights = [], [], [], []
        for number, line in enumerate(lines[1:], 2):
            index, synset, name, count, weight = [*line.split("\t", 4), *5 * [""]][:5]
            good = index == str(len(synsets)) and synset and _COUNT.fullmatch(count)
            if not good or not _WEIGHT.fullmatch(weight or "1"):
                raise UsageError(
                    f"{path}, line {number}: expected `index<TAB>synset<TAB>name<TAB>count`, and perhaps a weight from "
                    f"0 to 1000, found {line!r}"
                )
            synsets.append(synset)
            names.append(name)
            counts.append(int(count))
            weights.append(float(weight or 1))
        if not synsets:
            raise UsageError(f"{path} holds no classes")
        return cls(synsets=synsets, names=names, counts=counts, weights=weights if set(weights) != {1} else [], **facts)

    @classmethod
    def load_corenet(cls, path: str | Path, max_size: int | None = None) -> "Vocabulary":
        """The official vocabulary: a pickle of {"n5928118": count}, offsets unpadded, order = class index.

        max_size: the official models use the first 24,320. The number of captions is not in the file, so `samples`
        is the largest count. Raises UsageError for a pickle that holds, or would run, anything else.
        """
        from catlip.labels.corenet_rule import read_counts

        path, lexicon = Path(path), open_lexicon()
        counts = read_counts(path)
        synsets = list(counts)[:max_size]
        unknown = [synset for synset in synsets if not lexicon.has_synset(synset)]
        if unknown:
            raise UsageError(f"{path}: {len(unknown):,} keys are no noun synsets of WordNet 3.0, e.g. {unknown[0]!r}")
        return cls(
            synsets=synsets,
            names=[lexicon.synset(synset).name for synset in synsets],
            counts=list(counts.values())[:max_size],
            samples=max(counts.values()),
            rule="corenet",
            version=VERSIONS["corenet"],
            canonical=False,
            heads=False,
            lexicon=lexicon.hash,
            source=path.name,
        )


def classes_in(
    samples: Sequence[Sequence[str]], labeler: Labeler, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the captions of each sample name: sample n has the classes labels[offsets[n]:offsets[n + 1]], ascending.

    classes: `Vocabulary.classes_of` the labeler. Returns int64 [sum L], int64 [samples + 1].
    """
    rows = np.repeat(np.arange(len(samples)), [len(captions) for captions in samples])
    sparse = labeler.sparse([caption for captions in samples for caption in captions], rows)
    return to_classes(*sparse, classes, len(samples))


def to_classes(
    indices: np.ndarray, offsets: np.ndarray, classes: np.ndarray, n_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a labeler -> classes of a vocabulary; labels outside it fall away. int64 [sum L], int64 [rows + 1]."""
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    found = classes[indices]
    row, found = row[found >= 0], found[found >= 0]
    order = np.lexsort((found, row))
    return found[order].astype(np.int64), np.searchsorted(row, np.arange(n_rows + 1)).astype(np.int64)


def _facts(path: Path, header: str) -> dict[str, Any]:
    """The header's `name=value` pairs, `source` last and with spaces. Raises UsageError for a damaged one."""
    before, _, source = header.partition(" source=")
    before, _, terms = before.partition(" terms=")
    terms, hashed, terms_hash = terms.partition(" terms_hash=")
    if hashed:  # older versions wrote the path as it is
        terms = os.fsdecode(unquote_to_bytes(terms))
    facts: dict[str, Any] = {"source": source, "terms": terms or None, "terms_hash": terms_hash}
    for part in before.split():
        name, _, value = part.partition("=")
        number = name in ("samples", "captions", "ancestors", "version", "canonical", "heads")
        if name not in ("rule", "language", "lexicon") and not number:
            raise UsageError(f"{path}, line 1: unknown {part!r}; the header is damaged, or a newer catlip wrote it")
        if number and not _COUNT.fullmatch(value):
            raise UsageError(f"{path}, line 1: {part!r} is no number; the header is damaged")
        facts[name] = int(value) if number else os.fsdecode(unquote_to_bytes(value))
    return {"samples": 0, "version": 1, "canonical": 0, "heads": 0, **facts}  # of files of before there were versions


def _name(of_wordnet: str, spoken: str) -> str:
    """The word that is spoken, in WordNet's spelling if it is the same one (Frisbee, African-American)."""
    alike = spoken.replace("-", "_").lower() == of_wordnet.replace("-", "_").lower()
    return of_wordnet if alike or not spoken else spoken


def _quiet(value: object) -> str:
    """One field of a line: no tabs, no line breaks, nothing that UTF-8 cannot write."""
    text = " ".join(str(value).split()) if not isinstance(value, int) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()
