"""Random parts of a labelled set: a share of each class, or so many pictures of each. Larger parts contain smaller.

Every verb draws here, so the same seed is the same pictures for all of them. Nothing in this file needs torch.
"""

from collections.abc import Callable, Sequence

import numpy as np

from catlip.data.order import uniforms
from catlip.errors import UsageError


def shuffled(count: int, seed: int) -> np.ndarray:
    """int64 [count]: the numbers below count in random order."""
    return np.argsort(uniforms(np.arange(count), 1, seed ^ 0x5EED)[:, 0], kind="stable")


def share_of_each(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """int64: pictures of a random part that has this share of every class, at least one, rounded. labels int64 [N]."""
    return _some(labels, seed, lambda there: max(1, round(share * there)))


def shots_of_each(labels: np.ndarray, shots: int, seed: int, classes: Sequence[str]) -> np.ndarray:
    """int64: so many random pictures of every class. Raises UsageError for a class that has fewer."""
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < shots:
        raise UsageError(
            f"`shots` {shots}: class {classes[least]!r} has {counts[least]} training pictures; "
            f"{counts[least]} is the most that all {len(classes)} classes have"
        )
    return _some(labels, seed, lambda there: shots)


def _some(labels: np.ndarray, seed: int, number: Callable[[int], int]) -> np.ndarray:
    """number(pictures of a class): how many of them. Class by class."""
    order, labels = shuffled(len(labels), seed), np.asarray(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]
    parts = np.split(by_class, np.cumsum(np.bincount(labels))[:-1])
    return np.concatenate([part[: number(len(part))] for part in parts])
