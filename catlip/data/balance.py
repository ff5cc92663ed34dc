"""A fair share for rare labels: the common ones are thinned, as MetaCLIP does with texts (arXiv 2309.16671).

A label that more than `per_label` samples have is a reason to keep each of them with probability per_label / count; a
rarer one always is. Each label of a sample is drawn for on its own, and one is enough: so a sample is kept with
probability 1 - product over its labels of (1 - min(1, per_label / count)), and one without a label never. A common
label still comes more often than `per_label`, in the company of rare ones.

The order of a run respects these probabilities exactly (`catlip.data.order.Thinned`), and its folder keeps them: a run
that goes on does not label all captions again. Nothing here needs torch.
"""

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from catlip.atomic import whole
from catlip.data.dataset import Dataset
from catlip.errors import UsageError
from catlip.labels.labeler import SETTINGS
from catlip.labels.vocabulary import Vocabulary
from catlip.notices import say

FILE = "shares.npz"
LOOKED_AT = 4096  # samples whose captions are part of what tells one dataset from another


@dataclass(frozen=True, slots=True)
class Shares:
    """What thinning makes of a dataset."""

    keep: np.ndarray  # float32 [N]: the probability of each sample
    counts: np.ndarray  # int64 [classes]: samples of an epoch that have each, as a classifier's bias should begin with
    facts: str  # what they follow from, as a hash

    def save(self, folder: Path) -> None:
        with whole(folder / FILE) as part, part.open("wb") as file:
            np.savez(file, keep=self.keep, counts=self.counts, facts=np.array(self.facts))

    @classmethod
    def load(cls, folder: Path, facts: str) -> "Shares | None":
        """What a run folder keeps; None if it keeps none that follow from these facts, or a damaged file."""
        try:
            with np.load(folder / FILE, allow_pickle=False) as file:
                found = cls(file["keep"], file["counts"], str(file["facts"]))
        except (OSError, EOFError, KeyError, ValueError, BadZipFile):
            return None
        return found if found.facts == facts else None

    def thinned(self, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary with the counts of an epoch."""
        return replace(vocabulary, counts=self.counts.tolist(), samples=round(float(self.keep.sum(dtype=np.float64))))


def keep_probabilities(labels: np.ndarray, offsets: np.ndarray, counts: np.ndarray, per_label: int) -> np.ndarray:
    """float64 [N], of samples with the labels labels[offsets[n]:offsets[n + 1]], which `counts` samples have each."""
    sample = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    with np.errstate(divide="ignore"):  # a label that is always a reason: log(0)
        left_out = np.log1p(-np.minimum(1.0, per_label / np.maximum(counts, 1)))
    return -np.expm1(np.bincount(sample, left_out[labels], minlength=len(offsets) - 1))


def fair_shares(dataset: Dataset, vocabulary: Vocabulary, per_label: int, run: str | Path = "") -> Shares:
    """Of all samples, with counts of this dataset.

    run: the folder of a run that may have them already, of the very same dataset, vocabulary and number. Raises
    UsageError if no caption has a label of the vocabulary.
    """
    if per_label < 1:
        raise UsageError(f"`per_label` {per_label}: 1 or more")
    facts = _facts(dataset, vocabulary, per_label) if run else ""
    if run and (kept := Shares.load(Path(run), facts)):
        say(f"{kept.keep.sum():,.0f} of {len(kept.keep):,} samples an epoch, as {Path(run) / FILE} says")
        return kept
    labels, offsets = vocabulary.sparse(dataset.captions())
    if not len(labels):
        raise UsageError(f"{dataset.name}: not one caption names a label of the vocabulary")
    counts = np.bincount(labels, minlength=len(vocabulary))
    keep = keep_probabilities(labels, offsets, counts, per_label)
    uses = np.bincount(labels, np.repeat(keep, np.diff(offsets)), minlength=len(vocabulary))
    say(f"{keep.sum():,.0f} of {len(keep):,} samples an epoch\n{told(vocabulary, counts, uses)}")
    return Shares(keep.astype(np.float32), np.rint(uses).astype(np.int64), facts)


def _facts(dataset: Dataset, vocabulary: Vocabulary, per_label: int) -> str:
    """The first captions are among them: they change with the column of the captions, which no fingerprint knows."""
    rule = [getattr(vocabulary, name) for name in (*SETTINGS, "version", "hash")]
    some = list(islice(dataset.captions(), LOOKED_AT))
    return sha256(json.dumps([dataset.fingerprint(), len(dataset), rule, per_label, some]).encode()).hexdigest()


def told(vocabulary: Vocabulary, before: np.ndarray, after: np.ndarray) -> str:
    """What thinning does, in a line. before, after: samples that have each label."""
    top = np.argsort(-before, kind="stable")[:3].tolist()
    shares = ", ".join(f"{vocabulary.names[i]} {before[i]:,} -> {after[i]:,.0f}" for i in top)
    return f"{shares}; as diverse as {_effective(before):,.0f} -> {_effective(after):,.0f} equally frequent labels"


def _effective(uses: np.ndarray) -> float:
    """The exponential of the entropy."""
    shares = uses[uses > 0] / uses.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
