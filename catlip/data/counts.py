"""What a count of captions adds up: samples, labels, the words that they were read from."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from catlip.labels.labeler import Labeler

LANGUAGE_SAMPLE = 512  # captions of every chunk whose language, and whose words for the labels, are looked at
LEAST_SPOKEN = 3  # uses of a word from which on it is the name of its label
MAX_FOREIGN = 0.1  # share of captions that are not in their language by their words, from which on we say so


def uses_of(indices: np.ndarray, labeler: Labeler) -> dict[str, int]:
    """How often each of the labeler's labels is there."""
    labels, uses = np.unique(indices, return_counts=True)
    return {labeler.synsets[i]: n for i, n in zip(labels.tolist(), uses.tolist(), strict=True)}


@dataclass(slots=True)
class Counts:
    """What was counted. Adds up over files, and prints itself."""

    samples: int = 0
    captions: int = 0
    missing: int = 0  # of the captions: one for each sample without any
    unlabelled: int = 0  # samples without a label
    labels: int = 0
    looked: int = 0  # captions whose language was looked at: the first of every few thousand
    foreign: int = 0  # of those, not in the language by their words
    kept: int = 0  # samples that are left where common labels are thinned
    by_synset: Counter[str] = field(default_factory=Counter)
    kept_by_synset: Counter[str] = field(default_factory=Counter)  # the same of what is left
    by_word: Counter[str] = field(default_factory=Counter)  # "synset<TAB>word it was read from", of those looked at
    language: str = "en"  # that was expected
    troubles: dict[str, str] = field(default_factory=dict)  # what was left out of the files, and why

    def add(self, other: dict[str, Any]) -> None:
        for name in ("samples", "captions", "missing", "unlabelled", "labels", "looked", "foreign", "kept"):
            setattr(self, name, getattr(self, name) + other[name])
        for name in ("by_synset", "kept_by_synset", "by_word"):
            getattr(self, name).update(other[name])
        self.troubles.update(other["troubles"])

    def count(
        self, samples: list[list[str]], labeler: Labeler, keep: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label some more. Returns (labels of all samples, where those of each begin, and the end).

        samples: the captions of each. keep: which of the labeler's labels are wanted; None: all.
        """
        sample_of = np.repeat(np.arange(len(samples)), [len(captions) for captions in samples])
        captions = [caption for several in samples for caption in several]
        indices, offsets = labeler.sparse(captions, sample_of)
        offsets = np.append(offsets, np.full(len(samples) + 1 - len(offsets), len(indices), offsets.dtype))
        if keep is not None:
            kept = keep[indices]
            indices, offsets = indices[kept], np.append(0, np.cumsum(kept))[offsets].astype(np.int32)
        missing = sum(not several for several in samples)
        self.samples += len(samples)
        self.captions += len(captions) + missing
        self.missing += missing
        self.unlabelled += int((np.diff(offsets) == 0).sum())
        self.looked += len(captions[:LANGUAGE_SAMPLE])
        self.foreign += labeler.foreign(captions[:LANGUAGE_SAMPLE])
        spoken = labeler.spoken(captions[:LANGUAGE_SAMPLE])
        self.by_word.update({f"{synset}\t{word}": uses for (synset, word), uses in spoken.items()})
        self.labels += len(indices)
        self.by_synset.update(uses_of(indices, labeler))
        return indices, offsets

    def names(self) -> dict[str, str]:
        """Label -> the word that captions use for it most, where they say one often enough."""
        found: dict[str, str] = {}
        for key, uses in sorted(self.by_word.items(), key=lambda item: (-item[1], item[0])):
            synset, _, word = key.partition("\t")
            if uses >= LEAST_SPOKEN:
                found.setdefault(synset, word.replace(" ", "_"))
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.samples:,} samples, {self.captions:,} captions ({self.missing:,} missing); "
            f"{self.labels / max(self.samples, 1):.2f} labels a sample, "
            f"{self.unlabelled / max(self.samples, 1):.1%} of the samples without a label"
        ]
        if self.troubles:
            first, why = next(iter(self.troubles.items()))
            lines.append(f"{len(self.troubles):,} troubles, e.g. {first}: {why}")
        share = self.foreign / max(self.looked, 1)
        if share > MAX_FOREIGN:
            expected = {"en": "English", "auto": "any language that catlip knows"}.get(
                self.language, f"the language {self.language}"
            )
            advice = "" if self.language == "auto" else "; `language` says what they are in"
            lines.append(
                f"warning: {share:.1%} of the captions are not in {expected} by their words; their labels will be "
                f"poor{advice}"
            )
        return "\n".join(lines)
