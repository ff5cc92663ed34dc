"""A fair share for rare labels: the common ones are thinned, as MetaCLIP does with texts (arXiv 2309.16671).

A label that more than `per_label` samples have is a reason to keep each of them with probability per_label / count; a
rarer one always is. Each label of a sample is drawn for on its own, and one is enough: so a sample is kept with
probability 1 - product over its labels of (1 - min(1, per_label / count)), and one without a label never. A common
label still comes more often than `per_label`, in the company of rare ones.

The order of a run respects these probabilities exactly (`catlip.data.order.Thinned`). Nothing here needs torch.
"""

from dataclasses import replace

import numpy as np

from catlip.data.dataset import Dataset
from catlip.errors import UsageError
from catlip.labels.vocabulary import Vocabulary
from catlip.notices import say


def keep_probabilities(labels: np.ndarray, offsets: np.ndarray, counts: np.ndarray, per_label: int) -> np.ndarray:
    """float64 [N], of samples with the labels labels[offsets[n]:offsets[n + 1]], which `counts` samples have each."""
    sample = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    with np.errstate(divide="ignore"):  # a label that is always a reason: log(0)
        left_out = np.log1p(-np.minimum(1.0, per_label / np.maximum(counts, 1)))
    return -np.expm1(np.bincount(sample, left_out[labels], minlength=len(offsets) - 1))


def fair_shares(dataset: Dataset, vocabulary: Vocabulary, per_label: int) -> tuple[np.ndarray, Vocabulary]:
    """(float32 [N], the probability of each sample, with counts of this dataset; the vocabulary with those of an epoch,
    as a classifier's bias should begin with).

    Raises UsageError if no caption has a label of the vocabulary.
    """
    if per_label < 1:
        raise UsageError(f"`per_label` {per_label}: 1 or more")
    labels, offsets = vocabulary.sparse(dataset.captions())
    if not len(labels):
        raise UsageError(f"{dataset.name}: not one caption names a label of the vocabulary")
    counts = np.bincount(labels, minlength=len(vocabulary))
    keep = keep_probabilities(labels, offsets, counts, per_label)
    uses = np.bincount(labels, np.repeat(keep, np.diff(offsets)), minlength=len(vocabulary))
    say(f"{keep.sum():,.0f} of {len(keep):,} samples an epoch\n{told(vocabulary, counts, uses)}")
    return keep.astype(np.float32), replace(
        vocabulary, counts=np.rint(uses).astype(int).tolist(), samples=round(float(keep.sum()))
    )


def told(vocabulary: Vocabulary, before: np.ndarray, after: np.ndarray) -> str:
    """What thinning does, in a line. before, after: samples that have each label."""
    top = np.argsort(-before, kind="stable")[:3].tolist()
    shares = ", ".join(f"{vocabulary.names[i]} {before[i]:,} -> {after[i]:,.0f}" for i in top)
    return f"{shares}; as diverse as {_effective(before):,.0f} -> {_effective(after):,.0f} equally frequent labels"


def _effective(uses: np.ndarray) -> float:
    """The exponential of the entropy."""
    shares = uses[uses > 0] / uses.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
