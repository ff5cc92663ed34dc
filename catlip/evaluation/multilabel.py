"""Metrics of a multi-label classifier."""

import torch
from torch import Tensor


def average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """AP of each class: mean precision at the ranks of its positives. scores, positive [N, V] -> [V], NaN without any.

    Ties count against the positives: among equal scores they come last (scikit-learn averages over ties instead).
    """
    n, width = scores.shape
    result = torch.full((width,), float("nan"))
    rank = torch.arange(1, n + 1, dtype=torch.float64)
    for v in range(width):
        # Negatives first, then a stable sort by score: a tie is never broken in the classifier's favour.
        first = torch.argsort(positive[:, v].int(), stable=True)
        order = first[torch.argsort(scores[first, v], descending=True, stable=True)]
        hit = positive[order, v].double()
        if hit.sum() > 0:
            result[v] = ((hit.cumsum(0) / rank) * hit).sum() / hit.sum()
    return result


def top1(scores: Tensor, positive: Tensor) -> float:
    """Share of pictures with labels whose best-scored class is one of their labels."""
    some = positive.any(1)
    best = scores[some].argmax(1, keepdim=True)
    return positive[some].gather(1, best).float().mean().item()
