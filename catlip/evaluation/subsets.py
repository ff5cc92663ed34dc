"""Parts of a training set: a share of each class, or so many pictures of each. Larger parts contain smaller ones."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from catlip.errors import UsageError


def share_of_each(y: Tensor, share: float, seed: int) -> Tensor:
    """int64: pictures of a random part that has this share of every class, at least one, rounded. y int64 [N]."""
    return _some(y, seed, lambda there: max(1, round(share * there)))


def shots_of_each(y: Tensor, shots: int, seed: int, classes: Sequence[str]) -> Tensor:
    """int64: so many random pictures of every class. Raises UsageError for a class that has fewer."""
    counts = y.bincount(minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < shots:
        raise UsageError(
            f"--shots {shots}: class {classes[least]!r} has {counts[least]} training pictures; "
            f"{counts[least]} is the most that all {len(classes)} classes have"
        )
    return _some(y, seed, lambda there: shots)


def _some(y: Tensor, seed: int, number: Callable[[int], int]) -> Tensor:
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(y[order], stable=True)]  # by class, in random order within
    found, start = [], 0
    for there in y.bincount().tolist():
        found.append(order[start : start + min(there, number(there))])
        start += there
    return torch.cat(found)
