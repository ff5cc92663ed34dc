"""Measures from class scores, of one class a picture, and class scores from a classifier's rows.

Ties count against the classifier.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NEVER = 10**9  # rank of what cannot be right, beyond every K


def combine(logits: Tensor, rows: Sequence[Sequence[int]], calibrate: bool) -> Tensor:
    """Scores of classes that stand for several rows each: logits [N, V] -> [N, len(rows)]; -inf without rows.

    calibrate: every row's scores are standardised over the N pictures, averaged within a class, and standardised
    again, so that a class with a rare label, or with many labels, starts from the same line as the others.
    """
    found = []
    for own in rows:
        if not own:
            found.append(logits.new_full((len(logits),), float("-inf")))
            continue
        scores = logits[:, list(own)]
        found.append(standard(standard(scores).mean(1)) if calibrate else scores.mean(1))
    return torch.stack(found, dim=1)


def standard(scores: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the first axis; a constant becomes 0."""
    return (scores - scores.mean(0)) / scores.std(0, correction=0).clamp_min(1e-12)


def ranks(scores: Tensor, wanted: Tensor) -> Tensor:
    """int64 [N]: how many other classes score at least as well as the right one. scores [N, C], wanted int64 [N].

    A score of -inf or NaN is never right, nor among the first five of a few.
    """
    right = scores.gather(1, wanted[:, None])
    rank = (~(scores < right)).sum(1) - 1
    return torch.where(right[:, 0].isfinite(), rank, NEVER)


def accuracies(rank: Tensor, wanted: Tensor) -> dict[str, float]:
    """In percent: {"top1", "top5", "mean_per_class"}; the last is the mean over classes of their own top-1."""
    hit = rank.eq(0).double()
    per_class = [hit[wanted == c].mean() for c in wanted.unique()]
    return {
        "top1": 100 * hit.mean().item(),
        "top5": 100 * rank.lt(5).double().mean().item(),
        "mean_per_class": 100 * torch.stack(per_class).mean().item(),
    }
