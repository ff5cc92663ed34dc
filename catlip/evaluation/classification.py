"""Measures from class scores, of one class a picture, and class scores from a classifier's rows.

Ties count against the classifier.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable
from catlip.evaluation.features import decoded, positives
from catlip.evaluation.multilabel import Counted, exact_metrics

EXACT = 2**27  # scores of a multi-label set that are kept to be sorted
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


@torch.no_grad()
def evaluate(
    objective: Any, data: Dataset, device: torch.device, unreadable: Unreadable | None = None
) -> dict[str, float]:
    """In percent: top-1, top-5 and mean per class; of multi-label sets mAP and F1. objective: a `ClassObjective`.

    Where all scores together would take over half a gigabyte, average precision is counted (see `Counted`), and its
    error stated. Pictures that cannot be read: as in `features`.
    """
    objective.eval()
    scores, kept, left_out = [], [], Unreadable() if unreadable is None else unreadable
    counted = Counted(len(data.classes)) if data.multi and len(data) * len(data.classes) > EXACT else None
    for numbers, _, pixels in decoded(data, range(len(data)), objective.encoder.pixels, left_out, batch_size=64):
        some = objective.logits(pixels.to(device)).float().cpu()
        if counted is None:
            scores.append(some)
            kept += numbers
        else:
            counted.update(some, positives(data, numbers))
    if counted is not None:
        return counted.metrics()
    if data.multi:
        return exact_metrics(torch.cat(scores), positives(data, kept))
    wanted = torch.from_numpy(data.labels)[kept]
    found = accuracies(ranks(torch.cat(scores), wanted), wanted)
    return found if len(data.classes) > 5 else {name: value for name, value in found.items() if name != "top5"}
